"""The server starters of the tests: they start, serve, restart, and leave nothing behind."""

import contextlib
import json
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from kombu import Connection, Exchange, Queue

from support.processes import is_running
from support.servers import (
    HOST,
    Server,
    find_postgres,
    find_redis,
    free_port,
    listens,
    require,
    start_postgres,
    start_rabbitmq,
    start_redis,
    wait_until,
)

KEEPING = ("--appendonly", "yes", "--appendfsync", "always")


@pytest.fixture
def watch(tmp_path: Path) -> Iterator[Callable[[Any], Any]]:
    """Check after the test that the given server has left nothing behind."""
    ports: list[int] = []

    def remember(server: Any) -> Any:
        ports.extend(listening_ports(tmp_path))
        return server

    yield remember
    assert ports, "the test should have named its server"
    wait_until(lambda: not processes_in(tmp_path), 30, "the processes of the server to be gone")
    assert not [port for port in ports if listens(port)]


def processes_in(folder: Path) -> list[int]:
    """Find the processes that run in this folder or have it in their environment."""
    return [
        int(process.name)
        for process in Path("/proc").glob("[0-9]*")
        if is_running(int(process.name)) and belongs(process, folder)
    ]


def belongs(process: Path, folder: Path) -> bool:
    try:
        named = str(folder).encode() in (process / "environ").read_bytes()
        return named or (process / "cwd").readlink().is_relative_to(folder)
    except OSError:
        return False


def listening_ports(folder: Path) -> list[int]:
    """Find the TCP ports on which processes of this folder listen."""
    sockets = {
        inode: int(local.rpartition(":")[2], 16)
        for table in ("tcp", "tcp6")
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]
        for _, local, _, state, *_, inode in [line.split()[:10]]
        if state == "0A"
    }
    open_files = {name for pid in processes_in(folder) for name in names_of_open_files(pid)}
    return [port for inode, port in sockets.items() if f"socket:[{inode}]" in open_files]


def names_of_open_files(pid: int) -> Iterator[str]:
    """Read the targets of the links in /proc, except those that are closed in the meantime."""
    for file in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            yield str(file.readlink())


# --- Redis ------------------------------------------------------------------------------------------------------------


def redis_client(server: Any) -> redis.Redis:
    return redis.Redis.from_url(server.url, socket_timeout=2, decode_responses=True)


def test_redis_keeps_its_data_after_a_restart_and_a_kill(tmp_path: Path, watch: Callable[[Any], Any]) -> None:
    with watch(start_redis(tmp_path, options=KEEPING)) as server:
        redis_client(server).set("greeting", "hello")

        server.restart()
        assert redis_client(server).get("greeting") == "hello"

        server.kill()
        assert not listens(redis_client(server).connection_pool.connection_kwargs["port"])
        server.start()
        assert redis_client(server).get("greeting") == "hello"


def test_redis_keeps_no_data_by_default(tmp_path: Path, watch: Callable[[Any], Any]) -> None:
    with watch(start_redis(tmp_path)) as server:
        redis_client(server).set("greeting", "hello")
        server.restart()
        assert redis_client(server).get("greeting") is None


def test_a_paused_redis_accepts_connections_but_does_not_answer(tmp_path: Path, watch: Callable[[Any], Any]) -> None:
    with watch(start_redis(tmp_path)) as server:
        server.pause()
        with pytest.raises(redis.TimeoutError):
            redis.Redis.from_url(server.url, socket_timeout=0.3, retry=None).ping()
        server.resume()
        assert redis_client(server).ping()
        server.pause()  # the end of the block must cope


def test_redis_listens_on_the_port_that_was_asked_for(tmp_path: Path, watch: Callable[[Any], Any]) -> None:
    port = free_port()
    with watch(start_redis(tmp_path, port=port)) as server:
        assert server.url == f"redis://{HOST}:{port}/0"


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"(?s)ended with status 1; .*redis.log ends:.*no-such"):
        start_redis(tmp_path, options=("--no-such-option", "1"))
    assert not processes_in(tmp_path)


# --- RabbitMQ ---------------------------------------------------------------------------------------------------------

QUEUE = Queue(
    "kept",
    Exchange("kept", durable=True),
    routing_key="kept",
    durable=True,
    queue_arguments={"x-queue-type": "quorum"},
)


def publish(server: Any, body: str) -> None:
    with Connection(server.url, transport_options={"confirm_publish": True}) as connection:
        producer = connection.Producer(serializer="json")
        producer.publish(body, exchange="kept", routing_key="kept", declare=[QUEUE], timeout=10)


def receive(server: Any, body: str) -> None:
    """Get messages one after the other until this one arrives.

    Earlier messages may be redelivered after a kill: RabbitMQ doesn't confirm acknowledgements, and one may not have
    been on disk.

    This uses `get`, because a consumer would receive the next message as well. RabbitMQ 3.10 may lose that message if
    it is killed at the moment when the consumer disconnects (in 1 of 20 cases).
    """

    def came() -> bool:
        with Connection(server.url) as connection:
            channel: Any = connection.channel()
            message = channel.basic_get(QUEUE.name)
            if message is None:
                return False
            channel.basic_ack(message.delivery_tag)
            return bool(json.loads(message.body) == body)

    wait_until(came, 20, f"the message {body!r}")


