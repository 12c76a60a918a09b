"""What is checked and said when a worker or beat starts."""

from pathlib import Path

import pytest
from celery_service.lifecycle import versions

from support.forks import Forks

MEMORY = {"CELERY_BROKER_URL": "memory://"}
REDIS = {"CELERY_BROKER_URL": "redis://localhost:1/0"}

# --- beat -------------------------------------------------------------------------------------------------------------

BEAT = """
from my_service.celery import celery
from celery.apps.beat import Beat
{schedule}
from celery import beat
def tick(self):
    print("started")
    raise KeyboardInterrupt
beat.Scheduler.tick = tick
Beat(app=celery, quiet=True, loglevel="ERROR", schedule="schedule").run()
"""
HANDLER = """
@celery.on_after_finalize.connect
def set_up(sender, **kwargs):
    {body}
"""


def start_beat(forks: Forks, service: Path, schedule: str) -> tuple[int, str, str]:
    done = forks.run(BEAT.format(schedule=schedule), service, MEMORY | {"HEALTH_DIR": str(service / "health")})
    lines = done.stderr.splitlines()
    return done.returncode, done.stdout, lines[-1] if lines else ""


def test_a_schedule_that_can_work_starts(forks: Forks, service: Path) -> None:
    work = "from my_service.tasks.work import work"
    schedule = HANDLER.format(body=f"{work}; sender.add_periodic_task(1.0, work.s(), name='work')")
    status, printed, _ = start_beat(forks, service, schedule)
    assert (status, printed) == (0, "started\n")


@pytest.mark.parametrize(
    ("schedule", "says"),
    [
        (HANDLER.format(body="1 / 0"), "beat: set_up raised ZeroDivisionError('division by zero'): no schedule."),
        (
            HANDLER.format(body="sender.add_periodic_task(1.0, celery.signature('gone'), name='nightly')"),
            "beat: entry 'nightly' names an unknown task, 'gone'.",
        ),
        (
            "celery.conf.beat_schedule = {'nightly': {'task': 'gone', 'schedule': 1.0}}",
            "beat: entry 'nightly' names an unknown task, 'gone'.",
        ),
    ],
)
def test_a_schedule_that_can_not_work_stops_beat_with_one_line(
    forks: Forks, service: Path, schedule: str, says: str
) -> None:
    assert start_beat(forks, service, schedule) == (1, "", says)


# --- workers ----------------------------------------------------------------------------------------------------------

WORKER = """
from my_service.celery import celery
{task}
celery.Worker(pool={pool!r})
print("starts")
"""
TASK = """
@celery.task(name="slow", {options})
def slow(): pass
"""
FOREIGN = """
from celery import Task

class Foreign(Task):
    name = 'foreign'
    async def run(self): pass

celery.register_task(Foreign())
"""


def start_worker(forks: Forks, service: Path, task: str, pool: str = "solo") -> tuple[int, str]:
    done = forks.run(WORKER.format(task=task, pool=pool), service, REDIS)
    return done.returncode, done.stdout or done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("task", "says"),
    [
        ("", "starts\n"),
        (TASK.format(options="time_limit=86400, default_retry_delay=86400"), "starts\n"),
        (
            TASK.format(options="time_limit=-5"),
            "The task slow: time_limit must be a number of seconds above 0, not -5.",
        ),
        (
            TASK.format(options="soft_time_limit=3600"),
            "The task slow has soft_time_limit=3600; it must not be above its time limit, 600.",
        ),
        (
            FOREIGN,
            "The task foreign is an `async def` on another base than celery.Task.",
        ),
    ],
)
def test_a_task_that_can_not_run_as_it_should_stops_the_worker(
    forks: Forks, service: Path, task: str, says: str
) -> None:
    status, line = start_worker(forks, service, task)
    assert line.startswith(says)
    assert status == (0 if says == "starts\n" else 1)


