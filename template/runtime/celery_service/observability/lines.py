"""Makes a line of each log record, in one of three formats."""

import datetime
import json
import logging
import time
import traceback
from collections.abc import Mapping
from decimal import Decimal
from enum import Enum
from functools import lru_cache
from pathlib import PurePath
from typing import Any
from uuid import UUID

import structlog
from structlog.typing import Processor

from celery_service.observability import context, correlation, redaction

Entry = dict[str, Any]

#: A longer traceback is cut in the middle, as one of a recursion.
LONGEST = 20_000

#: What every line begins with.
_FIRST = frozenset(("timestamp", "level", "event", "logger"))
# What a record of the standard library has, besides what the caller passes as `extra`.
_OF_A_RECORD = frozenset(vars(logging.makeLogRecord({}))) | {
    *("message", "asctime", "taskName"),
    "color_message",  # uvicorn's, the message again
}
_OWN = frozenset(("service_fields", "service_entry", "service_json"))
#: Celery passes the arguments of tasks as `data`.
_OF_CELERY = frozenset(("data",))

#: Every line goes through these: see `logging.add_processor`.
processors: list[Processor] = []


def write(logger: logging.Logger, level: int, event: str, fields: Mapping[str, Any]) -> None:
    """Write a line that each task or request has.

    `logger.log`, which structlog calls too, looks for its caller. That costs as much as the line.
    """
    if logger.isEnabledFor(level):
        extra = {"service_fields": fields}
        record = logger.makeRecord(logger.name, level, "", 0, event, (), None, extra=extra)
        logger.handle(record)


class Prepare(logging.Filter):
    """Adds to a record what the formats below make lines of, once for all handlers."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether to write the record: a processor may drop it."""
        if not hasattr(record, "service_entry"):
            try:
                _prepare(record)
            except structlog.DropEvent:
                record.service_entry = None
            except Exception as error:
                # A log line must not make the caller fail, whatever it gets.
                failed = logging.LogRecord(record.name, record.levelno, "", 0, "", (), None)
                told = f"{_default(record.msg)!s:.1000} can't be logged: {_default(error)}"
                failed.msg = redaction.redact_text(told)
                entry = _entry(failed)
                record.service_entry, record.service_json = entry, _json(entry)
        return getattr(record, "service_entry", None) is not None


class Json(logging.Formatter):
    """One object of JSON a line, for machines."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        return str(record.service_json)  # type: ignore[attr-defined]


class KeyValue(logging.Formatter):
    """`key=value` pairs (logfmt), for `grep`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        entry: Entry = record.service_entry  # type: ignore[attr-defined]
        return " ".join(f"{key}={_quoted(value)}" for key, value in entry.items())


