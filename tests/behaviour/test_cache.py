"""The cache in Redis: for every kind of task and pool, without leaks, and without its Redis."""

import pickle
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import redis as redis_client

from support.distribution import on_one_worker
from support.project import InstalledProject, Worker
from support.servers import Server, start_redis, wait_until
from support.service import Service, full_project, service_on_redis

POOLS = ("prefork", "solo", "threads")
#: Seconds for which a Redis that didn't answer isn't asked again: `PAUSE` in celery_service/data/outage.py.
PAUSE = 5


@pytest.fixture(scope="session")
def project() -> InstalledProject:
    """The project with a database and a cache."""
    return full_project()


@pytest.fixture
def broker_name() -> str:
    """The broker makes no difference to a cache."""
    return "redis"


@pytest.fixture
def server(service: Service, tmp_path: Path) -> Iterator[Server]:
    """A Redis for the cache alone, so that it can go away while messages still flow."""
    with start_redis(tmp_path / "cache") as server:
        service.variables["CACHE_URL"] = server.url
        yield server


class Running(NamedTuple):
    """A service, the Redis of its cache, and its worker."""

    service: Service
    cache: Server
    worker: Worker


@pytest.fixture(scope="module", params=on_one_worker("prefork", "solo", "threads"))
def running(
    request: pytest.FixtureRequest, project: InstalledProject, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    """One with each pool, for tests that leave it as they find it."""
    folder = tmp_path_factory.mktemp(request.param)
    with service_on_redis(project, folder) as service, start_redis(folder / "cache") as cache:
        service.variables["CACHE_URL"] = cache.url
        with service.worker("worker", *pool(request.param, 1)) as worker:
            worker.wait_ready()
            yield Running(service, cache, worker)


def call(service: Service, expression: str, **variables: str) -> Any:
    """Evaluate an expression in a publisher, with the cache itself as `cache`."""
    header = (
        f"from {service.project.slug}.services.cache import cache\n"
        "import asyncio\n"
        "def run(call): return call.get(timeout=50)\n"
    )
    return service.python(f"{header}{expression}", **variables)


def connections(server: Server) -> list[str]:
    """The clients of a server, but for the one that asks."""
    with redis_client.Redis.from_url(server.url) as client:
        me = client.client_id()
        return [each["addr"] for each in client.client_list() if int(each["id"]) != me]


def pool(name: str, concurrency: int = 2) -> tuple[str, ...]:
    return (f"--pool={name}", f"--concurrency={concurrency}")


# --- it works ---------------------------------------------------------------------------------------------------------


def test_sync_and_async_tasks_share_values(running: Running) -> None:
    assert call(
        running.service,
        "[run(cached.put.delay('a', {'x': [1, 'é']})), run(cached.take_async.delay('a')),"
        " run(cached.put_async.delay('b', 2.5, 300)), run(cached.take.delay('b')), run(cached.take.delay('c')),"
        " cache.sync.get('a'), asyncio.run(cache.get('b')), asyncio.run(cache.get('b')),"
        " run(cached.many_async.delay(200))]",
    ) == [None, {"x": [1, "é"]}, None, 2.5, None, {"x": [1, "é"]}, 2.5, 2.5, 200]
    with redis_client.Redis.from_url(running.cache.url) as client:
        assert 290 < client.ttl("my_service:a") <= 300  # CACHE_TTL


def test_a_frozen_redis_costs_one_time_out(running: Running) -> None:
    call(running.service, "run(cached.many.delay(1))")
    away = running.worker.text().count("cache_away")
    running.cache.pause()
    frozen = call(running.service, "run(cached.many.delay(500))")
    running.cache.resume()
    assert frozen["missing"] == 500
    assert frozen["seconds"] < 3  # CACHE_TIMEOUT is half a second
    assert running.worker.text().count("cache_away") == away + 1
    # It isn't asked for some seconds, and then it is again.
    wait_until(lambda: not call(running.service, "run(cached.many.delay(1))")["missing"], PAUSE + 10, "the cache")


@pytest.mark.usefixtures("server")
def test_services_that_share_a_redis_have_namespaces(service: Service) -> None:
    call(service, "cache.sync.set('a', 1)")
    assert call(service, "cache.sync.get('a')", CACHE_NAMESPACE="other") is None
    assert call(service, "cache.sync.get('a')") == 1


def test_clearing_deletes_the_keys_of_this_service_alone(running: Running) -> None:
    # Its name must be taken literally, and a database may hold more keys than one step looks at.
    own = {"CACHE_NAMESPACE": "my*[s]"}
    with redis_client.Redis.from_url(running.cache.url) as client:
        others = ("mys:a", "my*[s]s:a", "other")
        client.mset({f"my*[s]:{number}": "1" for number in range(5000)} | dict.fromkeys(others, "1"))
        expression = "[cache.sync.get('7'), cache.sync.clear(), cache.sync.get('7')]"
        assert call(running.service, expression, **own) == [1, True, None]
        assert client.exists(*others) == 3
        assert not client.exists("my*[s]:0", "my*[s]:4999")
        client.delete(*others)
        client.set("my_service:a", "1")
    assert call(running.service, "[run(cached.clear_async.delay()), cache.sync.get('a')]") == [True, None]


@pytest.mark.usefixtures("server")
def test_without_a_cache_every_task_computes(service: Service, server: Server) -> None:
    off = {"CACHE_URL": "none"}
    with service.worker("worker", *pool("prefork", 2), **off):
        tasks = "[cached.dear.s(notes, 0), cached.dear_async.s(notes, 0)] * 2"
        assert call(service, f"run(group({tasks}).delay())", **off) == [42] * 4
    assert len(service.lines()) == 4
    expression = "[cache.sync.set('a', 1), cache.sync.get('a', 2), cache.sync.clear()]"
    assert call(service, expression, **off) == [None, 2, True]
    with redis_client.Redis.from_url(server.url) as client:
        assert client.dbsize() == 0


# --- one computes -----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize("name", ["prefork", "threads"])
def test_only_one_of_several_tasks_computes_a_value(service: Service, name: str) -> None:
    with service.worker("worker", *pool(name, 4)), service.worker("other", *pool(name, 4)):
        tasks = "[cached.dear.s(notes, 1), cached.dear_async.s(notes, 1)] * 8"
        assert call(service, f"run(group({tasks}).delay())") == [42] * 16
    assert len(service.lines()) == 1


@pytest.mark.usefixtures("server")
def test_a_waiting_task_computes_the_value_if_the_first_process_dies(service: Service) -> None:
    with service.worker("worker", *pool("prefork", 4)) as worker:
        worker.wait_ready()
        tasks = service.python("[cached.dear.delay(notes, 2, 3).id for _ in range(4)]")
        wait_until(service.lines, 20, "somebody who computes")
        worker.kill_child(int(service.lines()[0].split()[-1]))
        for task in tasks:
            assert service.result(task)["result"] == 42
    # One of those who waited, not all; the dead one's message is delivered again, and waits with them.
    assert len(service.lines()) == 2


# --- Redis is away ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "concurrency"), [("prefork", 1), ("threads", 4)])
def test_tasks_go_on_without_redis_and_each_outage_is_logged_once(
    service: Service, server: Server, name: str, concurrency: int
) -> None:
    def outages() -> tuple[int, int]:
        return worker.text().count("cache_away"), worker.text().count("cache_back")

    many = "run(group(cached.many.s(50) for _ in range(4)).delay())"
    with service.worker("worker", *pool(name, concurrency)) as worker:
        assert {each["missing"] for each in call(service, many)} == {0}
        for number in (1, 2):
            server.kill()
            gone = call(service, many)
            assert {each["missing"] for each in gone} == {50}
            assert max(each["seconds"] for each in gone) < 3  # 50 time-outs would be 25
            assert call(service, "run(cached.dear.delay(notes, 0))") == 42
            assert outages() == (number, number - 1)
            server.start()
            wait_until(lambda: call(service, "run(cached.many.delay(1))")["missing"] == 0, PAUSE + 10, "the cache")
            assert {each["missing"] for each in call(service, many)} == {0}
            assert outages() == (number, number)
    assert "Traceback" not in worker.text()


# --- nothing stays open -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", POOLS)
def test_thousands_of_operations_leave_one_connection_and_a_stop_none(
    service: Service, server: Server, name: str
) -> None:
    with service.worker("worker", *pool(name, 1)):
        before = call(service, "run(cached.many.delay(1))")
        after = call(service, "run(cached.many.delay(1000))")
        assert after["files"] == before["files"]
        assert after["missing"] == 0
        assert len(connections(server)) == 1
    wait_until(lambda: not connections(server), 30, "closed connections")


def test_a_child_that_is_replaced_closes_its_connection(service: Service, server: Server) -> None:
    with service.worker("worker", *pool("prefork", 1), CELERY_WORKER_MAX_TASKS_PER_CHILD="2"):
        call(service, "[run(cached.put.delay('a', i)) for i in range(6)]")
        wait_until(lambda: len(connections(server)) <= 1, 30, "one connection at most")
        with redis_client.Redis.from_url(server.url) as client:
            assert client.info("stats")["total_connections_received"] >= 3
    wait_until(lambda: not connections(server), 30, "closed connections")


# --- setting up connects to nothing -----------------------------------------------------------------------------------


def test_setting_up_opens_no_connection(service: Service, server: Server) -> None:
    def received() -> int:
        with redis_client.Redis.from_url(server.url) as client:
            return int(client.info("stats")["total_connections_received"])

    before = received()
    code = (
        f"import sys\nassert '{service.project.slug}.services.cache' not in sys.modules\n"
        "celery.conf.timezone\n"
        f"assert '{service.project.slug}.services.cache' in sys.modules\n"
        "hello_world.delay()\nprint('true')"
    )
    # Without the header of `Service.python`, whose tasks import the cache themselves.
    header = f"from {service.project.slug}.celery import celery, hello_world\n"
    assert run(service, header + code).stdout == "true\n"
    with service.worker() as worker:
        worker.wait_ready()
        assert received() == before + 1  # this one


def test_a_publisher_starts_at_once_without_redis(service: Service, server: Server) -> None:
    server.stop()
    code = (
        f"import time\nfrom {service.project.slug}.celery import celery, setup_caches\n"
        "start = time.monotonic()\ncelery.conf.timezone\nsetup_caches(celery)\n"
        "print(time.monotonic() - start)"
    )
    done = run(service, code)
    assert float(done.stdout) < 2  # it imports libraries
    assert done.stderr == ""


def run(service: Service, code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = ("python", "-W", "error", "-c", code)
    return service.project.run(*command, env=service.variables | variables, timeout_seconds=30)


# --- what is in Redis -------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("server")
def test_values_come_back_from_redis_unchanged(service: Service) -> None:
    value = "{'texts': ['', 'é', '\\x00'], 'numbers': [0, -1, 2.5, 2 ** 60], 'yes': True, 'none': None, '': {}}"
    assert call(service, f"[cache.sync.set('a', {value}), cache.sync.get('a') == {value}]") == [None, True]


class _Bomb:
    """What pickle would turn into a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_in_redis_is_replaced_and_not_executed(
    service: Service, server: Server, protocol: int, tmp_path: Path
) -> None:
    bomb = pickle.dumps(_Bomb(tmp_path / "exploded"), protocol)
    with redis_client.Redis.from_url(server.url) as client:
        client.set("my_service:a", bomb)
    expression = "[cache.sync.get('a'), cache.sync.get_or_set('a', lambda: 1), cache.sync.get('a')]"
    assert call(service, expression) == [None, 1, 1]
    assert not (tmp_path / "exploded").exists()
    pickle.loads(bomb)
    assert (tmp_path / "exploded").exists()  # it would have


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("server")
def test_a_call_without_await_prints_a_warning(service: Service) -> None:
    done = run(service, f"from {service.project.slug}.services.cache import cache\ncache.set('a', 1)")
    assert "coroutine 'Cache.set' was never awaited" in done.stderr
