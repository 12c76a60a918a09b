"""The pools gevent and eventlet keep the promises for tasks that aren't async. Most tests run workers of both.

They aren't dependencies of a project: users add them, by `uv add gevent`.
"""

import json
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import pytest
import redis

from support.distribution import on_one_worker
from support.project import InstalledProject, Worker
from support.publisher import run_command
from support.servers import wait_until
from support.service import Service, green_project

POOLS = ("gevent", "eventlet")
#: Seconds of a lease on Redis, which a busy machine must renew in time.
LEASE = 4.0
#: Seconds that a worker has to stop, of which tasks have half, and what a busy machine may take on top.
GRACE, LATE = 4, 3
#: Seconds that are far beyond any grace period, and below the time limit.
LONG = 300
#: Seconds without a sign of life that the probe allows.
SILENCE = 5

ServiceOn = Callable[[str, InstalledProject, Path], AbstractContextManager[Service]]


@pytest.fixture(scope="module", params=on_one_worker("redis", "rabbitmq"))
def service(
    request: pytest.FixtureRequest, service_on: ServiceOn, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """A service for all tests of a broker. Each task goes to the queue of its worker."""
    with service_on(request.param, green_project(), tmp_path_factory.mktemp(request.param)) as service:
        if service.broker is service.redis:
            service.variables["CELERY_BROKER_TRANSPORT_OPTIONS"] = json.dumps({"visibility_timeout": LEASE})
        yield service


@pytest.fixture(scope="module")
def busy(service: Service) -> Iterator[Mapping[str, Worker]]:
    """A worker of each pool, which runs 50 tasks at a time."""
    with ExitStack() as stack:
        yield start(stack, service, {pool: pool for pool in POOLS}, concurrency=50)


def start(
    stack: ExitStack, service: Service, pools: Mapping[str, str], *, concurrency: int = 2, grace: float = GRACE
) -> dict[str, Worker]:
    """Start workers by name, each of which takes from the queue of its name."""
    workers = {
        name: stack.enter_context(
            service.worker(
                *(name, f"--pool={pool}", f"--concurrency={concurrency}", "-Q", name, "-E"),
                CELERY_WORKER_SOFT_SHUTDOWN_TIMEOUT=str(grace),
                HEALTH_DIR=str(service.folder / f"health-{name}"),
            )
        )
        for name, pool in pools.items()
    }
    for worker in workers.values():
        worker.wait_ready(60)
    return workers


def send(service: Service, task: str, *args: object, queue: str, **options: object) -> str:
    """Send a task of green_tasks.py, and give its id. The argument "notes" is the file of notes."""
    arguments = ["notes" if each == "notes" else repr(each) for each in args]
    return service.send(f"green.{task}.apply_async([{', '.join(arguments)}], queue={queue!r}, **{options!r})")


def start_task(service: Service, task: str, key: str, seconds: float, queue: str) -> str:
    """Send a task, and wait until it has begun."""
    sent = send(service, task, "notes", key, seconds, queue=queue)
    service.wait_for_line(f"start {key}")
    return sent


def send_many(service: Service, count: int, seconds: float, *queues: str) -> None:
    """Send so many tasks to each queue, and wait until all have ended. Each must have run once."""
    keys = [f"{queue}/{number}" for number in range(count) for queue in queues]
    service.python(
        f"for key in {keys!r}:\n    green.work.apply_async([notes, key, {seconds}], queue=key.partition('/')[0])"
    )
    ends = {f"end {key}" for key in keys}
    wait_until(lambda: ends <= {*service.lines()}, 60, "all tasks to end")
    assert all(steps(service, key) == ["start", "end"] for key in keys)


def steps(service: Service, key: str) -> list[str]:
    """Give what the task with this key has done."""
    return [line.removesuffix(f" {key}") for line in service.lines() if line.endswith(f" {key}")]


def wait_for_probe(service: Service, name: str, says: str, seconds: float = 30) -> None:
    """Wait until the health probe says this of a worker."""
    variables = {"HEALTH_DIR": str(service.folder / f"health-{name}"), "HEALTH_MAX_SILENCE": str(SILENCE)}
    command = ("python", "-m", "celery_service.lifecycle.health", service.project.slug, "ready")
    wait_until(lambda: says in service.project.run(*command, env=variables).stdout, seconds, f"{name}: {says}")


def finish_elsewhere(service: Service, tasks: Mapping[str, str], queues: Mapping[str, object]) -> None:
    """Let another worker run what was handed back or taken over: each task for the second time."""
    with service.worker("second", "--concurrency=2", "-Q", ",".join(queues)):
        for key, task in tasks.items():
            assert service.result(task, 60)["state"] == "SUCCESS"
            assert steps(service, key) == ["start", "start", "end"]


# --- at work ----------------------------------------------------------------------------------------------------------


def test_200_tasks_wait_at_the_same_time_without_a_warning(service: Service, busy: Mapping[str, Worker]) -> None:
    before = {pool: len(worker.text()) for pool, worker in busy.items()}
    begun = time.monotonic()
    send_many(service, 200, 0.2, *POOLS)
    # One after the other they take 40 seconds.
    assert time.monotonic() - begun < 20
    for pool, worker in busy.items():
        lines = worker.text()[before[pool] :].splitlines()
        assert [line for line in lines if '"level": "info"' not in line] == []


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.usefixtures("busy")
def test_dead_letters_countdowns_and_once_work(service: Service, pool: str) -> None:
    """It keeps dead letters and countdowns, and does once what must be done once."""
    failing = send(service, "fail", pool, queue=pool)
    sent = time.monotonic()
    later = send(service, "work", "notes", f"later {pool}", queue=pool, countdown=1)
    key = f"invoice of {pool}"
    outcomes = [service.result(send(service, "do_once", "notes", key, 0.1, queue=pool)) for _ in range(2)]
    assert [each["result"] for each in outcomes] == ["first", "again"]
    assert steps(service, key) == ["did"]
    assert service.result(failing)["state"] == "FAILURE"
    wait_until(lambda: failing in [each["id"] for each in service.letters()], 30, "the dead letter")
    assert service.result(later)["state"] == "SUCCESS"
    assert time.monotonic() - sent > 1
    wait_for_probe(service, pool, "ready")


def test_time_limits(service: Service, busy: Mapping[str, Worker]) -> None:
    """With gevent the hard limit ends a task that waits. With eventlet nothing does, and the worker warns."""
    gevent = send(service, "hang", "notes", LONG, queue="gevent")
    eventlet = send(service, "hang", "notes", 2, queue="eventlet")
    outcome = service.result(gevent)
    assert outcome["state"] == "FAILURE"
    assert "TimeLimitExceeded" in outcome["result"]
    assert "hung" in service.lines()  # its `finally` has run
    wait_until(
        lambda: (gevent, "time_limit") in [(each["id"], each["reason"]) for each in service.letters()],
        *(30, "the dead letter"),
    )
    assert service.result(eventlet) == {"state": "SUCCESS", "result": "ended"}
    assert "the pool eventlet enforces no time limits" in busy["eventlet"].text()
    assert "time limits" not in busy["gevent"].text()


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.usefixtures("busy")
def test_a_task_that_needs_an_event_loop_fails(service: Service, pool: str) -> None:
    """Green threads share the thread of the system that a loop runs in. Async tasks stop the worker: test_start.py."""
    outcome = service.result(send(service, "run_loop", queue=pool))
    assert outcome["state"] == "FAILURE"
    assert "no event loop runs with gevent or eventlet" in outcome["result"]


@pytest.mark.parametrize("pool", POOLS)
def test_a_pool_that_is_not_named_on_the_command_line_is_refused(service: Service, pool: str) -> None:
    command = ["celery", "-A", f"{service.project.slug}.celery", "worker", f"-P{pool}"]
    done = run_command(service.project, command, service.variables, output=service.folder / f"late-{pool}")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"The pool {pool} must be named on the command line, as --pool={pool} or -P {pool}: "
        "Celery prepares the process for it before it reads settings."
    )


