"""Checks of the messages that a worker receives.

Celery assumes that a message for a task has the form that Celery gives it. Otherwise the worker's
main process can end with an exception. The broker then delivers the message to the next worker,
and that one ends too. Any program that can reach the broker can send such a message.
"""

from collections.abc import Callable, Iterable
from datetime import UTC
from itertools import chain
from typing import Any

from celery.exceptions import InvalidTaskError
from celery.utils.time import maybe_iso8601

#: How many levels of lists and mappings an argument may have. A worker pickles the arguments for
#: its child processes. That fails at about 490 levels, by Python's limit of 1000 nested calls.
MAX_DEPTH = 100

_CONTAINERS = (list, tuple, dict)


def is_too_deep(*containers: object) -> bool:
    """Tell whether a value in these lists and mappings is nested deeper than MAX_DEPTH."""
    level = _containers(containers)
    for _ in range(MAX_DEPTH + 1):
        if not level:
            return False
        level = _containers(chain.from_iterable(map(_items, level)))
    return bool(level)


def _containers(values: Iterable[object]) -> list[Any]:
    # Each object once: otherwise a list that contains itself twice would double at each level.
    return list({id(each): each for each in values if isinstance(each, _CONTAINERS)}.values())


def _items(container: Any) -> Iterable[object]:
    return container.values() if isinstance(container, dict) else container


def check(message: Any) -> None:
    """Refuse a message for a task if it would end the worker. Messages for no task pass.

    Raises:
        InvalidTaskError: The message says which part is wrong.
        DecodeError: The body isn't JSON.
        ContentDisallowed: The body is of a type that isn't accepted, such as pickle.
    """
    if message.errors:  # Kombu can't decompress it.
        raise message.errors[0][1]
    payload, headers = message.payload, message.headers
    # Celery 3 puts everything into the body (message protocol 1).
    if isinstance(payload, dict) and ("args" in payload or "task" not in headers):
        headers = payload | headers
        payload = [payload.get("args", []), payload.get("kwargs", {}), {}]
    if headers.get("task") is None:
        return
    if not is_task(headers):
        raise InvalidTaskError("the name or the id of the task isn't text")
    match payload:
        case [list() as args, dict() as kwargs, dict() | None]:
            pass
        case _:
            raise InvalidTaskError("the body isn't [args, kwargs, options]")
    for name, is_valid in _HEADERS.items():
        if headers.get(name) is not None and not is_valid(headers[name]):
            raise InvalidTaskError(f"the header {name} can't be {headers[name]!r:.100}")
    if is_too_deep(args, kwargs, headers, message.properties):
        raise InvalidTaskError(f"an argument or header is nested deeper than {MAX_DEPTH} levels")


def is_task(headers: Any) -> bool:
    """Tell whether headers have the name of a task, and an id that can be a part of a Redis key."""
    name, id_ = headers.get("task"), headers.get("id")
    try:
        return isinstance(name, str) and isinstance(id_, str) and id_.encode() != b""
    except UnicodeEncodeError:
        return False


def _is_time(value: Any) -> bool:
    try:
        time: Any = maybe_iso8601(value)
        time.astimezone(UTC)
    except Exception:
        return False
    return True


def _is_limit(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and abs(value) < 1e9)


def _is_pair_of_limits(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and all(map(_is_limit, value))


def _is_list_of_names(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(each, str) for each in value)


#: The headers that Celery reads in the worker's main process, with a check of each.
_HEADERS: dict[str, Callable[[Any], bool]] = {
    "eta": _is_time,
    "expires": _is_time,
    "timelimit": _is_pair_of_limits,
    "stamped_headers": _is_list_of_names,
    "stamps": lambda value: isinstance(value, dict),
}
