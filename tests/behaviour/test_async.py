"""`async def` tasks do all that others do, in each pool, and leave nothing for the next task."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.project import InstalledProject
from support.service import Service

ASYNC = Path(__file__).with_name("async_tasks.py")
POOLS = ("prefork", "solo", "threads")
IMPORT = "from {slug}.tasks import asynchronous as t\n"


@pytest.fixture(scope="module", autouse=True)
def _tasks(projects: Callable[[str], InstalledProject]) -> None:
    for broker in ("redis", "rabbitmq"):
        project = projects(broker)
        module = project.folder / project.slug / "tasks" / "asynchronous.py"
        module.write_text(ASYNC.read_text())


def call(service: Service, expression: str) -> Any:
    """Evaluate an expression in a publisher, with the async tasks as `t`."""
    header = IMPORT.format(slug=service.project.slug)
    return service.python(f"{header}from celery import chain, chord, group\nprint(json.dumps({expression}))")


def fail(service: Service, call_: str) -> str:
    """Send a task and give the error that it ends with."""
    return str(call(service, f"repr({call_}.get(timeout=40, propagate=False))"))


@pytest.fixture
def broker_name() -> str:
    """The broker makes no difference to how a body runs."""
    return "redis"


@pytest.mark.parametrize("pool", POOLS)
def test_async_tasks_do_what_others_do(service: Service, pool: str) -> None:
    with service.worker("worker", "--concurrency=2", f"--pool={pool}"):
        assert call(service, "t.add.delay(1, 2).get(timeout=30)") == 3
        assert call(service, "t.greet.delay('Ada').get(timeout=30)") == "Hello Ada from probe.greet"
        assert call(service, "chain(t.add.s(1, 2), t.add.s(3))().get(timeout=30)") == 6
        assert call(service, "group(t.add.s(i, i) for i in range(4))().get(timeout=30)") == [0, 2, 4, 6]
        assert call(service, "chord(t.add.s(i, i) for i in range(4))(t.add_all.s()).get(timeout=30)") == 12
        who = service.python(
            IMPORT.format(slug=service.project.slug) + "print(json.dumps(t.who.delay().get(timeout=30)))"
        )
        assert who[0] == who[1] is not None

        call(service, "t.silent.delay(notes, 'ran').id")
        service.wait_for_line("ran")

        service.notes.write_text("")
        assert call(service, "t.flaky.delay(notes, 2).get(timeout=30)") == 3
        service.notes.write_text("")
        assert call(service, "t.retry_self.delay(notes).get(timeout=30)") == 2
        assert service.lines() == ["retries 0", "retries 1", "retries 2"]

        assert "cancelled" in fail(service, "t.cancel_itself.delay()")
        assert call(service, "t.add.delay(1, 2).get(timeout=30)") == 3


# Only prefork has signals to interrupt what blocks: docs/dev/async.md says so.
INTERRUPTED = [("prefork", "block"), *((pool, how) for pool in POOLS for how in ("wait", "group"))]


@pytest.mark.parametrize(("pool", "how"), INTERRUPTED)
def test_a_soft_limit_cancels_and_the_next_task_finds_a_clean_loop(service: Service, pool: str, how: str) -> None:
    arguments = ("--concurrency=1", f"--pool={pool}")
    with service.worker("worker", *arguments, CELERY_TASK_SOFT_TIME_LIMIT="1.5"):
        child = call(service, "t.look.delay().get(timeout=30)")
        assert "SoftTimeLimitExceeded" in fail(service, f"t.hang.delay(notes, {how!r})")
        assert service.lines()[-1] == "cleaned up"
        assert call(service, "t.look.delay().get(timeout=30)") == child  # same process, nothing left
        assert service.lines()[-1] == "cleaned up"


@pytest.mark.parametrize("pool", POOLS)
def test_what_a_task_leaves_running_ends_with_it(service: Service, pool: str) -> None:
    with service.worker("worker", "--concurrency=1", f"--pool={pool}"):
        call(service, "t.leave.delay(notes).get(timeout=30)")
        assert call(service, "t.look.delay().get(timeout=30)")[0] == 0
        assert service.lines() == ["left False"]


def test_a_hard_limit_ends_what_refuses_to_be_cancelled(service: Service) -> None:
    limits = {"CELERY_TASK_SOFT_TIME_LIMIT": "none", "CELERY_TASK_TIME_LIMIT": "1.5"}
    with service.worker(**limits):
        assert "TimeLimitExceeded" in fail(service, "t.hang.delay(notes, 'wait')")
        assert call(service, "t.add.delay(1, 2).get(timeout=30)") == 3


def test_a_revoked_task_is_ended(service: Service) -> None:
    with service.worker():
        task = call(service, "t.hang.delay(notes, 'wait').id")
        service.wait_for_line("start")
        call(service, f"celery.control.revoke({task!r}, terminate=True)")
        assert service.result(str(task))["state"] == "REVOKED"
        assert call(service, "t.add.delay(1, 2).get(timeout=30)") == 3


def test_apply_and_plain_calls_run_the_body(service: Service) -> None:
    assert call(service, "t.add(1, 2)") == 3
    assert call(service, "t.add.apply((1, 2)).get()") == 3
    assert call(service, "t.flaky.apply((notes, 1)).get()") == 2


def test_where_a_loop_runs_a_task_is_awaited_or_sent(service: Service) -> None:
    header = IMPORT.format(slug=service.project.slug)
    code = (
        "import asyncio\n"
        "async def main():\n"
        "    try: t.add(1, 2)\n"
        "    except RuntimeError as error: message = str(error)\n"
        "    return [message, await t.add.call_async(1, 2), await t.greet.call_async('Ada')]\n"
        "print(json.dumps(asyncio.run(main())))"
    )
    message, *results = service.python(header + code)
    assert "await .call_async(…), or send it" in message
    assert results == [3, "Hello Ada from probe.greet"]


def test_an_async_task_that_celery_would_not_run_stops_the_worker(service: Service) -> None:
    done = start_worker(service, "prefork", FOREIGN)
    assert done.stderr.splitlines()[-1] == ("The task foreign is an `async def` on another base than celery.Task.")


@pytest.mark.parametrize("pool", ["gevent", "eventlet"])
def test_green_threads_are_refused_with_one_line(service: Service, pool: str) -> None:
    # Celery patches the standard library for such a pool before it looks at anything else, and the
    # libraries aren't installed: only the start of the worker is of interest here.
    done = start_worker(service, pool)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"The pool {pool} can't run async tasks such as probe.")


FOREIGN = """
from celery import Task
class Foreign(Task):
    name = 'foreign'
    async def run(self): pass
celery.register_task(Foreign())
"""


def start_worker(service: Service, pool: str, code: str = "") -> subprocess.CompletedProcess[str]:
    """Start a worker in the way of the command line, but for what that does first of all."""
    code = f"from {service.project.slug}.celery import celery\n{code}\ncelery.Worker(pool={pool!r})"
    return service.project.run("python", "-c", code, env=service.variables, timeout_seconds=30)
