"""A worker that stops finishes its tasks, or returns their messages in time. No task is lost."""

import os
import signal
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from support.project import Worker
from support.servers import wait_until
from support.service import Service

#: For most tests: tasks have half of it.
GRACE = 8
#: What a busy machine may take on top, in seconds: several workers stop here at the same time.
LATE = 2
#: Far beyond any grace period, and below the time limit.
LONG = 300


class Stop:
    """The shutdown of a worker. It starts with a signal, by default to the main process."""

    def __init__(self, worker: Worker, number: signal.Signals = signal.SIGTERM, *, group: bool = False) -> None:
        self.worker = worker
        self.begun = time.monotonic()
        if group:
            os.killpg(worker.pid, number)
        else:
            worker.send(number)

    def seconds(self, status: int = 0) -> float:
        """Wait until the worker has exited with status 0; return the seconds since the signal."""
        ended = self.worker.wait(60)
        assert ended == status
        return time.monotonic() - self.begun


def seconds_of(stops: Sequence[Stop]) -> list[float]:
    """The same for several workers that stop at the same time."""
    with ThreadPoolExecutor() as executor:
        return list(executor.map(Stop.seconds, stops))


def start(service: Service, *arguments: str, name: str = "first", grace: float = GRACE, **variables: str) -> Worker:
    variables = {"CELERY_WORKER_SOFT_SHUTDOWN_TIMEOUT": str(grace)} | variables
    worker = service.worker(name, *arguments, **variables)
    worker.wait_ready()
    return worker


class Busy:
    """A worker that runs a task for longer than its grace period. Other workers don't take this task."""

    def __init__(
        self, service: Service, name: str, kind: str = "interrupted", grace: float = GRACE, **more: str
    ) -> None:
        self.name = name
        self.worker = start(service, name=name, grace=grace, **more)
        self.task = service.send(f"probe.{kind}.delay(notes, {name!r}, {LONG})")
        service.wait_for_line(f"start {name}")


def steps(service: Service, key: str) -> list[str]:
    """Return the steps that the task with this key has done."""
    return [line.removesuffix(f" {key}") for line in service.lines() if line.endswith(f" {key}")]


def finish_elsewhere(service: Service, *tasks: str) -> None:
    """Let another worker finish the returned tasks. This must happen at once, not when a lease ends."""
    with service.worker("second") as second:
        second.wait_ready()
        for task in tasks:
            outcome = service.result(task, seconds=15)
            assert outcome["state"] == "SUCCESS", outcome


def test_an_idle_worker_exits_at_once(service: Service) -> None:
    assert Stop(start(service, grace=60)).seconds() < 15


def test_a_worker_exits_with_its_last_task(service: Service) -> None:
    worker = start(service, grace=60)
    task = service.send("probe.work.delay(notes, 'a', 3)")
    service.wait_for_line("start a")
    assert Stop(worker).seconds() < 15
    assert service.lines() == ["start a", "end a"]
    assert service.result(task)["state"] == "SUCCESS"


def test_tasks_that_exceed_the_grace_period_are_returned_in_time(service: Service) -> None:
    """This includes tasks that clean up when they are interrupted, and tasks that ignore the interruption."""
    busy = [Busy(service, kind, kind) for kind in ("interrupted", "tidy", "stubborn")]
    for seconds in seconds_of([Stop(each.worker) for each in busy]):
        assert GRACE / 2 <= seconds < GRACE + LATE
    for each in busy:
        assert steps(service, each.name) == (["start", "tidied"] if each.name == "tidy" else ["start"])
        assert service.state(each.task) == "STARTED"
    finish_elsewhere(service, *(each.task for each in busy))
    assert steps(service, "interrupted") == steps(service, "stubborn") == ["start", "start", "end"]
    assert steps(service, "tidy") == ["start", "tidied", "start", "end", "tidied"]


def test_messages_that_wait_in_the_worker_are_returned(service: Service) -> None:
    worker = start(service, CELERY_WORKER_PREFETCH_MULTIPLIER="4")
    running = service.send(f"probe.interrupted.delay(notes, 'running', {LONG})")
    service.wait_for_line("start running")
    waiting = [service.send(f"probe.work.delay(notes, '{key}')") for key in "ab"]
    for task in waiting:
        worker.wait_for(f"probe.work is received: {task}")
    # On RabbitMQ, the broker itself keeps it until its time has come.
    later = service.send("probe.work.apply_async((notes, 'later'), countdown=8)")
    if service.broker is service.redis:
        worker.wait_for(f"probe.work is received: {later}")
    assert Stop(worker).seconds() < GRACE + LATE
    finish_elsewhere(service, running, *waiting, later)
    assert sorted(service.lines()) == sorted(
        ["start running"] + [f"{step} {key}" for key in ("running", "a", "b", "later") for step in ("start", "end")]
    )


