"""`async def` tasks do all that others do, in each pool, and leave nothing for the next task."""

from collections.abc import Iterator

import pytest

from support.distribution import on_one_worker
from support.project import InstalledProject, Worker
from support.service import Service, service_on_redis


@pytest.fixture
def broker_name() -> str:
    """The broker makes no difference to how a body runs."""
    return "redis"


@pytest.fixture(scope="module", params=on_one_worker("prefork", "solo", "threads"))
def pool(request: pytest.FixtureRequest) -> str:
    """The pools, one after the other."""
    return str(request.param)


@pytest.fixture(scope="module")
def of_the_pool(
    pool: str, project: InstalledProject, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Service, Worker]]:
    """A service and a worker of this pool, which has a soft time limit."""
    with (
        service_on_redis(project, tmp_path_factory.mktemp(pool)) as service,
        service.worker("worker", "--concurrency=1", f"--pool={pool}", CELERY_TASK_SOFT_TIME_LIMIT="2") as worker,
    ):
        worker.wait_ready()
        yield service, worker


@pytest.fixture
def running(of_the_pool: tuple[Service, Worker]) -> Service:
    """The service without notes."""
    service, _ = of_the_pool
    service.notes.write_text("")
    return service


@pytest.fixture
def worker(of_the_pool: tuple[Service, Worker]) -> Worker:
    """The worker."""
    _, worker = of_the_pool
    return worker


def fail(service: Service, call: str) -> str:
    """Send a task and give the error that it ends with."""
    return str(service.python(f"repr({call}.get(timeout=40, propagate=False))"))


def test_async_tasks_work_in_chains_groups_and_chords(running: Service) -> None:
    service = running
    assert service.python("asynchronous.add.delay(1, 2).get(timeout=30)") == 3
    assert service.python("asynchronous.greet.delay('Ada').get(timeout=30)") == "Hello Ada from probe.greet"
    assert service.python("chain(asynchronous.add.s(1, 2), asynchronous.add.s(3))().get(timeout=30)") == 6
    some = "asynchronous.add.s(i, i) for i in range(4)"
    assert service.python(f"group({some})().get(timeout=30)") == [0, 2, 4, 6]
    assert service.python(f"chord({some})(asynchronous.add_all.s()).get(timeout=30)") == 12
    before, after, _ = service.python("asynchronous.who.delay().get(timeout=30)")
    assert before == after is not None

    service.send("asynchronous.silent.delay(notes, 'ran')")
    service.wait_for_line("ran")

    assert "cancelled" in fail(service, "asynchronous.cancel_itself.delay()")
    assert service.python("asynchronous.add.delay(1, 2).get(timeout=30)") == 3


def test_async_tasks_are_retried(running: Service) -> None:
    assert running.python("asynchronous.flaky.delay(notes, 2).get(timeout=30)") == 3
    running.notes.write_text("")
    assert running.python("asynchronous.retry_self.delay(notes).get(timeout=30)") == 2
    assert running.lines() == ["retries 0", "retries 1", "retries 2"]


@pytest.mark.parametrize("how", ["wait", "group"])
def test_a_soft_limit_cancels_and_the_next_task_finds_a_clean_loop(running: Service, how: str) -> None:
    child = running.python("asynchronous.look.delay().get(timeout=30)")
    assert "SoftTimeLimitExceeded" in fail(running, f"asynchronous.hang.delay(notes, {how!r})")
    assert running.lines()[-1] == "cleaned up"
    # The same process, and nothing left.
    assert running.python("asynchronous.look.delay().get(timeout=30)") == child
    assert running.lines()[-1] == "cleaned up"


def test_a_hard_limit_of_its_own_brings_its_soft_limit(running: Service) -> None:
    # The worker's own soft limit is 2 s.
    assert running.python("probe.tidy.apply_async((notes, 'a', 3), time_limit=60).get(timeout=30)") == "a"


@pytest.mark.parametrize("task", ["end", "end_async"])
def test_a_task_that_could_end_the_worker_only_fails(running: Service, task: str) -> None:
    assert fail(running, f"failing.{task}.delay(notes, 'memory')") == "MemoryError()"
    assert "the task raised SystemExit(3)" in fail(running, f"failing.{task}.delay(notes, 'exit')")
    assert "cancelled" in fail(running, f"failing.{task}.delay(notes, 'cancelled')").lower()
    assert "RecursionError" in fail(running, f"failing.{task}.delay(notes, 'recursion')")
    assert running.python("asynchronous.add.delay(1, 2).get(timeout=30)") == 3
    assert running.lines() == ["start"] * 4


def test_printed_lines_appear_at_once(running: Service, worker: Worker) -> None:
    # The worker writes to a file. A soft time limit of its own: that of the worker is 2 s.
    task = running.send("probe.say.apply_async((notes,), soft_time_limit=60)")
    worker.wait_for(r"\na whole line\n")
    assert running.state(task) == "STARTED"
    (running.folder / "go").touch()
    running.result(task)
    worker.wait_for("an unfinished one")


# Other pools have no signals: docs/dev/async.md says so.
@pytest.mark.parametrize("pool", on_one_worker("prefork"), indirect=True)
def test_a_soft_limit_interrupts_blocking_code(running: Service) -> None:
    test_a_soft_limit_cancels_and_the_next_task_finds_a_clean_loop(running, "block")


def test_coroutines_that_a_task_leaves_running_are_cancelled(running: Service) -> None:
    running.python("asynchronous.leave.delay(notes).get(timeout=30)")
    assert running.python("asynchronous.look.delay().get(timeout=30)")[0] == 0
    assert running.lines() == ["left False"]


def test_a_hard_limit_without_a_soft_limit_ends_a_coroutine(service: Service) -> None:
    limits = {"CELERY_TASK_SOFT_TIME_LIMIT": "none", "CELERY_TASK_TIME_LIMIT": "2"}
    with service.worker(**limits, CELERY_WORKER_LOST_WAIT="1"):
        assert "TimeLimitExceeded" in fail(service, "asynchronous.hang.delay(notes, 'wait')")
        assert service.python("asynchronous.add.delay(1, 2).get(timeout=30)") == 3


def test_a_revoked_task_is_ended(service: Service) -> None:
    with service.worker():
        task = service.send("asynchronous.hang.delay(notes, 'wait')")
        service.wait_for_line("start")
        service.python(f"celery.control.revoke({task!r}, terminate=True)")
        assert service.result(task)["state"] == "REVOKED"
        assert service.python("asynchronous.add.delay(1, 2).get(timeout=30)") == 3
