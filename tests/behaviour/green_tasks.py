"""Tasks that the behaviour tests add to a rendered project: none of them is async, so green pools run them all."""

import asyncio
import ctypes
import time
from pathlib import Path

from celery import current_app
from celery_service.tasks import loop
from celery_service.tasks.once import once


def note(path: str, line: str) -> None:
    """Append a line at once."""
    with Path(path).open("a") as file:
        file.write(f"{line}\n")


@current_app.task(name="green.work")
def work(path: str, key: str, seconds: float = 0) -> str:
    """Wait for so long, as for an answer; not at all when somebody has begun it before."""
    if seconds and f"start {key}" in Path(path).read_text().splitlines():
        seconds = 0
    note(path, f"start {key}")
    time.sleep(seconds)
    note(path, f"end {key}")
    return key


@current_app.task(name="green.compute")
def compute(path: str, key: str, seconds: float) -> str:
    """Block all green threads for so long: compute in Python, and a longer time in C code. Once, as above."""
    if seconds and f"start {key}" in Path(path).read_text().splitlines():
        seconds = 0
    note(path, f"start {key}")
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        sum(range(200_000))
        ctypes.CDLL(None).usleep(int(min(left, 0.05) * 1_000_000))
    note(path, f"end {key}")
    return key


@current_app.task(name="green.once", default_retry_delay=1)
def do_once(path: str, key: str, seconds: float) -> str:
    """Do it once, and tell how it went."""
    with once(key=key) as first:
        if first:
            note(path, f"did {key}")
            time.sleep(seconds)
    return "first" if first else "again"


@current_app.task(name="green.fail")
def fail(key: str) -> None:
    """Fail."""
    raise RuntimeError(f"no {key}")


@current_app.task(name="green.loop")
def run_loop() -> None:
    """Use an event loop, as `.sync` of a cache does."""
    loop.run(asyncio.sleep(0))


@current_app.task(name="green.hang", time_limit=1, soft_time_limit=0.5)
def hang(path: str, seconds: float) -> str:
    """Wait beyond the time limit."""
    try:
        time.sleep(seconds)
    finally:
        note(path, "hung")
    return "ended"
