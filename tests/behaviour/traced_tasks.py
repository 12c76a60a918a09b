"""Tasks that the tests of tracing add to a project with a database and a cache."""

import asyncio
import contextlib
import logging
import time
from typing import Any

import requests
from celery import Task, current_app
from celery.exceptions import SoftTimeLimitExceeded
from sqlalchemy import text

from ..services import db  # noqa: TID252  # the name of the package differs
from ..services.cache import cache  # noqa: TID252

logger = logging.getLogger(__name__)


@current_app.task(name="traced.order", bind=True, max_retries=1)
async def order(self: Task[..., Any], url: str, password: str) -> str:
    """Be retried at once, then use a database, a cache and a server, and send another task."""
    logger.info("order in progress")
    if not self.request.retries:
        raise self.retry(countdown=0)
    async with db.get_session() as session:
        await session.execute(text("select :password"), {"password": password})
    await cache.set("traced", password)
    await asyncio.to_thread(requests.get, url, timeout=10)
    return str(deliver.delay(password).id)


@current_app.task(name="traced.deliver")
def deliver(password: str) -> None:
    """Do nothing."""


@current_app.task(name="traced.fail")
def fail() -> None:
    """Fail."""
    raise ValueError("a traced error")


@current_app.task(name="traced.hang", time_limit=2)
def hang() -> None:
    """Take longer than the hard limit the first time."""
    if hang.request.headers and "replayed_from" in hang.request.headers:
        return
    while True:
        with contextlib.suppress(SoftTimeLimitExceeded):
            time.sleep(60)


@current_app.task(name="traced.add")
def add(*numbers: Any) -> int:
    """Add numbers, and lists of numbers."""
    return sum(sum(each) if isinstance(each, list) else each for each in numbers)
