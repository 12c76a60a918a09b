"""The database: `async with get_session() as session:` is one transaction.

Each event loop has its own engine, which is opened when a task first needs it, after the worker has
forked. So a process has one engine; with `--pool=threads`, each thread that runs async tasks has
one.

This module also checks addresses, makes errors name the database, sets SQLite up for several
processes, and sends tasks after a commit.
"""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import kombu.exceptions
import sqlalchemy.exc
import sqlalchemy.ext.asyncio
from celery.canvas import Signature
from pydantic import AfterValidator, Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict
from sqlalchemy import URL, Connection, Engine, event, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection, ExceptionContext
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session, SessionTransaction

from celery_service.config.settings import read
from celery_service.data.per_loop import PerLoop

#: Scheme of an address → the driver. All drivers are asynchronous.
DRIVERS = {
    "postgres": "postgresql+psycopg",
    "postgresql": "postgresql+psycopg",
    "postgresql+asyncpg": "postgresql+psycopg",
    "postgresql+psycopg": "postgresql+psycopg",
    "sqlite": "sqlite+aiosqlite",
    "sqlite+aiosqlite": "sqlite+aiosqlite",
}

#: Seconds that a transaction waits for another one that writes to the same SQLite file.
SQLITE_TIMEOUT = 30


class DatabaseUnavailable(ConnectionError):
    """The database is unreachable or has closed the connection. The message names the database."""


def parse_url(text: str) -> URL:
    """Return the address with the driver that this service uses.

    Raises:
        ValueError: The address is invalid. The message contains no password.
    """
    example = "write postgresql://user:password@host:5432/name or sqlite:///file.db"
    try:
        url = make_url(text)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        raise ValueError(f"can't be read; {example}") from None
    if url.port is not None and not 1 <= url.port <= 65535:
        raise ValueError(f"has a port that isn't from 1 to 65535; {example}")
    if url.drivername not in DRIVERS:
        raise ValueError(f"starts with {url.drivername}://, which has no driver here; {example}")
    if url.database in (None, "", ":memory:"):
        # With :memory:, each process would have its own database.
        raise ValueError(f"names no database; {example}")
    return url.set(drivername=DRIVERS[url.drivername])


def _normalise(secret: SecretStr) -> SecretStr:
    url = parse_url(secret.get_secret_value())
    return SecretStr(url.render_as_string(hide_password=False))


class Settings(BaseSettings):
    """The address of the database, and the limits of its connections."""

    model_config = SettingsConfigDict(env_prefix="database_", env_ignore_empty=True)

    # postgresql://user:password@host:5432/name, or a file for SQLite.
    url: Annotated[SecretStr, AfterValidator(_normalise)] = SecretStr("sqlite:///data.db")
    # Connections of each process that runs tasks: `pool_size` of them stay open, up to
    # `max_overflow` more are opened when needed. A task needs one for each open session.
    pool_size: int = Field(default=2, ge=1)
    max_overflow: int = Field(default=3, ge=0)
    # Seconds to wait for a free connection, and for the server to accept a new one.
    pool_timeout: float = Field(default=10, gt=0, allow_inf_nan=False)
    connect_timeout: int = Field(default=5, ge=1)
    # Seconds after which a connection is replaced, because firewalls drop old ones silently.
    pool_recycle: int = Field(default=1800, ge=1)
    # Test a connection before using it, because the server may have restarted.
    pool_pre_ping: bool = True


settings = read(Settings)

#: Temporary errors, for `autoretry_for`: the database is unreachable or busy, waiting for a lock or
#: a connection timed out, or the broker is unreachable when a task is sent after a commit.
TRANSIENT = (
    DatabaseUnavailable,
    sqlalchemy.exc.OperationalError,
    sqlalchemy.exc.TimeoutError,
    kombu.exceptions.OperationalError,
)


async def get_engine() -> AsyncEngine:
    """Return the engine of the running event loop. It is disposed of when the loop closes."""
    return await _engine.get()


@asynccontextmanager
async def get_session() -> AsyncGenerator[AsyncSession, None]:
    """Open a session whose transaction is committed at the end, or rolled back on an exception."""
    # Objects stay readable after a commit. Reloading them on access would need an `await`.
    async with AsyncSession(await get_engine(), expire_on_commit=False) as session:
        yield session
        await session.commit()


