"""A worker that is told to stop finishes what it can, hands back the rest in time, and loses nothing."""

import os
import re
import signal
import time

import pytest

from support.project import Worker
from support.servers import wait_until
from support.service import Service

#: For most tests: tasks have half of it.
GRACE = 8
#: Far beyond any grace period, and below the hard time limit and the visibility timeout.
LONG = 300


class Stop:
    """The stop of a worker: it begins with a signal, to its main process unless told otherwise."""

    def __init__(self, worker: Worker, number: signal.Signals = signal.SIGTERM, *, group: bool = False) -> None:
        self.worker = worker
        self.begun = time.monotonic()
        if group:
            os.killpg(worker.pid, number)
        else:
            worker.send(number)

    def seconds(self, status: int = 0) -> float:
        """Wait until the worker has ended in order; give the seconds since the signal."""
        ended = self.worker.wait(60)
        assert ended == status
        return time.monotonic() - self.begun


def start(service: Service, *arguments: str, grace: float = GRACE, **variables: str) -> Worker:
    variables = {"CELERY_WORKER_SOFT_SHUTDOWN_TIMEOUT": str(grace)} | variables
    worker = service.worker("first", *arguments, **variables)
    worker.wait_ready()
    return worker


def finish_elsewhere(service: Service, *tasks: str) -> None:
    """Let another worker finish what the first handed back: now, not after the visibility timeout of 21 minutes."""
    with service.worker("second") as second:
        second.wait_ready()
        for task in tasks:
            outcome = service.result(task, seconds=15)
            assert outcome["state"] == "SUCCESS", outcome


def test_an_idle_worker_ends_at_once(service: Service) -> None:
    assert Stop(start(service, grace=60)).seconds() < 5


def test_a_worker_ends_with_its_last_task(service: Service) -> None:
    worker = start(service, grace=60)
    task = service.send("probe.work.delay(notes, 'a', 3)")
    service.wait_for_line("start a")
    assert Stop(worker).seconds() < 6
    assert service.lines() == ["start a", "end a"]
    assert service.result(task)["state"] == "SUCCESS"


@pytest.mark.parametrize("kind", ["interrupted", "tidy", "stubborn"])
def test_what_does_not_fit_is_handed_back_in_time(service: Service, kind: str) -> None:
    worker = start(service)
    task = service.send(f"probe.{kind}.delay(notes, 'a', {LONG})")
    service.wait_for_line("start a")
    assert GRACE / 2 <= Stop(worker).seconds() < GRACE
    tidied = ["tidied a"] if kind == "tidy" else []
    assert service.lines() == ["start a", *tidied]
    assert service.python(f"print(json.dumps(celery.AsyncResult({task!r}).state))") == "STARTED"
    finish_elsewhere(service, task)
    assert service.lines() == ["start a", *tidied, "start a", "end a", *tidied]


def test_what_waits_in_the_worker_goes_back_too(service: Service) -> None:
    worker = start(service, CELERY_WORKER_PREFETCH_MULTIPLIER="4")
    running = service.send(f"probe.interrupted.delay(notes, 'running', {LONG})")
    service.wait_for_line("start running")
    waiting = [service.send(f"probe.work.delay(notes, '{key}')") for key in "ab"]
    for task in waiting:
        worker.wait_for(rf"{task}\S* received")
    # On RabbitMQ, the broker itself keeps it until its time has come.
    later = service.send("probe.work.apply_async((notes, 'later'), countdown=8)")
    if service.broker is service.redis:
        worker.wait_for(rf"{later}\S* received")
    assert Stop(worker).seconds() < GRACE
    finish_elsewhere(service, running, *waiting, later)
    assert sorted(service.lines()) == sorted(
        ["start running"] + [f"{step} {key}" for key in ("running", "a", "b", "later") for step in ("start", "end")]
    )


def test_interruptions_are_not_held_against_a_task(service: Service) -> None:
    """It isn't poison, although it never ends within the grace period: here, half of it for tasks."""
    task = service.send("probe.work.delay(notes, 'a', 4)")
    for number in range(1, 5):
        worker = start(service, grace=2)
        wait_until(lambda n=number: len(service.lines()) == n, 30, f"start {number}")
        Stop(worker).seconds()
    finish_elsewhere(service, task)
    assert service.lines() == [*["start a"] * 5, "end a"]


