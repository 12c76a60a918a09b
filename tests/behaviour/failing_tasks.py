"""Tasks that the behaviour tests add to a rendered project: each fails in its own way."""

import asyncio
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from celery import Task, current_app

from .probe import note


@current_app.task(name="failing.fail", bind=True)
def fail(self: Task[..., Any], path: str, key: str, **_more: Any) -> str:
    """Fail until somebody has mended it."""
    if (Path(path).parent / "mended").exists():
        note(path, f"mended {key} {self.request.replayed_from}")  # type: ignore[attr-defined]
        return key
    raise RuntimeError(f"no {key}")


@current_app.task(name="failing.other")
def other() -> None:
    """Fail for another reason."""
    raise LookupError("nothing there")


@current_app.task(name="failing.slow_fail")
def slow_fail(path: str) -> None:
    """Fail when somebody has said so."""
    note(path, "failing soon")
    while not (Path(path).parent / "fail now").exists():
        time.sleep(0.1)
    raise RuntimeError("slow")


@current_app.task(name="failing.flaky", autoretry_for=(ConnectionError,), retry_backoff=False, default_retry_delay=0)
def flaky(path: str, times: int) -> None:
    """Fail so many times."""
    note(path, "tried")
    if len(Path(path).read_text().splitlines()) <= times:
        raise ConnectionError("away")


@current_app.task(name="failing.later", bind=True, max_retries=2)
def later(self: Task[..., Any], path: str, key: str) -> None:
    """Fail, and again a second later each time; tell where."""
    note(path, f"{key} on {str(self.request.hostname).partition('@')[0]}")
    raise self.retry(countdown=1, exc=RuntimeError(f"no {key}"))


@current_app.task(name="failing.hang", time_limit=2, soft_time_limit=2)
def hang(path: str) -> None:
    """Ignore the soft limit."""
    note(path, "hanging")
    try:
        time.sleep(60)
    finally:
        time.sleep(60)


@current_app.task(name="failing.poison")
def poison(path: str, who: str) -> None:
    """Kill the process that runs it, or the worker with all its processes."""
    note(path, "poison")
    if who == "worker":
        os.kill(os.getppid(), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


@current_app.task(name="failing.collect")
def collect(results: list[Any], path: str) -> list[Any]:
    """The callback of a chord."""
    note(path, f"collected {results}")
    return results


@current_app.task(name="failing.limited", time_limit=2, bind=True)
def limited(self: Task[..., Any], path: str) -> None:
    """Retry once, then take too long."""
    note(path, "start")
    if not self.request.retries:
        raise self.retry(countdown=0)
    time.sleep(60)


@current_app.task(name="failing.end")
def end(path: str, how: str) -> None:
    """Raise what can end more than the task."""
    note(path, "start")
    if how == "memory":
        bytearray(10**18)
    elif how == "exit":
        sys.exit(3)
    elif how == "cancelled":
        raise asyncio.CancelledError
    else:
        _recurse()


def _recurse() -> None:
    _recurse()


@current_app.task(name="failing.end_async")
async def end_async(path: str, how: str) -> None:
    """Raise the same while an event loop runs."""
    await asyncio.sleep(0)
    end.run(path, how)
