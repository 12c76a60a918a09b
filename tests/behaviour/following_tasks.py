"""Tasks that the behaviour tests add to a rendered project: they lead to others."""

import asyncio
import logging
import time
from pathlib import Path
from typing import Any

import structlog
from celery import Task, chord, current_app
from celery.exceptions import Ignore
from celery_service import correlation

logger = structlog.get_logger(__name__)


@current_app.task(name="following.start", bind=True)
def start(self: Task[..., Any], path: str) -> None:
    """Retry once, then send a chord."""
    if not self.request.retries:
        raise self.retry(countdown=0, exc=ConnectionError("not yet"))
    chord([child.s(1), child_async.s(2)])(body.s(path))


@current_app.task(name="following.child")
def child(number: int) -> int:
    """Log by the standard library."""
    logging.getLogger("by.hand").warning("a child is %d", number, extra={"customer": 5})
    return number


@current_app.task(name="following.child_async")
async def child_async(number: int) -> int:
    """Log by structlog, from a coroutine."""
    structlog.contextvars.bind_contextvars(tenant="acme")
    await asyncio.gather(asyncio.sleep(0))
    logger.info("child_async", number=number, password="hunter2")
    return number


@current_app.task(name="following.body")
def body(numbers: list[int], path: str) -> int:
    """Fail until somebody has mended it."""
    if not (Path(path).parent / "mended").exists():
        token = "abcdef123456"
        raise ValueError(f"not mended: token={token} redis://user:s3cr3t@host/0")
    return sum(numbers)


@current_app.task(name="following.tell")
def tell() -> str | None:
    """Return the id."""
    return correlation.current()


@current_app.task(name="following.tell_async")
async def tell_async() -> str | None:
    """Do it in a coroutine."""
    await asyncio.sleep(0)
    return correlation.current()


@current_app.task(name="following.parent")
def parent() -> str:
    """Send a task under another id."""
    correlation.bind("another")
    return str(tell.delay().id)


@current_app.task(name="following.expected", throws=(LookupError,))
def expected() -> None:
    """Raise what is no surprise."""
    raise LookupError("not there")


@current_app.task(name="following.ignored")
def ignored() -> None:
    """Leave the result to somebody else."""
    raise Ignore


@current_app.task(name="following.unserialisable")
def unserialisable() -> object:
    """Return what JSON can't represent."""
    return object()


@current_app.task(name="following.soft", soft_time_limit=1)
def soft() -> None:
    """Take too long."""
    time.sleep(30)
