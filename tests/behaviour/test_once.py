"""Work that is delivered twice is done once, unless it failed or its process died."""

from collections.abc import Callable
from pathlib import Path

import pytest

from support.project import InstalledProject
from support.service import Service

ONCE = Path(__file__).with_name("once_tasks.py")


@pytest.fixture(scope="module", autouse=True)
def _tasks(projects: Callable[[str], InstalledProject]) -> None:
    for broker in ("redis", "rabbitmq"):
        project = projects(broker)
        (project.folder / project.slug / "tasks" / "guarded.py").write_text(ONCE.read_text())


@pytest.fixture
def broker_name() -> str:
    """What is done is remembered in Redis, whatever the broker is."""
    return "redis"


def send(service: Service, task: str, *args: object, task_id: str = "") -> str:
    """Send a task of once_tasks.py, with the file of notes as its first argument."""
    options = f", task_id={task_id!r}" if task_id else ""
    return service.send(f"celery.send_task('once.{task}', (notes, *{args!r}){options})")


def test_a_second_delivery_finds_it_done(service: Service) -> None:
    code = (
        "def run(task, *args, **options):\n"
        "    result = celery.send_task(f'once.{task}', (notes, *args), **options)\n"
        "    outcome = result.get(timeout=30)\n"
        "    result.forget()\n"
        "    return outcome\n"
        "same = [run('work', task_id='a') for _ in range(2)]\n"
        "keys = [run('work', 0, key) for key in ('invoice 7', 'invoice 7', 'invoice 8')]\n"
        "other = [run('work_async', 'invoice 7') for _ in range(2)]\n"  # a key is the task's own
        "print(json.dumps([same, keys, other]))"
    )
    with service.worker():
        assert service.python(code) == [["first", "again"], ["first", "again", "first"], ["first", "again"]]
        assert service.lines().count("did") == 4


def test_a_block_that_fails_is_done_again(service: Service) -> None:
    with service.worker():
        assert service.result(send(service, "fail"))["state"] == "SUCCESS"
        assert service.lines() == ["tried True", "tried True"]


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_two_at_the_same_time_wait_for_each_other(service: Service, pool: str) -> None:
    with service.worker("worker", "--concurrency=2", f"--pool={pool}"):
        tasks = [send(service, "work", 1.5, "invoice", 3) for _ in range(2)]
        assert sorted(service.result(task)["result"] for task in tasks) == ["again", "first"]
        assert service.lines() == ["did", "end", "end"]


@pytest.mark.parametrize("broker_name", ["redis", "rabbitmq"])
def test_after_a_crash_it_is_done_when_the_lease_has_ended(service: Service) -> None:
    with service.worker():
        assert service.result(send(service, "crash", 4))["state"] == "SUCCESS"
        first, second = (line.split() for line in service.lines())
        assert (first[1], second[1]) == ("True", "True")
        assert float(second[2]) - float(first[2]) > 4


def test_a_result_store_that_is_away_does_not_undo_the_work(service: Service) -> None:
    with service.worker() as worker:
        worker.wait_ready()
        task = send(service, "work", 3)
        service.wait_for_line("did")
        service.redis.stop()
        service.wait_for_line("end")
        service.redis.start()
        assert service.result(task, seconds=60)["result"] == "first"
        assert service.lines() == ["did", "end"]


def test_without_redis_it_is_remembered_in_files(service: Service) -> None:
    code = (
        f"from {service.project.slug}.tasks import guarded\n"
        "print(json.dumps([guarded.work(notes, 0, 'invoice 7') for _ in range(2)]))"
    )
    assert service.python(code, CELERY_BROKER_URL="filesystem://localhost") == ["first", "again"]
