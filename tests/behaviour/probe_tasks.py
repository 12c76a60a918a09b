"""Tasks that the behaviour tests add to a rendered project, by dropping this file into its `tasks/`.

Each writes what it does to a file, one line a step, so that a test sees what ran however it ended.
"""

import asyncio
import contextlib
import gc
import logging
import os
import signal
import time
from pathlib import Path
from typing import Any

from celery import current_app
from celery.signals import task_received


def note(path: str, line: str) -> None:
    """Append a line at once: writes of this size don't mix."""
    with Path(path).open("a") as file:
        file.write(f"{line}\n")


@current_app.task(name="probe.work", default_retry_delay=1)
def work(path: str, key: str, seconds: float = 0) -> str:
    """Start, take some time, end."""
    note(path, f"start {key}")
    time.sleep(seconds)
    note(path, f"end {key}")
    return key


@current_app.task(name="probe.crash")
def crash(path: str, seconds: float = 0) -> None:
    """Die as the kernel kills a process that takes too much memory; the first time, take so long."""
    note(path, "start")
    if len(Path(path).read_text().splitlines()) == 1:
        time.sleep(seconds)
    os.kill(os.getpid(), signal.SIGKILL)


@current_app.task(name="probe.interrupted", max_retries=0)
def interrupted(path: str, key: str, seconds: float) -> str:
    """Take long in the first run, and no time in later runs."""
    if f"start {key}" in Path(path).read_text().splitlines():
        seconds = 0
    return work(path, key, seconds)


@current_app.task(name="probe.tidy", max_retries=0)
async def tidy(path: str, key: str, seconds: float) -> str:
    """Do the same as `interrupted` in a coroutine, and clean up when cancelled."""
    if f"start {key}" in Path(path).read_text().splitlines():
        seconds = 0
    note(path, f"start {key}")
    try:
        await asyncio.sleep(seconds)
        note(path, f"end {key}")
    finally:
        await asyncio.sleep(0.1)
        note(path, f"tidied {key}")
    return key


@current_app.task(name="probe.stubborn", max_retries=0)
def stubborn(path: str, key: str, seconds: float) -> str:
    """Do the same, but ignore the interruption."""
    end = time.monotonic() + seconds
    while True:
        with contextlib.suppress(SystemExit):
            return interrupted(path, key, end - time.monotonic())
        time.sleep(end - time.monotonic())
        note(path, f"went on with {key}")


@current_app.task(name="probe.count_objects")
def count_objects() -> tuple[int, int]:
    """Return how many objects a garbage collection looks at, and how many it leaves out."""
    return len(gc.get_objects()), gc.get_freeze_count()


@current_app.task(name="probe.say")
def say(path: str) -> None:
    """Print a line and a part of one, then run until a file is there."""
    print("a whole line")
    print("an unfinished one", end="")
    end = time.monotonic() + 60
    while not Path(path).with_name("go").exists() and time.monotonic() < end:
        time.sleep(0.05)


@current_app.task(name="probe.read_state")
def read_state(path: str, task_id: str) -> str:
    """Return the state of a task, once there is a line "go on"."""
    note(path, "start look")
    while "go on" not in Path(path).read_text().splitlines():
        time.sleep(0.05)
    return str(current_app.AsyncResult(task_id).state)


@current_app.task(name="probe.stuck")
def stuck() -> None:
    """Do nothing, but see below."""


@current_app.task(name="probe.block")
def block(seconds: float) -> None:
    """Do nothing, but see below."""


@task_received.connect
def _block(request: Any, **_: object) -> None:
    logging.getLogger(__name__).info("%s is received: %s", request.name, request.id)
    # In the event loop of the worker's main process, as if it waited for a lock.
    if request.name == "probe.stuck":
        time.sleep(60)
    elif request.name == "probe.block":
        time.sleep(request.args[0])
        print(f"the event loop was blocked for {request.args[0]} s", flush=True)
