"""The HTTP API while a server is away: it answers 503 in time, its event loop goes on, and it recovers by itself."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from support.api import Api, allow, events
from support.project import InstalledProject
from support.servers import free_port, wait_until
from support.service import Service, api_project, service_on_redis

#: The API answers within so many seconds.
PROMISED = 3
#: A loop that waits for a server would wait for its timeout, two seconds.
LAG = 1


@pytest.fixture(scope="module")
def project() -> InstalledProject:
    return api_project()


def submit(api: Api) -> tuple[httpx.Response, float]:
    """Ask for a report, and measure the time."""
    began = time.monotonic()
    return api.report(), time.monotonic() - began


class Lag:
    """The longest time that the API took for a request that needs no server."""

    def __init__(self, api: Api) -> None:
        self.longest = 0.0
        self._end = threading.Event()
        self._client = httpx.Client(base_url=api.url, timeout=30, trust_env=False)
        self._thread = threading.Thread(target=self._measure)

    def _measure(self) -> None:
        while not self._end.wait(0.02):
            began = time.monotonic()
            assert self._client.get("/health/live").status_code == 200
            self.longest = max(self.longest, time.monotonic() - began)

    def __enter__(self) -> "Lag":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._end.set()
        self._thread.join()
        self._client.close()


def says_away(api: Api, known: str | None, *, store: bool) -> bool:
    """Check that the API says that a server is away, to many clients at once.

    Return whether it did so in time and its event loop went on.
    """
    with Lag(api) as lag, ThreadPoolExecutor(40) as executor:
        submitted = list(executor.map(submit, [api] * 40))
        for answer, _ in submitted:
            assert answer.status_code == 503
            assert answer.headers["content-type"] == "application/problem+json"
            assert int(answer.headers["retry-after"]) > 0
            assert "127.0.0.1" not in answer.text
        times = [seconds for _, seconds in submitted]

        def unhealthy() -> httpx.Response | None:
            began = time.monotonic()
            answer = api.client.get("/health/detailed")
            times.append(time.monotonic() - began)
            return answer if answer.status_code == 503 else None

        # It keeps its answers for five seconds.
        answer = wait_until(unhealthy, 15, "the health to tell")
        components = answer.json()["components"]
        assert api.client.get("/health/ready").status_code == 503
        assert components["results" if store else "broker"]["status"] == "unhealthy"
        # The dead letters are where the results are.
        apart = api.service.broker is not api.service.redis
        overview = api.get("/ops")
        assert overview.status_code == (200 if apart and not store else 503)
        assert store or not apart or overview.json()["queues"] is None
        if known:
            answer = api.get(f"/tasks/{known}")
            assert answer.status_code == (503 if store else 200)
    return max(times) < PROMISED and lag.longest < LAG


def is_back(api: Api) -> str:
    """Wait until the API sends tasks again, and give the id of one."""

    def accepted() -> Any:
        answer, _ = submit(api)
        assert answer.status_code in (202, 503)
        return answer.status_code == 202 and answer.json()["task_id"]

    task_id: str = wait_until(accepted, 60, "the API to send tasks again")
    wait_until(lambda: api.client.get("/health/ready").status_code == 200, 30, "the API to be ready")
    return task_id


def once_of_three(is_in_time: Callable[[], bool]) -> bool:
    """Repeat what was late: a busy machine is late at times, and a call that waits for a server always."""
    return any(is_in_time() for _ in range(3))


@pytest.mark.parametrize(
    ("broker_name", "which"),
    [("redis", "broker"), ("rabbitmq", "broker"), ("rabbitmq", "store")],
    indirect=["broker_name"],
)
def test_a_server_is_away_at_start_frozen_and_stopped(service: Service, which: str) -> None:
    server = service.broker if which == "broker" else service.redis
    store = server is service.redis

    def outage(api: Api, known: str | None, bring_back: Callable[[], None]) -> bool:
        in_time = says_away(api, known, store=store)
        bring_back()
        is_back(api)
        return in_time

    def at_start() -> bool:
        server.stop()
        with Api(service).wait_ready() as api:
            in_time = outage(api, None, server.start)
            assert api.stop() == 0
        return in_time

    def while_running(api: Api, take_away: Callable[[], None], bring_back: Callable[[], None]) -> bool:
        known = is_back(api)
        take_away()
        return outage(api, known, bring_back)

    assert once_of_three(at_start)
    with Api(service).wait_ready() as api:
        assert once_of_three(lambda: while_running(api, server.pause, server.resume))
        assert once_of_three(lambda: while_running(api, server.stop, server.start))
        assert api.stop() == 0


def test_a_stream_outlives_a_restart_of_the_results(project: InstalledProject, tmp_path: Path) -> None:
    with (
        service_on_redis(project, tmp_path) as service,
        service.worker() as worker,
        Api(service).wait_ready() as api,
    ):
        worker.wait_ready()
        task_id = api.send("api.steps.delay(notes, 'restart', 2)")
        with api.follow(task_id) as stream:
            assert next(stream)["data"]["status"] == "STARTED"
            allow(service.notes, "restart", 1)
            assert next(stream)["data"]["progress"]["current"] == 1
            service.redis.stop()
            allow(service.notes, "restart", 2)
            wait_until(lambda: "streams_wait" in api.text(), 30, "the API to notice")
            service.redis.start()
            assert [event["data"]["status"] for event in stream][-1] == "SUCCESS"


@pytest.fixture(params=["celery", "uvicorn"])
def api(request: pytest.FixtureRequest, project: InstalledProject, tmp_path: Path) -> Iterator[Api]:
    """The API under our command, and under another server's."""
    with service_on_redis(project, tmp_path) as service:
        options: dict[str, Any] = {}
        if request.param == "uvicorn":
            port = free_port()
            options = {"command": ["uvicorn", f"{project.slug}.api.app:app", "--port", str(port)], "port": port}
        with Api(service, **options) as api:
            yield api.wait_ready()


def test_a_stop_ends_streams_and_finishes_requests(api: Api) -> None:
    task_id = api.report().json()["task_id"]
    with (
        api.client.stream("GET", f"/api/v1/tasks/{task_id}/events") as response,
        ThreadPoolExecutor() as executor,
    ):
        stream = events(response)
        assert next(stream)["data"]["status"] == "PENDING"
        api.service.redis.pause()
        running = executor.submit(submit, api)
        wait_until(lambda: running.running(), 10, "the request")
        time.sleep(0.3)  # the request is on its way: nothing shows when it has arrived
        began = time.monotonic()
        api.process.send_signal(signal.SIGTERM)
        assert [event["event"] for event in stream] == ["close"]
        answer, _ = running.result(30)
        assert answer.status_code == 503
        api.service.redis.resume()
        assert api.process.wait(30) in (0, -signal.SIGTERM)
        assert time.monotonic() - began < 20
