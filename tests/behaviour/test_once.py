"""Work that is delivered twice is done once, unless it failed or its process died."""

from collections.abc import Iterator

import pytest

from support.distribution import on_one_worker
from support.project import InstalledProject
from support.service import Service, service_on_redis


@pytest.fixture
def broker_name() -> str:
    """What is done is remembered in Redis, whatever the broker is."""
    return "redis"


@pytest.fixture(scope="module", params=on_one_worker("prefork", "threads"))
def of_the_pool(
    request: pytest.FixtureRequest, project: InstalledProject, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """A service with a worker of this pool."""
    with (
        service_on_redis(project, tmp_path_factory.mktemp(request.param)) as service,
        service.worker("worker", "--concurrency=2", f"--pool={request.param}") as worker,
    ):
        worker.wait_ready()
        yield service


@pytest.fixture
def running(of_the_pool: Service) -> Service:
    """The same without notes."""
    of_the_pool.notes.write_text("")
    return of_the_pool


def send(service: Service, task: str, *args: object, task_id: str = "") -> str:
    """Send a task of guarded_tasks.py, with the file of notes as its first argument."""
    options = f", task_id={task_id!r}" if task_id else ""
    return service.send(f"celery.send_task('once.{task}', (notes, *{args!r}){options})")


def test_a_second_delivery_does_not_repeat_the_work(running: Service) -> None:
    code = (
        "def run(task, *args, **options):\n"
        "    result = celery.send_task(f'once.{task}', (notes, *args), **options)\n"
        "    outcome = result.get(timeout=30)\n"
        "    result.forget()\n"
        "    return outcome\n"
        "same = [run('work', task_id='a') for _ in range(2)]\n"
        "keys = [run('work', 0, key) for key in ('invoice 7', 'invoice 7', 'invoice 8')]\n"
        "other = [run('work_async', 'invoice 7') for _ in range(2)]\n"  # a key is the task's own
        "[same, keys, other]"
    )
    assert running.python(code) == [["first", "again"], ["first", "again", "first"], ["first", "again"]]
    assert running.lines().count("did") == 4


def test_a_block_that_fails_is_done_again(running: Service) -> None:
    assert running.result(send(running, "fail"))["state"] == "SUCCESS"
    assert running.lines() == ["tried True", "tried True"]


def test_a_second_task_waits_while_the_work_runs(running: Service) -> None:
    tasks = [send(running, "work", 1.5, "invoice", 3) for _ in range(2)]
    assert sorted(running.result(task)["result"] for task in tasks) == ["again", "first"]
    assert running.lines() == ["did", "end", "end"]


@pytest.mark.parametrize("broker_name", ["redis", "rabbitmq"])
def test_after_a_crash_the_work_is_done_again_when_the_lease_has_ended(service: Service) -> None:
    with service.worker():
        assert service.result(send(service, "crash", 4))["state"] == "SUCCESS"
        first, second = (line.split() for line in service.lines())
        assert (first[1], second[1]) == ("True", "True")
        assert float(second[2]) - float(first[2]) > 4


def test_an_outage_of_the_result_backend_does_not_repeat_the_work(service: Service) -> None:
    with service.worker() as worker:
        worker.wait_ready()
        task = send(service, "work", 3)
        service.wait_for_line("did")
        service.redis.stop()
        service.wait_for_line("end")
        service.redis.start()
        assert service.result(task, seconds=60)["result"] == "first"
        assert service.lines() == ["did", "end"]


def test_without_redis_the_state_is_stored_in_files(service: Service) -> None:
    code = "[guarded.work(notes, 0, 'invoice 7') for _ in range(2)]"
    assert service.python(code, CELERY_BROKER_URL="filesystem://localhost") == ["first", "again"]
