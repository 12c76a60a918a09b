"""The database on SQLite: URLs, transactions, engines, sending after a commit, errors."""

import asyncio
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import ClassVar

import pytest
from celery.canvas import Signature
from celery_service.config.settings import ConfigurationError, read
from celery_service.data import database
from celery_service.data.database import (
    DatabaseUnavailable,
    Settings,
    describe,
    get_engine,
    get_session,
    parse_url,
    send_after_commit,
)
from celery_service.data.types import UtcDateTime
from pydantic import SecretStr
from sqlalchemy import ForeignKey, func, select
from sqlalchemy.exc import IntegrityError, OperationalError, StatementError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

PLACE = "ada:s%40cret@host:5433/name"


class Base(DeclarativeBase):
    type_annotation_map: ClassVar = {datetime: UtcDateTime}


class Row(Base):
    __tablename__ = "rows"

    id: Mapped[int] = mapped_column(primary_key=True)
    time: Mapped[datetime | None]
    other: Mapped[int | None] = mapped_column(ForeignKey("rows.id"))


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A database with an empty table."""
    monkeypatch.setattr(database.settings, "url", SecretStr(f"sqlite+aiosqlite:///{tmp_path}/unit.db"))

    async def create() -> None:
        async with (await get_engine()).begin() as connection:
            await connection.run_sync(Base.metadata.create_all)

    asyncio.run(create())


async def count() -> int:
    async with get_session() as session:
        return await session.scalar(select(func.count()).select_from(Row)) or 0


# --- addresses --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "used"),
    [
        (f"postgres://{PLACE}", f"postgresql+psycopg://{PLACE}"),
        (f"postgresql://{PLACE}?sslmode=require", f"postgresql+psycopg://{PLACE}?sslmode=require"),
        (f"postgresql+asyncpg://{PLACE}", f"postgresql+psycopg://{PLACE}"),
        (f"postgresql+psycopg://{PLACE}", f"postgresql+psycopg://{PLACE}"),
        ("postgresql:///name", "postgresql+psycopg:///name"),
        ("sqlite:///data.db", "sqlite+aiosqlite:///data.db"),
        ("sqlite+aiosqlite:////var/data.db", "sqlite+aiosqlite:////var/data.db"),
    ],
)
def test_a_url_gets_the_installed_driver(monkeypatch: pytest.MonkeyPatch, given: str, used: str) -> None:
    assert parse_url(given).render_as_string(hide_password=False) == used
    monkeypatch.setenv("DATABASE_URL", given)
    assert read(Settings).url.get_secret_value() == used


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (f"postgresql+psycopg2://{PLACE}", "starts with postgresql+psycopg2://, which has no"),
        (f"mysql://{PLACE}", "starts with mysql://, which has no driver here"),
        ("ada:s%40cret@host/name", "can't be read"),
        ("postgresql://ada:s%40cret@host:port/name", "can't be read"),
        ("postgresql://ada:s%40cret@host:99999/name", "has a port that isn't from 1 to 65535"),
        ("postgresql://ada:s%40cret@host:0/name", "has a port that isn't from 1 to 65535"),
        ("postgresql://ada:s%40cret@host", "names no database"),
        ("sqlite://", "names no database"),
        ("sqlite:///:memory:", "names no database"),
    ],
)
def test_an_invalid_url_is_refused_without_its_password(monkeypatch: pytest.MonkeyPatch, given: str, says: str) -> None:
    monkeypatch.setenv("DATABASE_URL", given)
    with pytest.raises(ConfigurationError) as caught:
        read(Settings)
    line = str(caught.value)
    assert line.startswith(f"DATABASE_URL {says}")
    assert line.endswith("write postgresql://user:password@host:5432/name or sqlite:///file.db.")
    assert "cret" not in line


def test_a_description_has_the_host_but_no_password() -> None:
    assert describe(parse_url(f"postgresql://{PLACE}")) == "the database 'name' on host:5433"
    assert describe(parse_url("postgresql://ada@host/name")) == "the database 'name' on host:5432"
    assert describe(parse_url("sqlite:///data.db")) == "the database 'data.db'"


def test_an_error_names_the_database_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    # Nothing listens on port 1.
    url = SecretStr("postgresql+psycopg://ada:secret@127.0.0.1:1/orders")
    monkeypatch.setattr(database.settings, "url", url)
    with pytest.raises(DatabaseUnavailable) as caught:
        asyncio.run(count())
    assert "the database 'orders' on 127.0.0.1:1 is not available" in str(caught.value)
    assert "secret" not in repr(caught.value)
    assert "secret" not in repr(caught.value.__cause__)


# --- sessions ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("tables")
def test_a_session_commits_at_the_end_and_rolls_back_on_an_exception() -> None:
    async def fail() -> None:
        async with get_session() as session:
            session.add(Row())
            await session.flush()
            raise RuntimeError

    async def main() -> tuple[int, int, int]:
        async with get_session() as session:
            row = Row()
            session.add(row)
        assert row.id == 1  # readable after the commit
        committed = await count()
        with pytest.raises(RuntimeError):
            await fail()
        rolled_back = await count()
        async with get_session() as session:
            session.add(Row())
            await session.commit()
            session.add(Row())
        return committed, rolled_back, await count()

    assert asyncio.run(main()) == (1, 1, 3)


@pytest.mark.usefixtures("tables")
def test_each_event_loop_has_one_engine() -> None:
    async def main() -> list[int]:
        return [id(await get_engine()), id(await get_engine())]

    first, second = asyncio.run(main()), asyncio.run(main())
    assert len({*first}) == len({*second}) == 1


@pytest.mark.usefixtures("tables")
def test_an_error_contains_no_values() -> None:
    async def main() -> None:
        async with get_session() as session:
            session.add(Row(id=12345, other=67890))

    with pytest.raises(IntegrityError) as caught:  # SQLite minds foreign keys only when asked to
        asyncio.run(main())
    assert "12345" not in str(caught.value)
    assert "67890" not in str(caught.value)


@pytest.mark.usefixtures("tables")
def test_writers_of_one_file_wait_for_each_other() -> None:
    """By default, a transaction that has read fails if another one has written in the meantime."""

    async def write() -> None:
        async with get_session() as session:
            number = await session.scalar(select(func.count()).select_from(Row))
            await asyncio.sleep(0.01)
            session.add(Row(id=(number or 0) + 1))

    async def main() -> int:
        async with asyncio.TaskGroup() as group:
            for _ in range(5):
                group.create_task(write())
        return await count()

    assert asyncio.run(main()) == 5


@pytest.mark.usefixtures("tables")
def test_a_transaction_that_waits_too_long_for_another_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "SQLITE_TIMEOUT", 0.1)

    async def main() -> None:
        async with get_session() as session:
            session.add(Row())
            await session.flush()
            await count()

    with pytest.raises(OperationalError, match="database is locked"):
        asyncio.run(main())
    assert issubclass(OperationalError, database.TRANSIENT)


# --- messages that wait for a commit ----------------------------------------------------------------------------------


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Collect the numbers in the messages that are sent."""
    sent: list[int] = []
    monkeypatch.setattr(Signature, "apply_async", lambda self: sent.append(*self.args))
    return sent


