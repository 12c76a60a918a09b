"""Checks of the parts that a service may have. They need the extras of these parts."""

from collections.abc import Awaitable, Callable


async def _ask_database() -> None:
    from sqlalchemy import text

    from celery_service.data.database import get_engine

    async with (await get_engine()).connect() as connection:
        await connection.execute(text("SELECT 1"))


async def _ask_cache() -> None:
    import aiocache  # type: ignore[import-untyped]

    # Not through `Cache`, which goes on without its server.
    client = aiocache.caches.create("default")
    try:
        await client.exists("health")
    finally:
        await client.close()


#: Part → what asks it, and raises an exception if it is away.
CHECKS: dict[str, Callable[[], Awaitable[None]]] = {
    "cache": _ask_cache,
    "database": _ask_database,
}
#: A service does without these, more slowly.
OPTIONAL = ("cache",)
