"""The servers go away and come back: workers wait for them, publishers hear of it soon."""

import contextlib
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import pytest

from support.service import Service

#: How long a server doesn't answer, in seconds, beyond what it takes to stop and to start it.
OUTAGE = 4

#: With Redis as the broker, the results are in the same one.
servers = pytest.mark.parametrize(
    ("broker_name", "which"),
    [("redis", "broker"), ("rabbitmq", "broker"), ("rabbitmq", "store")],
    indirect=["broker_name"],
)


@pytest.fixture
def server(service: Service, which: str) -> Any:
    """The server that has the outage."""
    return service.broker if which == "broker" else service.redis


@contextlib.contextmanager
def away(server: Any, how: str) -> Iterator[None]:
    """Let a server be unavailable during the block."""
    if how == "frozen":
        server.pause()
    else:
        server.stop()
    try:
        yield
    finally:
        if how == "frozen":
            server.resume()
        else:
            server.start()


def test_a_worker_waits_for_its_broker_at_start(service: Service) -> None:
    if service.broker is service.redis:
        service.redis.kill()
    else:
        service.broker.stop()
    with service.worker() as worker:
        worker.wait_for(r"Cannot connect to \w+://", 20)
        service.broker.start()
        worker.wait_ready(60)
        assert service.result(service.send("hello_world.delay()"))["state"] == "SUCCESS"
        assert worker.process.poll() is None


@pytest.mark.parametrize("how", ["restarted", "frozen"])
def test_an_idle_worker_survives_an_outage(service: Service, how: str) -> None:
    with service.worker() as worker:
        worker.wait_ready()
        with away(service.broker, how):
            if how == "frozen":
                time.sleep(OUTAGE)
        assert service.result(service.send("probe.work.delay(notes, 'after')"))["state"] == "SUCCESS"
        assert worker.process.poll() is None


@servers
@pytest.mark.parametrize("how", ["restarted", "stopped", "frozen"])
def test_tasks_that_run_during_an_outage_succeed(service: Service, server: Any, how: str) -> None:
    """One task outlasts the outage. The other ends in it: its result and its acknowledgement have nowhere to go."""
    with service.worker("worker", "--concurrency=2") as worker:
        worker.wait_ready()
        calls = "[probe.work.delay(notes, key, seconds).id for key, seconds in (('long', 9), ('short', 2))]"
        tasks = service.python(calls)
        service.wait_for_line("start long")
        service.wait_for_line("start short")
        with away(server, how):
            if how != "restarted":
                time.sleep(OUTAGE)
        for task in [*tasks, service.send("probe.work.delay(notes, 'after')")]:
            outcome = service.result(task, seconds=50)
            assert outcome["state"] == "SUCCESS", outcome
        assert worker.process.poll() is None
    # RabbitMQ delivers again what ran when the connection broke; the first run must not go on.
    assert service.lines().count("end long") == 1


@servers
@pytest.mark.parametrize("how", ["stopped", "frozen"])
def test_a_publisher_with_many_threads_gets_errors_within_seconds(
    service: Service, server: Any, which: str, how: str
) -> None:
    code = (
        "import time\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        "hello_world.delay().revoke()\n"  # connect while everything answers
        "open(notes, 'w').write('connected')\n"
        "while open(notes).read() == 'connected': time.sleep(0.01)\n"
        "def call(function):\n"
        "    start, error = time.monotonic(), None\n"
        "    try: function()\n"
        "    except Exception as exception: error = f'{type(exception).__module__}.{exception!r}'\n"
        "    return [error, time.monotonic() - start]\n"
        "calls = [hello_world.delay, lambda: hello_world.apply_async(ignore_result=True)] * 20\n"
        "with ThreadPoolExecutor(40) as executor: sent = list(executor.map(call, calls))\n"
        "[sent, call(celery.AsyncResult('any').revoke)]"
    )
    with ThreadPoolExecutor(1) as executor:
        publisher = executor.submit(service.python, code)
        service.wait_for_line("connected")
        with away(server, how):
            service.notes.write_text("gone\n")
            sent, revoked = publisher.result()
    assert max(seconds for _, seconds in sent) < 10
    # A command takes two connections, and closing each takes 2 seconds while RabbitMQ is frozen.
    assert revoked[1] < 14
    for error, _ in [*sent, revoked]:
        if which == "store":
            assert error is None  # nobody has asked for a result
        else:
            host = urlsplit(server.url).netloc.rpartition("@")[2]
            assert re.match(rf"kombu.exceptions.OperationalError\(['\"]broker {host}: ", error), error


def test_a_task_that_ends_while_results_can_not_be_stored_succeeds(service: Service) -> None:
    with service.worker() as worker:
        task = service.send("probe.work.delay(notes, 'a', 3)")
        service.wait_for_line("start a")
        service.redis.stop()
        service.wait_for_line("end a")
        worker.wait_for("(?i)retry|connection", 30)
        service.redis.start()
        assert service.result(task, seconds=60) == {"state": "SUCCESS", "result": "a"}