class Console(logging.Formatter):
    """For people: short, with colours on a terminal. A traceback has lines of its own."""

    #: In every line of a task, and rarely what a developer looks for.
    LESS = frozenset(("timestamp", "worker", "queue", "retries", "correlation_id", "runtime"))

    def __init__(self, *, colors: bool) -> None:
        """Create the format."""
        super().__init__()
        self._render = structlog.dev.ConsoleRenderer(colors=colors, sort_keys=False)

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, and the lines of a traceback."""
        given: Entry = record.service_entry  # type: ignore[attr-defined]
        entry = {"timestamp": time.strftime("%H:%M:%S", time.localtime(record.created))}
        entry |= {key: value for key, value in given.items() if key not in self.LESS}
        if given.get("retries"):
            entry["retries"] = given["retries"]
        if given.get("correlation_id") not in {None, given.get("task_id")}:
            entry["correlation_id"] = given["correlation_id"]
        if "runtime" in given:
            entry["runtime"] = f"{given['runtime']:.3f}"
        if entry["logger"] == "celery_service.events":
            del entry["logger"]
        try:
            return str(self._render(None, "", dict(entry)))
        except Exception:  # the `repr` of a value fails
            return str(self._render(None, "", _plain(entry)))


def _prepare(record: logging.LogRecord) -> None:
    entry: Any = _entry(record)
    for process in processors:
        entry = process(None, record.levelname.lower(), entry)
    line = _json(entry)
    if redaction.is_suspicious(line):
        entry = redaction.redact(entry, default=_default)
        line = _json(entry)
    record.service_entry, record.service_json = entry, line


def _entry(record: logging.LogRecord) -> Entry:
    entry: Entry = {
        "timestamp": _timestamp(record.created),
        "level": record.levelname.lower(),
        "event": _message(record),
        "logger": record.name,
    }
    if of_task := context.fields():
        entry.update(of_task)
    if id_ := correlation.current():
        entry["correlation_id"] = id_
    given = structlog.contextvars.get_contextvars()
    fields = getattr(record, "service_fields", None)
    given.update(_extra(record) if fields is None else fields)
    entry.update(given if _FIRST.isdisjoint(given) else _renamed(given))
    if record.exc_info and record.exc_info[1] is not None:
        entry["exception"] = "".join(traceback.format_exception(record.exc_info[1])).rstrip()
    elif record.exc_text:
        entry["exception"] = record.exc_text
    if record.stack_info:
        entry["stack"] = record.stack_info
    for name in ("exception", "stack"):
        if len(str(entry.get(name, ""))) > LONGEST:
            entry[name] = shortened(str(entry[name]))
    return entry


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage().strip()
    except (TypeError, ValueError, KeyError):  # the arguments don't fit
        return f"{record.msg} {_default(record.args)}"


def shortened(text: str) -> str:
    """Return a text that is too long without its middle."""
    begin, end = LONGEST // 4, LONGEST // 4 * 3
    return f"{text[:begin]}\n… {len(text) - begin - end} characters …\n{text[-end:]}"


def _extra(record: logging.LogRecord) -> Entry:
    """Return what the caller of the standard library has passed as `extra`."""
    given = record.__dict__.keys() - _OF_A_RECORD - _OWN
    if record.name.startswith("celery."):
        given -= _OF_CELERY
    return {name: getattr(record, name) for name in sorted(given)}


def _renamed(given: Entry) -> Entry:
    return {f"{name}_" if name in _FIRST else name: value for name, value in given.items()}


def _timestamp(created: float) -> str:
    second = int(created)
    return f"{_second(second)}.{int((created - second) * 1e6):06d}Z"


@lru_cache(maxsize=2)
def _second(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))


def _json(entry: Entry) -> str:
    try:
        return _encode(entry)
    except (TypeError, ValueError, RecursionError):
        # A key that is no text, NaN, a list in itself.
        return _encode(_plain(entry))


def _default(value: Any) -> Any:
    """Return what stands for a value that JSON doesn't know."""
    match value:
        case str():
            return value
        case datetime.date() | datetime.time():
            return value.isoformat()
        case UUID() | PurePath() | Decimal() | datetime.timedelta():
            return str(value)
        case Enum():
            return value.value
        case set() | frozenset():
            return list(value)
        case bytes():
            return value.decode("utf-8", "backslashreplace")
    try:
        return repr(value)
    except Exception as error:
        return f"<{type(value).__name__}, whose repr raises {type(error).__name__}>"


# Other characters than ASCII are escaped: standard error may have any encoding.
_encode = json.JSONEncoder(default=_default, allow_nan=False).encode


def _plain(value: Any, depth: int = 0) -> Any:
    if depth > 20:
        return "…"
    if isinstance(value, Mapping):
        return {
            key if isinstance(key, str) else str(_default(key)): _plain(each, depth + 1)
            for key, each in value.items()
        }
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(each, depth + 1) for each in value]
    if isinstance(value, float):
        return value if value - value == 0 else str(value)
    return value if isinstance(value, str | int | None) else _plain(_default(value), depth + 1)


def _quoted(value: Any) -> str:
    text = value if isinstance(value, str) else _json(value)
    if text and text.isprintable() and not any(sign in text for sign in ' "='):
        return text
    return json.dumps(text, ensure_ascii=False)