@pytest.mark.parametrize(
    ("options", "limits"),
    [
        ("", "600.0 540.0"),
        ("time_limit=60", "60 54.0"),
        ("time_limit=60, soft_time_limit=30", "60 30"),
        ("soft_time_limit=30", "600.0 30"),
        ("soft_time_limit=900", "600.0 540.0"),
    ],
)
def test_a_limit_on_the_command_line_of_a_worker_counts_as_the_setting_does(
    forks: Forks, service: Path, options: str, limits: str
) -> None:
    code = (
        "from my_service.celery import celery\n"
        f"worker = celery.Worker(pool='solo', {options})\n"
        "print(worker.time_limit, worker.soft_time_limit)\n"
        "print(celery.conf.task_time_limit, celery.conf.task_soft_time_limit)"
    )
    assert forks.run(code, service, REDIS).stdout.splitlines() == [limits] * 2


@pytest.mark.parametrize("pool", ["gevent", "eventlet"])
def test_green_threads_are_refused_where_tasks_are_async(forks: Forks, service: Path, pool: str) -> None:
    task = "@celery.task(name='green')\nasync def green(): pass"
    says = f"The pool {pool} can't run async tasks such as green; use --pool=prefork, threads or solo."
    assert start_worker(forks, service, task, pool) == (1, says)


SIGNAL_DURING_A_SIGNAL = """
import signal
from my_service.celery import celery
from celery.signals import worker_shutting_down

worker_shutting_down.connect(lambda **_: print("heard"), weak=False)
signal.alarm(20)  # ends a process that waits for itself
with worker_shutting_down.lock:  # as the handler of a first signal has it
    worker_shutting_down.send("worker", sig="SIGTERM", how="Warm", exitcode=0)
"""


def test_a_signal_while_celery_handles_another_does_not_block_the_worker(forks: Forks, service: Path) -> None:
    done = forks.run(SIGNAL_DURING_A_SIGNAL, service, REDIS)
    assert (done.returncode, done.stdout) == (0, "heard\n")


# --- versions ---------------------------------------------------------------------------------------------------------


def test_the_versions_that_are_installed_here_are_tested() -> None:
    assert versions.untested() == []


def test_another_minor_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    newer = {"kombu": "5.8.0", "celery": "5.8.0rc1", "billiard": "4.3.99"}
    monkeypatch.setattr(versions, "version", newer.__getitem__)
    found = versions.untested()
    assert [each.partition(" (needs ")[0] for each in found] == ["celery 5.8.0rc1", "kombu 5.8.0"]


WARN = """
from my_service.celery import celery
from celery_service.lifecycle import versions
versions.version = lambda name: "9.0.0"
"""
RUN_WORKER = """
import os
from celery.signals import worker_ready
worker_ready.connect(lambda **_: os._exit(0), weak=False)
celery.worker_main(["worker", "--pool=solo", "--loglevel=WARNING"])
"""


@pytest.mark.parametrize("process", [RUN_WORKER, BEAT.format(schedule="").replace("ERROR", "WARNING")])
def test_a_worker_and_beat_warn_once(forks: Forks, service: Path, process: str) -> None:
    log = forks.run(WARN + process, service, MEMORY | {"HEALTH_DIR": str(service / "health")}).stderr
    assert log.count("celery-service is not tested with billiard 9.0.0 (needs ") == 1
    assert log.count("is not tested with") == 1


# --- output -----------------------------------------------------------------------------------------------------------

PRINT = """
import os

import celery_service
from celery import Celery, signals

celery_service.install(Celery("x"), tasks="my_service.tasks", without={{"observability.logging"}})
signals.{starts}
print("printed")
os._exit(0)
"""


@pytest.mark.parametrize(
    "starts",
    [
        "celeryd_init.send(sender='x', instance=type('Worker', (), {'app': None}))",
        "worker_process_init.send(sender='x')",
        "beat_init.send(sender=type('Beat', (), {'app': None}))",
    ],
)
def test_what_a_process_prints_is_not_kept_back(forks: Forks, service: Path, starts: str) -> None:
    assert forks.run(PRINT.format(starts=starts), service, MEMORY).stdout == "printed\n"
