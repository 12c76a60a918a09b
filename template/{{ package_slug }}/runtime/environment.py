"""Owned by the template: `copier update` changes this file.

Turn `CELERY_*` environment variables into typed Celery settings.

Celery itself reads four of them; its command line reads those that name an option of a command.
Here every setting of Celery's own option table (`celery.app.defaults`) can be set, as
`CELERY_<SETTING>` and with the type that the table gives it. Whatever can't be understood stops the
process with one line.
"""

import difflib
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path

from celery.app.defaults import NAMESPACES, flatten

PREFIX = "CELERY_"

_OPTIONS = dict(flatten(NAMESPACES))

#: Celery's option table: name of the setting → its default.
SETTING_DEFAULTS: dict[str, object] = {name: option.default for name, option in _OPTIONS.items()}

#: Name of the setting → its type as the table spells it, but where Celery takes something else.
SETTING_TYPES: dict[str, str] = {name: str(option.type) for name, option in _OPTIONS.items()} | {
    "beat_cron_starting_deadline": "int",
    "broker_use_ssl": "bool or dict",
    "result_compression": "string",
    "task_annotations": "json",
    "task_default_delivery_mode": "int or string",
    "task_default_priority": "int",
    "task_routes": "json",
    "worker_concurrency": "int or auto",
}

# A setting with such a type needs Python: see `celeryconfig.py` in docs/dev/celery.md.
NOT_A_STRING = {"any"}

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
    "CELERY_BENCH",
    "CELERY_BENCH_EVERY",
    "CELERY_CONFIG_MODULE",
    "CELERY_CUSTOM_WORKER_POOL",
    "CELERY_LOADER",
    "CELERY_LOG_FILE",
    "CELERY_LOG_LEVEL",
    "CELERY_LOG_REDIRECT",
    "CELERY_LOG_REDIRECT_LEVEL",
    "CELERY_RDBSIG",
    "CELERY_RDB_HOST",
    "CELERY_RDB_PORT",
    "CELERY_SKIP_CHECKS",
    "CELERY_TRACE_APP",
    "CELERY_WORKER_REVOKES_MAX",
    "CELERY_WORKER_REVOKE_EXPIRES",
    "CELERY_WORKER_SUCCESSFUL_EXPIRES",
    "CELERY_WORKER_SUCCESSFUL_MAX",
}


class ConfigurationError(SystemExit):
    """The configuration can't work: one line names the variable, what is wrong, what is allowed.

    A `SystemExit`, so that every process that imports the app prints that line and exits with
    status 1 instead of showing a traceback.
    """


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
            settings[name] = parse(variable, SETTING_TYPES[name], value)
        elif variable not in READ_BY_CELERY and variable not in _command_line_variables():
            raise ConfigurationError(_unknown(variable))
    return settings


def variable_of(setting: str) -> str:
    """Return the environment variable of a setting: `task_acks_late` → `CELERY_TASK_ACKS_LATE`."""
    return PREFIX + setting.upper()


def nearest(name: str, candidates: list[str]) -> str:
    """Return the end of an error message: the most similar candidate, or where they are listed."""
    match = difflib.get_close_matches(name, candidates, n=1, cutoff=0.75)
    return f"; did you mean {match[0]}?" if match else "; docs/dev/celery.md lists them all."


def parse(variable: str, type_name: str, value: str) -> object:
    """Return `value` as the type that Celery's option table names.

    Raises:
        ConfigurationError: The value isn't one of that type, or the type has no form as text.
    """
    if type_name in NOT_A_STRING:
        raise ConfigurationError(f"{variable} has no form as text; set it in celeryconfig.py.")
    read, expected = _READERS[type_name]
    try:
        return read(value.strip())
    except (ValueError, KeyError):
        # JSON may hold a password; numbers and words don't.
        shown = "can't be read" if "JSON" in expected else f"is {value!r}"
        raise ConfigurationError(f"{variable} {shown}; it must be {expected}.") from None


def _unknown(variable: str) -> str:
    names = [variable_of(name) for name in SETTING_TYPES if variable_of(name) not in COLLIDING]
    return f"{variable} is not a setting of Celery{nearest(variable, names)}"


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


def _bool(value: str) -> bool:
    words = {"true": True, "yes": True, "on": True, "1": True}
    words |= {"false": False, "no": False, "off": False, "0": False}
    return words[value.lower()]


def _int(value: str) -> int | None:
    return None if value.lower() == "none" else int(value)


def _float(value: str) -> float | None:
    if value.lower() == "none":
        return None
    number = float(value)
    if math.isnan(number):
        raise ValueError(value)
    return number


def _list(value: str) -> list[object]:
    if not value.startswith("["):
        return [item.strip() for item in value.split(",") if item.strip()]
    items = json.loads(value)
    return list(items)


def _tuple(value: str) -> tuple[object, ...]:
    return tuple(_list(value))


def _dict(value: str) -> dict[str, object] | None:
    if value.lower() == "none":
        return None
    items = json.loads(value)
    if not isinstance(items, dict):
        raise ValueError(value)
    return items


def _json_collection(value: str) -> object:
    if not value.startswith(("{", "[")):
        raise ValueError(value)
    return json.loads(value)


def _bool_or_dict(value: str) -> object:
    return _dict(value) if value.startswith("{") else _bool(value)


def _int_or_string(value: str) -> int | str:
    return int(value) if value.isdecimal() else value


def _int_or_auto(value: str) -> int | str | None:
    return value.lower() if value.lower() == "auto" else _int(value)


_READERS: dict[str, tuple[Callable[[str], object], str]] = {
    "bool": (_bool, "true or false (or yes, no, on, off, 1, 0)"),
    "bool or dict": (_bool_or_dict, 'true, false or a JSON object such as {"key": "value"}'),
    "bytes": (str.encode, "text"),
    "dict": (_dict, 'a JSON object such as {"key": "value"}'),
    "float": (_float, "a number, or none"),
    "int": (_int, "a whole number, or none"),
    "int or auto": (_int_or_auto, "a whole number, or auto"),
    "int or string": (_int_or_string, "a whole number or a word"),
    "json": (_json_collection, "a JSON object or list"),
    "list": (_list, 'a JSON list or words with commas, such as ["a", "b"] or a,b'),
    "string": (str, "text"),
    "tuple": (_tuple, 'a JSON list or words with commas, such as ["a", "b"] or a,b'),
}