def test_interruptions_do_not_count_as_deliveries(service: Service) -> None:
    """A task that never ends within the grace period isn't poison. (Tasks have half of this short period.)"""
    task = service.send("probe.work.delay(notes, 'a', 4)")
    for number in range(1, 5):
        worker = start(service, grace=2)
        wait_until(lambda n=number: len(service.lines()) == n, 30, f"start {number}")
        Stop(worker).seconds()
    finish_elsewhere(service, task)
    assert service.lines() == [*["start a"] * 5, "end a"]


def test_a_poison_message_stops_after_an_interruption(service: Service) -> None:
    worker = start(service, grace=2)
    task = service.send(f"probe.crash.delay(notes, {LONG})")
    service.wait_for_line("start")
    Stop(worker).seconds()
    with service.worker("second"):
        assert "PoisonMessage" in service.result(task)["result"]
    # The interruption doesn't count.
    assert service.lines() == ["start"] * (1 + 3)


def test_a_second_signal_returns_messages_at_once(service: Service) -> None:
    """The signal is a second SIGTERM, a SIGQUIT, or a SIGTERM with REMAP_SIGTERM=SIGQUIT."""
    twice = Busy(service, "twice", grace=60)
    quits = Busy(service, "quits", grace=60)
    remapped = Busy(service, "remapped", grace=60, REMAP_SIGTERM="SIGQUIT")

    stops = [Stop(twice.worker), Stop(quits.worker, signal.SIGQUIT), Stop(remapped.worker)]
    twice.worker.wait_for("Warm shutdown")
    twice.worker.send(signal.SIGTERM)
    twice.worker.wait_for("Cold shutdown|Ctrl")
    twice.worker.send(signal.SIGTERM)  # A third one changes nothing.
    assert max(seconds_of(stops)) < 15

    busy = [twice, quits, remapped]
    finish_elsewhere(service, *(each.task for each in busy))
    for each in busy:
        assert steps(service, each.name) == ["start", "start", "end"]


def test_a_signal_to_all_processes_loses_nothing(service: Service) -> None:
    """Ctrl-C in a terminal also reaches the child processes, which ignore it. SIGTERM may reach them, too."""
    interrupted, terminated = Busy(service, "int"), Busy(service, "term")
    stop = Stop(interrupted.worker, signal.SIGINT, group=True)
    assert Stop(terminated.worker, signal.SIGTERM, group=True).seconds() < GRACE + LATE
    assert stop.seconds(status=1) < GRACE + LATE
    finish_elsewhere(service, interrupted.task, terminated.task)
    assert steps(service, "int") == steps(service, "term") == ["start", "start", "end"]


def test_short_tasks_end_and_long_tasks_are_returned(service: Service) -> None:
    worker = start(service, "--concurrency=4", grace=12)  # of which tasks have 7
    calls = [f"probe.interrupted.delay(notes, 'long{n}', {LONG})" for n in (1, 2)]
    calls += [f"probe.work.delay(notes, 'short{n}', 4)" for n in (1, 2)]
    calls += [f"probe.work.delay(notes, 'queued{n}')" for n in (1, 2)]
    tasks = service.python(f"[task.id for task in [{', '.join(calls)}]]")
    for key in ("long1", "long2", "short1", "short2"):
        service.wait_for_line(f"start {key}")
    assert 5 < Stop(worker).seconds() < 12 + LATE
    assert sorted(service.lines()) == sorted(
        ["start long1", "start long2"] + [f"{step} short{n}" for n in (1, 2) for step in ("start", "end")]
    )
    before = service.lines()
    finish_elsewhere(service, *tasks)
    again = [f"{step} {key}" for key in ("long1", "long2", "queued1", "queued2") for step in ("start", "end")]
    assert sorted(service.lines()) == sorted(before + again)


@pytest.mark.parametrize("pool", ["solo", "threads"])
def test_pools_without_processes_return_messages(service: Service, pool: str) -> None:
    worker = start(service, f"--pool={pool}", "--concurrency=2")
    short = service.send("probe.work.delay(notes, 'short', 1)")
    service.wait_for_line("start short")
    if pool == "solo":
        service.result(short)
    long = service.send(f"probe.interrupted.delay(notes, 'long', {LONG})")
    service.wait_for_line("start long")
    assert GRACE / 2 <= Stop(worker).seconds() < GRACE + LATE
    finish_elsewhere(service, short, long)
    assert sorted(service.lines()) == sorted(["start long", "start long", "end long", "start short", "end short"])
