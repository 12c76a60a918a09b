"""What publishers, web processes and shells get when a server can't be used: one kind of error, within seconds."""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis
from kombu import Connection

from support.project import InstalledProject
from support.publisher import Publisher
from support.servers import HOST, Server, free_port, start_redis, wait_until
from support.service import Service, service_on_sentinel

ON_REDIS = pytest.mark.parametrize("broker_name", ["redis"], indirect=True)
ON_RABBITMQ = pytest.mark.parametrize("broker_name", ["rabbitmq"], indirect=True)

#: docs/reliability.md promises an answer within so many seconds.
PROMISED = 10

#: Python for a client: `outcome` says how a call has ended and after how many seconds, `at_once` that of many calls.
HELPERS = """
import time
from concurrent.futures import ThreadPoolExecutor
def outcome(call):
    begin, error = time.monotonic(), None
    try: value = str(call())
    except Exception as exception:
        value, error = str(exception), f'{type(exception).__module__}.{type(exception).__name__}'
    return [error, value, time.monotonic() - begin]
def at_once(**calls):
    with ThreadPoolExecutor(len(calls)) as executor:
        return dict(zip(calls, executor.map(outcome, calls.values())))
"""

#: Whatever reads results.
READING = """
def drain():
    celery.AsyncResult('any').then(print)
    celery.backend.result_consumer.drain_events(timeout=0.1)
found = at_once(
    drain=drain,
    state=lambda: celery.AsyncResult('any').state,
    ready=lambda: celery.AsyncResult('any').ready(),
    exists=lambda: celery.AsyncResult('any').exists(),
    forget=lambda: celery.AsyncResult('any').forget(),
    get=lambda: celery.AsyncResult('any').get(timeout=60),
    group=lambda: celery.GroupResult('some', [celery.AsyncResult('one'), celery.AsyncResult('two')]).get(timeout=60),
    restore=lambda: celery.GroupResult.restore('some'),
)
"""


class Client:
    """A process that stays the same, whatever happens to its servers."""

    def __init__(self, service: Service, **variables: str) -> None:
        self._header = service.header + HELPERS
        output = service.folder / f"client{len(variables)}"
        self._publisher = Publisher(service.project, service.variables | variables, output=output)

    def run(self, code: str) -> Any:
        """Run code, and give the value of its last line. `celery` keeps what is assigned to its attributes."""
        return self._publisher.run(self._header + code)

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *exception: object) -> None:
        self._publisher.close()


def address(server: Server) -> str:
    return urlsplit(server.url).netloc.rpartition("@")[2]


def assert_names(found: list[Any], server: str) -> None:
    """Check that a call has ended in the one kind of error, soon, which names a server in one line."""
    error, text, seconds = found
    assert error == "kombu.exceptions.OperationalError", found
    assert text.startswith(f"{server}: "), found
    assert text.isprintable(), found  # a line end isn't
    assert seconds < PROMISED


@ON_REDIS
@pytest.mark.parametrize("how", ["stopped", "frozen"])
def test_a_client_gets_an_error_within_seconds_if_the_result_backend_is_unreachable(service: Service, how: str) -> None:
    """Also one that waits for a result already. It goes on by itself afterwards."""
    with service.worker() as worker, Client(service) as client:
        worker.wait_ready()
        client.run(
            "assert probe.work.delay(notes, 'before').get(timeout=30) == 'before'\n"
            "celery.waited_for = probe.work.delay(notes, 'long', 6)\n"
            "celery.waiters = ThreadPoolExecutor(2)\n"
            "celery.waiting = [\n"
            "    celery.waiters.submit(outcome, lambda: celery.waited_for.get(timeout=60)),\n"
            "    celery.waiters.submit(outcome, lambda: celery.AsyncResult('never').get()),\n"
            "]\n"
        )
        service.wait_for_line("start long")
        with redis.Redis.from_url(service.redis.url) as server:
            wait_until(lambda: sum(count for _, count in numbers(server)) == 2, 20, "both to listen")
        with away(service.redis, how):
            found = client.run(
                READING + "found['waiting'], found['endless'] = [w.result() for w in celery.waiting]\nfound"
            )
        # With gevent, a thread of Celery's listens for all who wait. It must outlast this.
        assert found.pop("drain")[0] is None
        for name, outcome in found.items():
            if name in ("waiting", "endless"):
                outcome[2] = 0  # it has begun before
            assert_names(outcome, f"result backend {address(service.redis)}")
        again = client.run(
            "[celery.waited_for.get(timeout=60), probe.work.delay(notes, 'after').get(timeout=60),\n"
            " group(probe.work.si(notes, key) for key in 'ab')().get(timeout=60), celery.waited_for.state]"
        )
        assert again == ["long", "after", ["a", "b"], "SUCCESS"]


def numbers(server: Any) -> list[tuple[bytes, int]]:
    """Give the number of clients that listen for each result."""
    found: list[tuple[bytes, int]] = server.pubsub_numsub(*server.pubsub_channels("celery-task-meta-*"))
    return found


