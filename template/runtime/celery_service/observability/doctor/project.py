"""What can be seen without a server: versions, and the variables in `.env`. And migrations."""

import asyncio
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from celery import Celery
from dotenv import dotenv_values
from pydantic_settings import BaseSettings

from celery_service.config.environment import PREFIX, is_read, most_similar, variable_of
from celery_service.config.merge import root_of
from celery_service.config.values import SETTING_TYPES
from celery_service.lifecycle.versions import untested
from celery_service.observability.doctor.finding import Finding, some

#: Variables that other programs read, such as Python, uv, Compose and the clients of servers.
OF_OTHERS = re.compile(
    r"(PYTHON|UV_|PIP_|COMPOSE_|DOCKER_|BUILDKIT_|PG|REDISCLI_|OTEL_|SENTRY_|AWS_|SSL_|LC_|GIT_)\w+"
    r"|(HTTPS?|ALL|NO|FTP)_PROXY|TZ|LANG|LANGUAGE|PATH|HOME|TMPDIR|USER|SHELL|TERM|EDITOR|NO_COLOR"
    r"|FORCE_COLOR|REQUESTS_CA_BUNDLE|CURL_CA_BUNDLE|DEBIAN_FRONTEND|CI|MALLOC_\w+|LD_\w+"
)
#: Files outside the package that may read a variable.
READERS = (
    *("Makefile", "local.mk", "compose*.y*ml", "Dockerfile*", "*.py", ".env.*"),
    *("deploy/**/*", "migrations/*.py", "scripts/**/*"),
)
#: Larger files aren't read.
LARGEST = 500_000


def check_versions(app: Celery) -> Iterator[Finding]:
    """Look for versions that the library wasn't tested with."""
    if found := untested():
        fix = "Run `copier update`, or install the versions that runtime/pyproject.toml allows."
        yield Finding("warning", "versions", f"untested: {', '.join(found)}", fix)
    else:
        yield Finding("ok", "versions", "Celery, Kombu and billiard are tested ones")


# --- .env ---------------------------------------------------------------------


def check_env_file(app: Celery) -> Iterator[Finding]:
    """Look for variables in `.env` that nobody reads, and for settings that are invalid there."""
    root = root_of(str(app.main))
    path = root / ".env"
    if not path.is_file():
        return
    app.loader.import_default_modules()
    names = [name for name in dotenv_values(path, interpolate=False) if name]
    known = _of_settings() | _of_celery()
    written = _words(root, str(app.main))

    def is_unread(name: str) -> bool:
        if name.startswith(PREFIX):
            return name not in known and not is_read(name)
        others = OF_OTHERS.fullmatch(name.upper())
        return name.upper() not in known and name not in written and not others

    unread = [name for name in names if is_unread(name)]
    listed = {name for name in _words_of(root / ".env.example") if name.isupper()}
    for name in unread:
        similar = most_similar(name, sorted((known | listed) - {name}))
        fix = f"Did you mean {similar}? " if similar else ""
        yield Finding(
            "warning", ".env", f"nobody reads {name}", f"{fix}Correct its name, or remove the line."
        )
    if not unread:
        yield Finding("ok", ".env", f"{len(names)} variables, all are read")


def _of_settings() -> set[str]:
    """Return the variables of all classes of settings that the service has imported."""
    found, pending = set(), BaseSettings.__subclasses__()
    while pending:
        kind = pending.pop()
        pending += kind.__subclasses__()
        prefix = str(kind.model_config.get("env_prefix") or "")
        for name, field in kind.model_fields.items():
            alias = field.validation_alias
            found.add(alias.upper() if isinstance(alias, str) else f"{prefix}{name}".upper())
    return found


def _of_celery() -> set[str]:
    found = {variable_of(name) for name in SETTING_TYPES}
    found |= {f"{name}_FILE" for name in found}
    return found


def _words(root: Path, package: str) -> set[str]:
    """Return all words in the files that may read a variable: those of the service and ours."""
    paths = [path for pattern in READERS for path in root.glob(pattern)]
    for name in (package, "celery_service"):
        found = importlib.util.find_spec(name)
        for place in (found and found.submodule_search_locations) or ():
            paths += Path(place).rglob("*.py")
    return set().union(*map(_words_of, paths))


def _words_of(path: Path) -> set[str]:
    try:
        if path.stat().st_size > LARGEST or not path.is_file():
            return set()
        text = path.read_text(encoding="utf-8", errors="ignore")
    except OSError:
        return set()
    # In Python, the name of a variable is a string.
    pattern = r"""["']([A-Za-z_]\w*)["']""" if path.suffix == ".py" else r"[A-Za-z_]\w*"
    return set(re.findall(pattern, text))


# --- migrations ---------------------------------------------------------------


def check_migrations(app: Celery) -> Iterator[Finding]:
    """Compare the database with the migrations, if the service has some."""
    root = root_of(str(app.main))
    if not (root / "migrations").is_dir() or not importlib.util.find_spec("alembic"):
        return
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    script = ScriptDirectory.from_config(Config(toml_file=root / "pyproject.toml"))
    wanted = set(script.get_heads())
    current = asyncio.run(_current_heads(root))
    if current == wanted:
        text = f"the database is at {', '.join(sorted(wanted)) or 'no revision'}"
        yield Finding("ok", "migrations", text)
        return
    known = {each.revision for each in script.walk_revisions()}
    if current - known:
        text = f"the database is at {some(sorted(current - known))}, which isn't in migrations/"
        fix = "Another release has migrated it. Deploy that one, or one that is newer."
        yield Finding("broken", "migrations", text, fix)
        return
    applied = {each.revision for head in current for each in script.iterate_revisions(head, "base")}
    pending = [each.revision for each in script.walk_revisions() if each.revision not in applied]
    text = f"{len(pending)} pending: {some(pending[::-1])}"
    yield Finding("broken", "migrations", text, "Run `alembic upgrade head` (`make migrate`).")


async def _current_heads(root: Path) -> set[str]:
    from alembic.runtime.migration import MigrationContext
    from sqlalchemy import make_url

    from celery_service.data.database import get_engine, settings

    url = make_url(settings.url.get_secret_value())
    # To connect would create the file.
    if url.get_backend_name() == "sqlite" and not Path(url.database or "").exists():
        return set()
    engine = await get_engine()

    def heads(connection: Any) -> set[str]:
        return set(MigrationContext.configure(connection).get_current_heads())

    async with engine.connect() as connection:
        return await connection.run_sync(heads)