def test_rabbitmq_keeps_messages_after_a_restart_and_a_kill(tmp_path: Path, watch: Callable[[Any], Any]) -> None:
    with watch(start_rabbitmq(tmp_path)) as server:
        publish(server, "first")
        publish(server, "second")

        server.restart()
        receive(server, "first")

        server.kill()
        assert not processes_that_serve(tmp_path)
        server.start()
        receive(server, "second")

        server.pause()
        with pytest.raises(TimeoutError):
            Connection(server.url, connect_timeout=0.3).connect()
        server.resume()
        publish(server, "third")
        receive(server, "third")


def processes_that_serve(folder: Path) -> list[int]:
    """Exclude small helpers of Erlang, which notice a moment later that their parent has exited."""
    return [
        pid for pid in processes_in(folder) if Path(f"/proc/{pid}/comm").read_text().strip() in {"beam.smp", "epmd"}
    ]


def test_rabbitmq_says_why_it_cannot_start(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"(?s)rabbitmq-server ended .*no_such_option"):
        start_rabbitmq(tmp_path, options=["no_such_option = 1"])
    wait_until(lambda: not processes_in(tmp_path), 30, "its processes to be gone")


# --- PostgreSQL -------------------------------------------------------------------------------------------------------


def sql(server: Any, statement: str, timeout_seconds: float = 10) -> str:
    programs = find_postgres()
    assert programs
    psql = [f"{programs}/psql", server.url, "-X", "-A", "-t", "-v", "ON_ERROR_STOP=1"]
    command = [*psql, "-c", statement]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=timeout_seconds)
    return done.stdout.strip()


def test_postgres_keeps_tables_after_a_restart_and_a_kill(tmp_path: Path, watch: Callable[[Any], Any]) -> None:
    with watch(start_postgres(tmp_path)) as server:
        sql(server, "create table kept (word text); insert into kept values ('hello')")

        server.restart()
        assert sql(server, "select word from kept") == "hello"

        server.kill()
        server.start()
        assert sql(server, "select word from kept") == "hello"

        server.pause()
        with pytest.raises(subprocess.TimeoutExpired):
            sql(server, "select 1", timeout_seconds=0.5)
        server.resume()
        assert sql(server, "select 1") == "1"


# --- what they share --------------------------------------------------------------------------------------------------


def test_a_missing_server_skips_the_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REQUIRE_SERVICES", raising=False)
    with pytest.raises(pytest.skip.Exception) as skipped:
        require("redis-server", None)
    assert str(skipped.value) == (
        "redis-server is not installed: nothing to test against; apt-get install redis-server"
    )


def test_a_missing_server_fails_the_test_if_services_are_required(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("REQUIRE_SERVICES", "1")
    with pytest.raises(pytest.fail.Exception, match="rabbitmq-server is not installed"):
        require("rabbitmq-server", None)


def test_the_path_of_an_installed_server_is_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REQUIRE_SERVICES", "1")
    assert require("redis-server", "/usr/bin/redis-server") == "/usr/bin/redis-server"


def test_a_program_that_is_not_installed_is_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert find_redis() is None


def test_a_server_that_does_not_answer_fails_within_the_deadline(tmp_path: Path) -> None:
    port = free_port()
    server = Server(
        name="mute",
        url=f"x://{HOST}:{port}",
        answers=lambda: False,
        command=["/bin/sleep", "60"],
        log=tmp_path / "log",
        start_seconds=0.1,
    )
    with pytest.raises(RuntimeError, match=r"waited 0\.1 s in vain for: an answer from mute"):
        server.start()
    assert not processes_in(tmp_path)


def end_by_itself(server: Any) -> None:
    server.process.kill()
    server.process.wait()


@pytest.mark.parametrize("mishap", [Server.pause, Server.kill, Server.stop, end_by_itself])
def test_a_server_recovers_from_a_fault(tmp_path: Path, mishap: Callable[[Any], None]) -> None:
    with start_redis(tmp_path) as server:
        mishap(server)
        server.recover()
        assert redis_client(server).ping()


def test_a_server_that_does_not_stop_is_killed_and_reported(tmp_path: Path) -> None:
    port = free_port()
    deaf = "trap '' TERM; echo deaf; while :; do sleep 60; done"
    server = Server(
        name="deaf",
        url=f"x://{HOST}:{port}",
        answers=lambda: "deaf" in (tmp_path / "log").read_text(),
        command=["/bin/sh", "-c", deaf],
        log=tmp_path / "log",
        stop_seconds=0.3,
    )
    server.start()
    with pytest.raises(RuntimeError, match=r"deaf did not stop within 0\.3 s"):
        server.stop()
    assert not processes_in(tmp_path)


def test_wait_until_returns_the_value() -> None:
    values = iter([None, 0, "there"])
    assert wait_until(lambda: next(values), 30, "a value") == "there"


def test_wait_until_raises_with_a_description() -> None:
    began = time.monotonic()
    with pytest.raises(TimeoutError, match=r"waited 0.2 s in vain for: the moon"):
        wait_until(lambda: False, 0.2, "the moon")
    assert time.monotonic() - began < 2


def test_free_ports_are_free_and_differ() -> None:
    with socket.create_server((HOST, 0)) as used:
        ports = {free_port() for _ in range(100)}
        assert len(ports) == 100
        assert used.getsockname()[1] not in ports
