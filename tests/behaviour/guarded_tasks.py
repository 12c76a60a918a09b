"""Tasks that the behaviour tests add to a rendered project: they do what must happen once."""

import asyncio
import os
import signal
import time
from pathlib import Path

from celery import current_app
from celery_service.tasks.once import once

from .probe import note


@current_app.task(name="once.work", default_retry_delay=0)
def work(path: str, seconds: float = 0, key: str = "", lease: float | None = None) -> str:
    """Do it once, and tell how it went."""
    with once(key=key, lease=lease) as first:
        if first:
            note(path, "did")
            time.sleep(seconds)
    note(path, "end")
    return "first" if first else "again"


@current_app.task(name="once.work_async")
async def work_async(path: str, key: str) -> str:
    """The same in a coroutine."""
    with once(key=key) as first:
        if first:
            await asyncio.sleep(0.01)
            note(path, "did")
    return "first" if first else "again"


@current_app.task(name="once.fail", autoretry_for=(ConnectionError,), default_retry_delay=0, retry_backoff=False)
def fail(path: str) -> str:
    """Fail in the block, once."""
    with once() as first:
        note(path, f"tried {first}")
        if len(Path(path).read_text().splitlines()) == 1:
            raise ConnectionError("away")
    return "done"


@current_app.task(name="once.crash", default_retry_delay=0)
def crash(path: str, lease: float) -> str:
    """Die in the block, once."""
    with once(lease=lease) as first:
        note(path, f"tried {first} {time.time()}")
        if len(Path(path).read_text().splitlines()) == 1:
            os.kill(os.getpid(), signal.SIGKILL)
    return "done"