@contextlib.contextmanager
def away(server: Server, how: str) -> Iterator[None]:
    """Have a server away during the block."""
    server.pause() if how == "frozen" else server.stop()
    try:
        yield
    finally:
        server.resume() if how == "frozen" else server.start()


@ON_REDIS
def test_a_client_gets_an_error_if_redis_can_not_write(service: Service) -> None:
    with Client(service) as client, redis.Redis.from_url(service.redis.url) as server:
        client.run("hello_world.delay().id")
        server.config_set("min-replicas-to-write", 1)
        found = client.run(
            "at_once(delay=lambda: hello_world.delay(), forget=lambda: celery.AsyncResult('any').forget(),\n"
            "        state=lambda: celery.AsyncResult('any').state)"
        )
        assert found.pop("state")[:2] == [None, "PENDING"]
        for name, outcome in found.items():
            kind = "broker" if name == "delay" else "result backend"
            assert_names(outcome, f"{kind} {address(service.redis)}")
            assert "NOREPLICAS" in outcome[1]
        server.config_set("min-replicas-to-write", 0)
        assert client.run("outcome(lambda: hello_world.delay().forget())")[0] is None


@ON_REDIS
def test_a_task_that_asks_for_a_result_waits_until_redis_is_back(service: Service) -> None:
    with service.worker() as worker:
        worker.wait_ready()
        done = service.send("probe.work.delay(notes, 'a')")
        service.result(done)
        task = service.send(f"probe.read_state.delay(notes, {done!r})")
        service.wait_for_line("start look")
        service.redis.stop()
        with service.notes.open("a") as notes:
            notes.write("go on\n")
        worker.wait_for("result backend .*refused", 20)
        service.redis.start()
        assert service.result(task, seconds=60) == {"state": "SUCCESS", "result": "SUCCESS"}


@ON_REDIS
def test_results_arrive_by_pub_sub_and_are_found_without_it(service: Service) -> None:
    with service.worker() as worker, Client(service) as client:
        worker.wait_ready()
        heard = client.run(
            "from celery_service.brokers.redis import backend\n"
            "backend.LOOK = 3600\n"
            "one = probe.work.delay(notes, 'a', 0.5).get(timeout=20)\n"
            "some = group(probe.work.si(notes, key, 0.5) for key in 'bc')\n"
            "[one, some().get(timeout=20), chord(some)(probe.work.si(notes, 'd', 0.5)).get(timeout=20)]"
        )
        assert heard == ["a", ["b", "c"], "d"]
        client.run(
            "from celery_service.brokers.redis import backend\n"
            "backend.LOOK = 1\n"
            "celery.waiting = ThreadPoolExecutor(1).submit(lambda: celery.AsyncResult('unheard').get(timeout=30))"
        )
        with redis.Redis.from_url(service.redis.url) as server:
            wait_until(lambda: numbers(server), 20, "the client to listen")
            # As when the connection that listens is slower than the task.
            found = '{"status": "SUCCESS", "result": "found", "task_id": "unheard", "traceback": null, "children": []}'
            server.set("celery-task-meta-unheard", found)
        assert client.run("celery.waiting.result()") == "found"


@ON_RABBITMQ
def test_tasks_are_sent_while_the_result_backend_is_unreachable(service: Service) -> None:
    with Client(service) as client:
        service.redis.pause()
        found = client.run(
            "at_once(delay=lambda: hello_world.delay(),\n"
            "        group=lambda: group(hello_world.s() for _ in range(20))(),\n"
            "        chord=lambda: chord([hello_world.si()] * 2)(hello_world.si()))"
        )
        assert_names(found.pop("chord"), f"result backend {address(service.redis)}")
        for outcome in found.values():
            assert outcome[0] is None, found
            assert outcome[2] < PROMISED


@ON_RABBITMQ
def test_a_message_for_a_queue_that_was_deleted_arrives(service: Service) -> None:
    """Also when its exchange was deleted. Who has switched retries off gets an error."""
    # RabbitMQ 3.10 can crash when a quorum queue is deleted soon after it was declared.
    with (
        Client(service, CELERY_TASK_CREATE_MISSING_QUEUE_TYPE="classic") as client,
        Connection(service.broker.url) as connection,
    ):
        channel: Any = connection.channel()

        def waiting() -> int:
            return int(channel.queue_declare("reports", passive=True).message_count)

        send = "probe.work.apply_async((notes, 'a'), queue='reports')"
        assert client.run(f"{send}.state") == "PENDING"
        for delete in (channel.queue_delete, channel.exchange_delete):
            channel.queue_delete("reports")
            delete("reports")
            client.run(f"[{send}.id for _ in range(3)]")
            assert waiting() == 3

            channel.queue_delete("reports")
            delete("reports")
            found = client.run(f"outcome(lambda: {send[:-1]}, retry=False))")
            assert_names(found, f"broker {address(service.broker)}")
            assert "reports" in found[1]
            client.run(f"{send}.id")
            assert waiting() == 1
        channel.queue_delete("reports")
        channel.exchange_delete("reports")

        channel.exchange_declare("everyone", "fanout", durable=True, auto_delete=False)
        with service.worker() as worker:
            worker.wait_ready()
            found = client.run(
                "from kombu.common import Broadcast\n"
                "at_once(broadcast=lambda: celery.send_task('any', queue=Broadcast('everyone')),\n"
                "        nowhere=lambda: celery.send_task('any', exchange='default', routing_key='nowhere'),\n"
                "        later=lambda: probe.work.apply_async((notes, 'later'), countdown=1))"
            )
            assert_names(found["nowhere"], f"broker {address(service.broker)}")
            assert "no queue takes messages for 'nowhere' of exchange 'default'" in found["nowhere"][1]
            assert found["later"][0] is None
            assert found["broadcast"][0] is None  # which may be for nobody
            service.wait_for_line("end later")


