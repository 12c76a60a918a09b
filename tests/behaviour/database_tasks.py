"""Tasks that the behaviour tests add to a project with a database, beside those of probe_tasks.py."""

import asyncio
from typing import Any

from celery import Task, current_app
from sqlalchemy import text
from sqlalchemy.ext.asyncio import async_sessionmaker

from ..services import db  # noqa: TID252  # the name of the package differs


async def write_down(session: Any, task_id: str, row: int) -> int:
    """Read a number and write the next one; note who did it, which a second run can't do."""
    found = await session.execute(text("select n from probe.counter where id = :id for update"), {"id": row})
    number: int = found.scalar_one() + 1
    await session.execute(text("update probe.counter set n = :n where id = :id"), {"n": number, "id": row})
    await session.execute(text("insert into probe.ledger (task_id) values (:id)"), {"id": task_id})
    return number


@current_app.task(name="probe.count", bind=True)
async def count(self: Task[..., Any], row: int) -> int:
    """Read and write in one transaction."""
    async with db.get_session() as session:
        return await write_down(session, self.request.id, row)


@current_app.task(name="probe.count_in_new_loop", bind=True)
def count_in_new_loop(self: Task[..., Any], row: int) -> int:
    """Do the same, without an `async def` task."""
    return asyncio.run(_count(self.request.id, row))


async def _count(task_id: str, row: int) -> int:
    sessions = async_sessionmaker(await db.get_engine(), class_=db.AsyncSession)
    async with sessions() as session, session.begin():
        return await write_down(session, task_id, row)


@current_app.task(name="probe.wide")
async def wide() -> int:
    """Want more connections at the same time than there may be."""

    async def one() -> None:
        async with db.get_session() as session:
            await session.execute(text("select pg_sleep(0.1)"))

    async with asyncio.TaskGroup() as group:
        for _ in range(10):
            group.create_task(one())
    return 10


@current_app.task(name="probe.patient", autoretry_for=db.TRANSIENT, retry_backoff=1, retry_jitter=False, max_retries=6)
async def patient() -> int:
    """Be retried soon."""
    async with db.get_session() as session:
        found = await session.execute(text("select 1"))
        number: int = found.scalar_one()
        return number


@current_app.task(name="probe.slow_query")
async def slow_query() -> None:
    """Run into the soft time limit in the middle of a statement."""
    async with db.get_session() as session:
        await session.execute(text("insert into probe.ledger (task_id) values ('slow')"))
        await session.execute(text("select pg_sleep(60)"))