def message(number: int) -> Signature[object]:
    return Signature("tests.message", (number,))


@pytest.mark.usefixtures("tables")
def test_a_task_is_sent_after_the_commit(sent: list[int]) -> None:
    async def main() -> None:
        async with get_session() as session:
            send_after_commit(session, message(1))
            session.add(Row())
            await session.flush()
            send_after_commit(session, message(2))
            assert sent == []
            await session.commit()
            assert sorted(sent) == [1, 2]
        assert sorted(sent) == [1, 2]

    asyncio.run(main())


@pytest.mark.usefixtures("tables")
def test_a_rollback_sends_nothing(sent: list[int]) -> None:
    async def main() -> None:
        async with get_session() as session:
            send_after_commit(session, message(1))
            await session.rollback()
            send_after_commit(session, message(2))
            async with session.begin_nested():
                send_after_commit(session, message(3))
            async with session.begin_nested() as savepoint:
                send_after_commit(session, message(4))
                await savepoint.rollback()
            assert sent == []
        async with get_session() as session:
            async with session.begin_nested():
                send_after_commit(session, message(5))
            await session.rollback()

    asyncio.run(main())
    assert sorted(sent) == [2, 3]


# --- columns ----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("tables")
def test_times_come_back_in_utc() -> None:
    there = datetime(2026, 1, 1, 12, tzinfo=timezone(timedelta(hours=2)))

    async def main() -> Row:
        async with get_session() as session:
            session.add(Row(id=1, time=there))
        async with get_session() as session:
            return await session.get_one(Row, 1)

    time = asyncio.run(main()).time
    assert time == there
    assert time.tzinfo == UTC


@pytest.mark.usefixtures("tables")
def test_a_time_without_a_zone_is_refused() -> None:
    async def main() -> None:
        async with get_session() as session:
            session.add(Row(time=datetime(2026, 1, 1)))

    with pytest.raises(StatementError, match="has no time zone"):
        asyncio.run(main())
