"""Wait until the database is migrated: python -m celery_service.data.wait

It runs in the folder with `pyproject.toml`, as `alembic` does. A database that a newer version has
migrated counts as migrated, so that an older version can start again.
"""

import asyncio
import sys

from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from celery_service.data.database import DatabaseUnavailable, get_engine

#: Seconds between two checks.
INTERVAL = 2.0


def main() -> None:
    """Wait without a limit. Print a line whenever the reason to wait changes."""
    scripts = ScriptDirectory.from_config(Config(toml_file="pyproject.toml"))
    known = {script.revision for script in scripts.walk_revisions()}
    asyncio.run(_wait(set(scripts.get_heads()), known))


async def _wait(heads: set[str], known: set[str]) -> None:
    shown = ""
    while reason := await _reason(heads, known):
        if reason != shown:
            print(reason, file=sys.stderr, flush=True)
        shown = reason
        await asyncio.sleep(INTERVAL)


async def _reason(heads: set[str], known: set[str]) -> str:
    """Return why to wait, or "" if the database has all migrations that this version knows."""
    engine = await get_engine()
    try:
        async with engine.connect() as connection:
            found = set(await connection.run_sync(_revisions))
    except DatabaseUnavailable as error:
        return f"waiting for the database: {error}"
    if heads <= found or found - known:
        return ""
    return f"waiting for migrations: the database is at {', '.join(sorted(found)) or 'none'}"


def _revisions(connection: Connection) -> tuple[str, ...]:
    return MigrationContext.configure(connection).get_current_heads()


if __name__ == "__main__":
    main()