async def _open() -> AsyncGenerator[AsyncEngine, None]:
    url = parse_url(settings.url.get_secret_value())
    timeout = (
        {"timeout": SQLITE_TIMEOUT}
        if url.get_backend_name() == "sqlite"
        else {"connect_timeout": settings.connect_timeout}
    )
    # By this name, so that an instrumentation that replaces it later is used.
    engine = sqlalchemy.ext.asyncio.create_async_engine(
        url,
        # These apply to this event loop: see Settings.
        pool_size=settings.pool_size,
        max_overflow=settings.max_overflow,
        pool_timeout=settings.pool_timeout,
        pool_recycle=settings.pool_recycle,
        pool_pre_ping=settings.pool_pre_ping,
        connect_args=timeout,
        # Errors appear in logs and results, so they must not contain values of rows.
        hide_parameters=True,
    )
    prepare(engine.sync_engine)
    try:
        yield engine
    finally:
        await engine.dispose()


_engine = PerLoop(_open)


def prepare(engine: Engine) -> None:
    """Make connection errors name the database, and make transactions of SQLite wait."""

    @event.listens_for(engine, "handle_error")
    def name_the_database(context: ExceptionContext) -> Exception | None:
        # The pool replaces a connection whose ping fails, so that isn't an error.
        lost = context.connection is None or context.is_disconnect
        if context.is_pre_ping or not lost or context.sqlalchemy_exception is None:
            return None
        reason = " ".join(str(context.original_exception).split())
        return DatabaseUnavailable(f"{describe(engine.url)} is not available: {reason}")

    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _set_up_sqlite)
        event.listen(engine, "begin", _begin_immediately)


def describe(url: URL) -> str:
    """Return the name of a database for messages, without user and password."""
    place = f" on {url.host}:{url.port or 5432}" if url.host else ""
    return f"the database {url.database!r}{place}"


def _set_up_sqlite(connection: DBAPIConnection, record: object) -> None:
    # The driver must not begin transactions, because _begin_immediately does.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute("PRAGMA foreign_keys = ON")
    # With WAL, readers and the writer don't wait for each other.
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.close()


def _begin_immediately(connection: Connection) -> None:
    # By default, a transaction gets the write lock at its first write. If another transaction has
    # written since the first read, it fails at once: https://www.sqlite.org/lang_transaction.html
    connection.exec_driver_sql("BEGIN IMMEDIATE")


# --- tasks that are sent after a commit ---

_Waiting = dict[SessionTransaction | None, list[Signature[Any]]]
_KEY = "signatures that wait for a commit"


def send_after_commit(session: AsyncSession, signature: Signature[Any]) -> None:
    """Send a task after the transaction is committed. If it is rolled back, send nothing.

    If you send a task earlier, it may run before its data is committed, or although the data is
    never committed. If the process dies between the commit and the sending, the task isn't sent,
    but your own task's message is delivered again. So call this in a second run too, and make the
    task that you send idempotent.
    """
    inner = session.sync_session
    if _KEY not in inner.info:
        inner.info[_KEY] = {}
        event.listen(inner, "after_commit", _send)
        event.listen(inner, "after_transaction_end", _forget)
    if not inner.in_transaction():
        inner.begin()
    waiting: _Waiting = inner.info[_KEY]
    waiting.setdefault(_innermost(inner), []).append(signature)


def _innermost(session: Session) -> SessionTransaction | None:
    return session.get_nested_transaction() or session.get_transaction()


def _send(session: Session) -> None:
    waiting: _Waiting = session.info[_KEY]
    transaction = _innermost(session)
    signatures = waiting.pop(transaction, [])
    if transaction and transaction.nested:
        # A savepoint is released, so wait for the enclosing transaction.
        waiting.setdefault(transaction.parent, []).extend(signatures)
        return
    for signature in signatures:
        signature.apply_async()


def _forget(session: Session, transaction: SessionTransaction) -> None:
    # Signatures that are still here belong to a transaction that was rolled back.
    waiting: _Waiting = session.info[_KEY]
    waiting.pop(transaction, None)
