"""Tasks that the benchmarks add to a rendered project: one query, in each of three ways.

Each is one transaction of a session. The settings of the engine are the same for all, as far as it is kept.
"""

import asyncio
import functools
import importlib
from typing import Any

from celery import current_app
from celery_service.data import database
from celery_service.data.database import settings
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session

db: Any = importlib.import_module(f"{current_app.main}.services.db")
QUERY = text("SELECT 1")


@current_app.task(name="benchmark.query")
async def query(number: int) -> int:
    """As the project does it: on the loop and the engine that outlive the task."""
    async with db.get_session() as session:
        found: int = (await session.execute(QUERY)).scalar_one()
        return found


@current_app.task(name="benchmark.query_in_new_loop")
def query_in_new_loop(number: int) -> int:
    """As it is done where loops don't outlive a task: with a new loop and a new engine."""
    return asyncio.run(_query_on_new_engine())


async def _query_on_new_engine() -> int:
    engine = create_async_engine(_url())
    try:
        async with db.AsyncSession(engine) as session, session.begin():
            found: int = (await session.execute(QUERY)).scalar_one()
            return found
    finally:
        await engine.dispose()


@current_app.task(name="benchmark.query_without_loop")
def query_without_loop(number: int) -> int:
    """As it is done without asyncio: one engine for each process."""
    with Session(_engine(), expire_on_commit=False) as session, session.begin():
        found: int = session.execute(QUERY).scalar_one()
        return found


@functools.cache
def _engine() -> Engine:
    return create_engine(
        _url(),
        pool_size=settings.pool_size,
        max_overflow=settings.max_overflow,
        pool_timeout=settings.pool_timeout,
        pool_recycle=settings.pool_recycle,
        pool_pre_ping=settings.pool_pre_ping,
        hide_parameters=True,
    )


def _url() -> Any:
    return database.parse_url(settings.url.get_secret_value())
