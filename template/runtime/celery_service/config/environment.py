"""Turn `CELERY_*` environment variables into typed Celery settings.

Celery itself reads four of them; its command line reads those that name an option of a command.
Here every setting of Celery's own option table (`celery.app.defaults`) can be set, as
`CELERY_<SETTING>` and with the type that the table gives it. Whatever can't be understood stops the
process with one line.
"""

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path

from celery_service.config.settings import ConfigurationError
from celery_service.config.values import SETTING_TYPES, from_text

PREFIX = "CELERY_"

# CELERY_BEAT_SCHEDULE is the *file* of `celery beat --schedule`: JSON there would name a file.
# CELERY_BROKER is `celery --broker`: plain Python doesn't read it and would publish elsewhere.
COLLIDING = {
    "CELERY_BEAT_SCHEDULE": (
        "means the schedule file to `celery beat` and the schedule itself to Celery; "
        "set CELERY_BEAT_SCHEDULE_FILENAME for the file, or write the schedule in Python"
    ),
    "CELERY_BROKER": "is read by the `celery` command only; set CELERY_BROKER_URL",
    "BROKER_URL": (
        "overrides CELERY_BROKER_URL in the `celery` command only; set just CELERY_BROKER_URL"
    ),
    "RESULT_BACKEND": (
        "overrides CELERY_RESULT_BACKEND in the `celery` command only; "
        "set just CELERY_RESULT_BACKEND"
    ),
}

# Read or written by Celery outside its option table and its command line. With the LOG ones, a
# worker hands its logging options on to spawned children: celery/app/log.py.
READ_BY_CELERY = {
    f"CELERY_{name}"
    for name in (
        *("BENCH", "BENCH_EVERY", "CONFIG_MODULE", "CUSTOM_WORKER_POOL", "LOADER"),
        *("LOG_FILE", "LOG_LEVEL", "LOG_REDIRECT", "LOG_REDIRECT_LEVEL"),
        *("RDBSIG", "RDB_HOST", "RDB_PORT", "SKIP_CHECKS", "TRACE_APP"),
        *("WORKER_REVOKES_MAX", "WORKER_REVOKE_EXPIRES"),
        *("WORKER_SUCCESSFUL_EXPIRES", "WORKER_SUCCESSFUL_MAX"),
    )
}


def read_settings(environ: Mapping[str, str]) -> dict[str, object]:
    """Return the Celery settings that the environment holds, typed; empty variables count as unset.

    Raises:
        ConfigurationError: A name is unknown or collides with the command line, or a value can't
            be read.
    """
    for variable, reason in COLLIDING.items():
        if environ.get(variable):
            raise ConfigurationError(f"{variable} {reason}.")

    settings: dict[str, object] = {}
    for variable in sorted(environ):
        if not variable.startswith(PREFIX) or not environ[variable]:
            continue
        name = variable.removeprefix(PREFIX).lower()
        value = environ[variable]
        if name.endswith("_file") and name.removesuffix("_file") in SETTING_TYPES:
            name = name.removesuffix("_file")
            if environ.get(variable_of(name)):
                raise ConfigurationError(f"{variable} and {variable_of(name)} are both set.")
            value = _read_secret(variable, value)
        if name in SETTING_TYPES:
            settings[name] = from_text(variable, name, value)
        elif not is_read(variable):
            names = [each for each in map(variable_of, SETTING_TYPES) if each not in COLLIDING]
            raise ConfigurationError(
                f"{variable} is not a setting of Celery{nearest(variable, names)}"
            )
    return settings


def variable_of(setting: str) -> str:
    """Return the environment variable of a setting: `task_acks_late` → `CELERY_TASK_ACKS_LATE`."""
    return PREFIX + setting.upper()


def is_read(variable: str) -> bool:
    """Tell whether Celery or its command line reads a variable that isn't one of a setting."""
    return variable in READ_BY_CELERY or variable in _command_line_variables()


def nearest(name: str, candidates: Iterable[str]) -> str:
    """Return the end of an error message: the most similar candidate, or where they are listed."""
    match = most_similar(name, candidates)
    return f"; did you mean {match}?" if match else "; docs/dev/celery.md links to all of them."


def most_similar(name: str, candidates: Iterable[str]) -> str | None:
    """Return the candidate that `name` is most likely a misspelling of, or None."""
    match = difflib.get_close_matches(name, list(candidates), n=1, cutoff=0.75)
    return match[0] if match else None


def _read_secret(variable: str, path: str) -> str:
    try:
        value = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigurationError(f"{variable}: {path!r} can't be read: {reason}.") from None
    if not value:
        raise ConfigurationError(f"{variable}: {path!r} is empty.")
    return value


def _command_line_variables() -> set[str]:
    """Return what `celery` and its commands read, by click's `auto_envvar_prefix`."""
    # Imported here: it loads the whole command line, and only unknown variables need it.
    from celery.bin.celery import celery as group

    options = [("", option) for option in group.params]
    for name, command in group.commands.items():
        options += [(f"{name}_", option) for option in command.params]
    return {f"{PREFIX}{prefix}{option.name}".upper() for prefix, option in options}
