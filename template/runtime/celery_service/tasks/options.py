"""Checks the options of `apply_async` before the message is sent.

https://docs.celeryq.dev/en/stable/userguide/calling.html
"""

import math
from collections.abc import Callable, Mapping
from datetime import datetime
from numbers import Real
from typing import Any

from kombu import Queue

from celery_service.tasks.arguments import InvalidArguments


def check(task: str, args: object, kwargs: object, options: Mapping[str, object]) -> None:
    """Refuse options that can't be sent, or that a worker can't read.

    Args:
        task: The name of the task, for messages.
        args: The positional arguments of the task.
        kwargs: The keyword arguments of the task.
        options: The options of `apply_async`. Options that are not in _RULES aren't checked.

    Raises:
        InvalidArguments: An option is invalid. The message says which values are allowed.
    """
    for name, value in {"args": args, "kwargs": kwargs, **options}.items():
        if value is not None and name in _RULES:
            is_right, must_be = _RULES[name]
            if not is_right(value):
                raise InvalidArguments(f"{task}: {name} must be {must_be}, not {_shown(value)}")


def _is_seconds(value: Any) -> bool:
    return isinstance(value, Real) and math.isfinite(value)


def _is_limit(value: Any) -> bool:
    return _is_seconds(value) and value > 0


def _is_moment(value: Any) -> bool:
    # A retry passes `expires` as text, as it was in the message.
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            return False
    return isinstance(value, datetime) and value.utcoffset() is not None


def _is_whole_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


_SECONDS = "a number of seconds"
_MOMENT = "a datetime with a time zone, such as datetime.now(UTC)"
_LIMIT = (_is_limit, f"{_SECONDS} above 0")

#: Option → a check, and the allowed values as text. None is always allowed and means the default.
_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "args": (lambda value: isinstance(value, list | tuple), "a list or a tuple"),
    "kwargs": (
        lambda value: isinstance(value, Mapping) and all(isinstance(key, str) for key in value),
        "a dict with a text for each key",
    ),
    "countdown": (_is_seconds, _SECONDS),
    "eta": (_is_moment, _MOMENT),
    "expires": (
        lambda value: _is_seconds(value) or _is_moment(value),
        f"{_SECONDS}, or {_MOMENT}",
    ),
    "priority": (
        lambda value: _is_whole_number(value) and value < 256,
        "a whole number from 0 to 255",
    ),
    "queue": (lambda value: isinstance(value, str | Queue), "the name of a queue"),
    "retries": (_is_whole_number, "a whole number, 0 or more"),
    "soft_time_limit": _LIMIT,
    "task_id": (lambda value: isinstance(value, str), "a text"),
    "time_limit": _LIMIT,
}


def _shown(value: object) -> str:
    """Return a value for an error message: a number itself, the type of any other value."""
    if isinstance(value, datetime):
        return "one without"
    return str(value) if isinstance(value, Real) else type(value).__name__