# --- it stops ---------------------------------------------------------------------------------------------------------


def test_short_tasks_end_and_long_tasks_are_returned(service: Service) -> None:
    """Within the grace period after one SIGTERM; at once after a second one or a SIGQUIT."""
    with ExitStack() as stack:
        patient = start(stack, service, {f"patient-{pool}": pool for pool in POOLS})
        hasty = start(stack, service, {"twice": "gevent", "quit": "eventlet"}, grace=60)
        begun = time.monotonic()
        # A place that is free again is taken at once. Celery alone looks every other second on Redis, and starts no
        # more than ten tasks a second on RabbitMQ.
        send_many(service, 100, 0.02, *patient)
        assert time.monotonic() - begun < 10

        tasks = {name: start_task(service, "work", name, LONG, name) for name in (*patient, *hasty)}
        for name in patient:
            start_task(service, "work", f"short-{name}", 1, name)
        for name, worker in (patient | hasty).items():
            worker.send(signal.SIGQUIT if name == "quit" else signal.SIGTERM)
        begun = time.monotonic()
        hasty["twice"].wait_for("Warm shutdown")
        hasty["twice"].send(signal.SIGTERM)
        for name, worker in (hasty | patient).items():
            assert worker.wait(60) == 0
            assert time.monotonic() - begun < GRACE + LATE
            assert "Traceback" not in worker.text()
            if name in patient:
                assert steps(service, f"short-{name}") == ["start", "end"]
        assert time.monotonic() - begun > GRACE / 2
        finish_elsewhere(service, tasks, tasks)