@ON_RABBITMQ
@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        ("guest:guest@", "guest:wrong@", "ACCESS_REFUSED"),
        ("//", "/missing", "vhost missing not found"),
    ],
    ids=["wrong password", "missing vhost"],
)
def test_rabbitmq_refuses_a_client(service: Service, before: str, after: str, reason: str) -> None:
    head, _, tail = service.broker.url.rpartition(before)
    with Client(service, CELERY_BROKER_URL=head + after + tail) as client:
        found = client.run(
            "at_once(delay=lambda: hello_world.delay(), send_task=lambda: celery.send_task('any'),\n"
            "        chain=lambda: chain(hello_world.si(), hello_world.si())(),\n"
            "        revoke=lambda: celery.AsyncResult('any').revoke())"
        )
    for outcome in found.values():
        assert_names(outcome, f"broker {address(service.broker)}")
        assert reason in outcome[1]
        assert "wrong" not in outcome[1]


@ON_REDIS
def test_redis_refuses_a_client(service: Service) -> None:
    with redis.Redis.from_url(service.redis.url) as server:
        server.acl_setuser("app", enabled=True, passwords=["+right"], keys=["*"], channels=["*"], commands=["+@all"])
    with Client(service, CELERY_BROKER_URL=service.redis.url.replace("//", "//app:wrong@")) as client:
        found = client.run("at_once(delay=lambda: hello_world.delay(), state=lambda: celery.AsyncResult('any').state)")
    assert_names(found["delay"], f"broker {address(service.redis)}")
    assert_names(found["state"], f"result backend {address(service.redis)}")
    for outcome in found.values():
        assert "username-password" in outcome[1]
        assert "wrong" not in outcome[1].replace("wrongpass", "")


@pytest.fixture
def tls(tmp_path: Path) -> Iterator[str]:
    """The address of a server with a certificate that nobody trusts."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-days",
            "1",
            "-subj",
            f"/CN={HOST}",
            "-addext",
            f"subjectAltName=IP:{HOST}",
            "-keyout",
            str(key),
            "-out",
            str(certificate),
        ],
        check=True,
        capture_output=True,
    )
    port = free_port()
    options = (
        "--tls-port",
        str(port),
        "--tls-auth-clients",
        "no",
        "--tls-cert-file",
        str(certificate),
        "--tls-key-file",
        str(key),
        "--tls-ca-cert-file",
        str(certificate),
    )
    with start_redis(tmp_path / "tls", options=options):
        yield f"{HOST}:{port}"


@ON_REDIS
def test_a_client_refuses_an_unknown_certificate(service: Service, tls: str) -> None:
    """Who listens there is Redis in either case: the certificate comes before the first word of a protocol."""
    for url in (f"rediss://:secret@{tls}/0?ssl_cert_reqs=required", f"amqps://app:secret@{tls}//"):
        results = url if url.startswith("rediss") else service.redis.url
        with Client(service, CELERY_BROKER_URL=url, CELERY_RESULT_BACKEND=results) as client:
            found = client.run(
                "at_once(delay=lambda: hello_world.delay(), state=lambda: celery.AsyncResult('any').state)"
            )
        assert_names(found["delay"], f"broker {tls}")
        if results == url:
            assert_names(found["state"], f"result backend {tls}")
            assert "CERTIFICATE_VERIFY_FAILED" in found["state"][1]
        assert "CERTIFICATE_VERIFY_FAILED" in found["delay"][1]
        assert "secret" not in str(found)


def test_a_client_survives_a_failover_by_sentinel(project: InstalledProject, tmp_path: Path) -> None:
    call = "at_once(delay=lambda: hello_world.delay(), state=lambda: celery.AsyncResult('any').state)"
    with service_on_sentinel(project, tmp_path) as (service, sentinel), Client(service) as client:
        assert {outcome[0] for outcome in client.run(call).values()} == {None}
        service.broker.kill()

        def is_back() -> bool:
            found = client.run(call)
            for name, kind in (("delay", "broker"), ("state", "result backend")):
                if found[name][0]:
                    assert_names(found[name], f"{kind} {address(sentinel)}")
            return {outcome[0] for outcome in found.values()} == {None}

        wait_until(is_back, 60, "the replica to have taken over")