def test_a_poison_message_that_was_interrupted_stops_all_the_same(service: Service) -> None:
    worker = start(service, grace=2)
    task = service.send(f"probe.crash.delay(notes, {LONG})")
    service.wait_for_line("start")
    Stop(worker).seconds()
    with service.worker("second"):
        assert "PoisonMessage" in service.result(task)["result"]
    # RabbitMQ counts the interruption; then, because it shouldn't, it counts from the start.
    assert service.lines() == ["start"] * (1 + 3 if service.broker is service.redis else 3 + 3)


def test_a_second_signal_hands_back_at_once(service: Service) -> None:
    worker = start(service, grace=60)
    task = service.send(f"probe.interrupted.delay(notes, 'a', {LONG})")
    service.wait_for_line("start a")
    stop = Stop(worker)
    worker.wait_for("Warm shutdown")
    worker.send(signal.SIGTERM)
    worker.wait_for("Cold shutdown|Ctrl")
    worker.send(signal.SIGTERM)  # A third one changes nothing.
    assert stop.seconds() < 6
    finish_elsewhere(service, task)
    assert service.lines() == ["start a", "start a", "end a"]


@pytest.mark.parametrize("remapped", [False, True])
def test_sigquit_hands_back_at_once(service: Service, remapped: bool) -> None:
    variables = {"REMAP_SIGTERM": "SIGQUIT"} if remapped else {}
    worker = start(service, grace=60, **variables)
    task = service.send(f"probe.interrupted.delay(notes, 'a', {LONG})")
    service.wait_for_line("start a")
    assert Stop(worker, signal.SIGTERM if remapped else signal.SIGQUIT).seconds() < 4
    finish_elsewhere(service, task)
    assert service.lines() == ["start a", "start a", "end a"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_all_processes_loses_nothing(service: Service, number: signal.Signals) -> None:
    """Ctrl-C in a terminal reaches the processes of the pool too, which ignore it, and so may a SIGTERM."""
    worker = start(service)
    task = service.send(f"probe.interrupted.delay(notes, 'a', {LONG})")
    service.wait_for_line("start a")
    assert Stop(worker, number, group=True).seconds(1 if number == signal.SIGINT else 0) < GRACE
    finish_elsewhere(service, task)
    assert service.lines() == ["start a", "start a", "end a"]


def test_each_of_many_tasks_ends_as_it_fits(service: Service) -> None:
    worker = start(service, "--concurrency=4", grace=20)
    calls = [f"probe.interrupted.delay(notes, 'long{n}', {LONG})" for n in (1, 2)]
    calls += [f"probe.work.delay(notes, 'short{n}', 6)" for n in (1, 2)]
    calls += [f"probe.work.delay(notes, 'queued{n}')" for n in (1, 2)]
    tasks = service.python(f"print(json.dumps([task.id for task in [{', '.join(calls)}]]))")
    for key in ("long1", "long2", "short1", "short2"):
        service.wait_for_line(f"start {key}")
    assert 10 < Stop(worker).seconds() < 20
    assert sorted(service.lines()) == sorted(
        ["start long1", "start long2"] + [f"{step} short{n}" for n in (1, 2) for step in ("start", "end")]
    )
    before = service.lines()
    finish_elsewhere(service, *tasks)
    again = [f"{step} {key}" for key in ("long1", "long2", "queued1", "queued2") for step in ("start", "end")]
    assert sorted(service.lines()) == sorted(before + again)


@pytest.mark.parametrize("pool", ["solo", "threads"])
def test_pools_without_processes_hand_back_too(service: Service, pool: str) -> None:
    worker = start(service, f"--pool={pool}", "--concurrency=2")
    short = service.send("probe.work.delay(notes, 'short', 1)")
    service.wait_for_line("start short")
    if pool == "solo":
        service.result(short)
    long = service.send(f"probe.interrupted.delay(notes, 'long', {LONG})")
    service.wait_for_line("start long")
    assert GRACE / 2 <= Stop(worker).seconds() < GRACE
    finish_elsewhere(service, short, long)
    assert sorted(service.lines()) == sorted(["start long", "start long", "end long", "start short", "end short"])


@pytest.mark.parametrize("broker_name", ["redis"], indirect=True)
@pytest.mark.parametrize("value", ["none", "-1", "inf"])
def test_a_grace_period_is_a_number_of_seconds(service: Service, value: str) -> None:
    worker = service.worker(CELERY_WORKER_SOFT_SHUTDOWN_TIMEOUT=value)
    assert worker.wait() == 1
    assert re.fullmatch(r"CELERY_WORKER_SOFT_SHUTDOWN_TIMEOUT is .*; it must be a number of seconds.\n", worker.text())