@pytest.mark.parametrize("service", on_one_worker("redis"), indirect=True)
def test_a_task_that_computes_keeps_its_lease_and_is_handed_back(service: Service) -> None:
    """Nothing else runs in its worker: the probe notices it, and threads of the system do what is needed."""
    with ExitStack() as stack:
        workers = start(stack, service, {f"computes-{pool}": pool for pool in POOLS})
        stack.enter_context(service.worker("other", "--concurrency=1", "-Q", "other"))
        tasks = {name: start_task(service, "compute", name, LONG, name) for name in workers}
        begun = time.monotonic()
        for name in workers:
            wait_for_probe(service, name, "no sign of life")
        wait_until(lambda: time.monotonic() > begun + 4 * LEASE, 60, "the end of four leases")
        with redis.Redis.from_url(service.redis.url) as client:
            # Nobody has taken over.
            assert [client.llen(name) for name in workers] == [0, 0]
        begun = time.monotonic()
        for worker in workers.values():
            worker.send(signal.SIGTERM)
        for name, worker in workers.items():
            assert worker.wait(60) == 0
            assert time.monotonic() - begun < GRACE + LATE
            assert steps(service, name) == ["start"]
        with redis.Redis.from_url(service.redis.url) as client:
            assert [client.llen(name) for name in workers] == [1, 1]
        finish_elsewhere(service, tasks, workers)


# --- it breaks --------------------------------------------------------------------------------------------------------


def test_nothing_is_lost_in_an_outage_of_the_broker_or_when_a_worker_is_killed(service: Service) -> None:
    with ExitStack() as stack:
        workers = start(stack, service, {f"breaks-{pool}": pool for pool in POOLS})
        tasks = {name: start_task(service, "work", name, 5, name) for name in workers}
        service.broker.stop()
        for name in workers:
            wait_for_probe(service, name, "waiting for its broker")
        service.broker.start()
        for name, task in tasks.items():
            assert service.result(task, 60)["state"] == "SUCCESS"
            # With its connection RabbitMQ takes back what a worker holds: the task is cancelled, and runs again.
            again = [] if service.broker is service.redis else ["start"]
            assert steps(service, name) == ["start", *again, "end"]
            wait_for_probe(service, name, "ready")

        tasks = {
            key: start_task(service, "work", key, LONG, name) for name in workers for key in (f"{name}-1", f"{name}-2")
        }
        for worker in workers.values():
            worker.kill()
        finish_elsewhere(service, tasks, workers)
