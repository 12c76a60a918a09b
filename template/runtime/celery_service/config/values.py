"""Checks the values of settings: their type, from Celery's own option table, and their range.

The values come from variables, as text, or from `celeryconfig.py`, as Python objects. An invalid
value stops the process with one line.
"""

import math
from datetime import timedelta, tzinfo
from typing import Annotated, Any, NamedTuple
from zoneinfo import ZoneInfo

from celery.app.defaults import NAMESPACES, flatten
from celery.utils.time import rate
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    InstanceOf,
    TypeAdapter,
    ValidationError,
)
from pydantic_core import from_json

from celery_service.config.settings import ConfigurationError

_OPTIONS: dict[str, Any] = dict(flatten(NAMESPACES))

#: Setting → its type, as Celery's table names it. The exceptions below are settings that accept
#: other types than the table says, or not all values of the type.
SETTING_TYPES: dict[str, str] = {name: str(option.type) for name, option in _OPTIONS.items()} | {
    "beat_cron_starting_deadline": "int",
    "broker_connection_timeout": "seconds",
    "broker_pool_acquire_timeout": "seconds",
    "broker_read_url": "address",
    "broker_url": "address",
    "broker_use_ssl": "bool or dict",
    "broker_write_url": "address",
    "redis_max_connections": "count or none",
    "redis_socket_connect_timeout": "seconds",
    "redis_socket_timeout": "seconds",
    "result_backend": "address",
    # Celery's default is -1: no cache.
    "result_cache_max": "count or -1",
    "result_compression": "string",
    "result_expires": "expiry",
    "result_failure_expires": "expiry",
    # Celery's default is infinite.
    "result_backend_max_retries": "retries",
    "task_annotations": "json",
    "task_default_delivery_mode": "int or string",
    "task_default_priority": "int",
    "task_default_rate_limit": "rate",
    "task_queues": "dict or list",
    "task_routes": "json",
    "task_soft_time_limit": "seconds",
    "task_time_limit": "seconds",
    "timezone": "time zone",
    "worker_concurrency": "count or auto",
    "worker_eta_task_limit": "count or none",
    "worker_max_memory_per_child": "count",
    "worker_max_tasks_per_child": "count",
    # 0 means no limit.
    "worker_prefetch_multiplier": "number of messages",
    "worker_proc_alive_timeout": "seconds",
    "worker_redirect_stdouts_level": "int or string",
    "worker_soft_shutdown_timeout": "grace period",
}

# Settings of this type can only be set in Python: see `celeryconfig.py` in docs/dev/celery.md.
NOT_A_STRING = "any"


def _none(value: object) -> object:
    return None if isinstance(value, str) and value.lower() == "none" else value


def _not_nan(value: float) -> float:
    if math.isnan(value):
        raise ValueError("not a number")
    return value


def _json(value: object) -> object:
    return from_json(value) if isinstance(value, str) else value


def _words(value: object) -> object:
    if not isinstance(value, str):
        return value
    if value.startswith("["):
        return from_json(value)
    return [word.strip() for word in value.split(",") if word.strip()]


def _auto(text: str) -> str:
    if text.lower() != "auto":
        raise ValueError("neither a number nor auto")
    return "auto"


def _without_blanks(text: str) -> str:
    # Celery reads these variables again, without removing blanks.
    if text.split() != [text]:
        raise ValueError("has a blank")
    return text


def _time_zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (OSError, KeyError) as error:  # a folder of zones, an unknown zone
        raise ValueError("no time zone") from error
    return name


def _rate(value: str) -> str:
    try:
        a_second = rate(value)
    except KeyError as error:
        raise ValueError("no unit") from error
    if not 0 <= a_second < math.inf:
        raise ValueError("no rate")
    return value


_OR_NONE = BeforeValidator(_none)
_WORDS = BeforeValidator(_words)
_LEFT_TO_RIGHT = Field(union_mode="left_to_right")
_Number = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Integer = Annotated[int, Field(ge=0)]
_Count = Annotated[int, Field(ge=1)]
_Age = Annotated[timedelta, Field(strict=True, ge=timedelta(0))]
_Auto = Annotated[str, AfterValidator(_auto)]
_Object = Annotated[dict[str, Any], BeforeValidator(_json)]
_List = Annotated[list[Any], BeforeValidator(_json)]


class _Type(NamedTuple):
    """A parser for values of a type, and the allowed values for error messages."""

    adapter: TypeAdapter[Any]
    allowed: str
    #: The allowed values in Python, if `allowed` describes JSON.
    in_python: str = ""
    #: Whether Celery also accepts objects of other classes, such as a router.
    objects: bool = False


def _type(kind: Any, allowed: str, in_python: str = "", *, objects: bool = False) -> _Type:
    return _Type(TypeAdapter(kind), allowed, in_python, objects)


_OBJECT = 'a JSON object such as {"key": "value"}'
_LIST = "a JSON list, or words with commas such as a,b"
TYPES: dict[str, _Type] = {
    "address": _type(Annotated[str, AfterValidator(_without_blanks)], "an address without blanks"),
    "bool": _type(bool, "true or false (or yes, no, on, off, 1, 0)"),
    "bool or dict": _type(bool | _Object, f"true, false or {_OBJECT}", "a bool or a dict"),
    "bytes": _type(bytes, "text", objects=True),
    "count": _type(_Count, "a whole number, 1 or more"),
    "count or -1": _type(Annotated[int, Field(ge=-1)], "a whole number, -1 or more"),
    "count or auto": _type(_Count | _Auto, "a whole number, 1 or more, or auto"),
    "count or none": _type(
        Annotated[_Count | None, _OR_NONE], "a whole number, 1 or more, or none"
    ),
    "dict": _type(Annotated[_Object | None, _OR_NONE], _OBJECT, "a dict"),
    "dict or list": _type(
        Annotated[_Object | list[Any] | None, _OR_NONE], _OBJECT, "a dict or a list", objects=True
    ),
    "expiry": _type(
        Annotated[_Number | _Age | None, _LEFT_TO_RIGHT, _OR_NONE],
        "a number of seconds, 0 or more, or none",
    ),
    "float": _type(Annotated[_Number | None, _OR_NONE], "a number, 0 or more, or none"),
    "grace period": _type(_Number, "a number of seconds, 0 or more"),
    "int": _type(Annotated[_Integer | None, _OR_NONE], "a whole number, 0 or more, or none"),
    "int or string": _type(
        Annotated[_Integer | str, _LEFT_TO_RIGHT], "a whole number or a word", objects=True
    ),
    "json": _type(_Object | _List, "a JSON object or list", "a dict or a list", objects=True),
    "list": _type(Annotated[list[Any], _WORDS], _LIST, "a list", objects=True),
    "number of messages": _type(_Integer, "a whole number, 0 or more"),
    "rate": _type(
        Annotated[_Number | Annotated[str, AfterValidator(_rate)], _LEFT_TO_RIGHT],
        "a number of tasks a second, or such as 10/m",
    ),
    "retries": _type(
        Annotated[float, Field(ge=0), AfterValidator(_not_nan)], "a number, 0 or more, or inf"
    ),
    "seconds": _type(
        Annotated[Annotated[float, Field(gt=0, allow_inf_nan=False)] | None, _OR_NONE],
        "a number of seconds above 0, or none",
    ),
    "string": _type(str, "text", objects=True),
    "time zone": _type(
        Annotated[str, AfterValidator(_time_zone)] | InstanceOf[tzinfo],
        "a time zone such as UTC or Europe/Berlin",
    ),
    "tuple": _type(Annotated[tuple[Any, ...], _WORDS], _LIST, "a tuple", objects=True),
}
# Types whose values may contain a password.
_SECRET = ("text", "an address without blanks")
_PLAIN = (bool, bytes, dict, float, int, list, set, str, tuple)


def from_text(called: str, setting: str, text: str) -> object:
    """Parse the value of a setting.

    Args:
        called: The name for error messages, such as the name of the variable.
        setting: The name of the setting in SETTING_TYPES.
        text: The value of the variable.

    Raises:
        ConfigurationError: The value is invalid, or the setting can't be set as text.
    """
    name = SETTING_TYPES[setting]
    if name == NOT_A_STRING:
        raise ConfigurationError(f"{called} can't be set as text; set it in celeryconfig.py.")
    type_ = TYPES[name]
    try:
        return type_.adapter.validate_python(text if name == "address" else text.strip())
    except ValidationError:
        hidden = "JSON" in type_.allowed or type_.allowed in _SECRET
        shown = "can't be read" if hidden else f"is {text!r}"
        raise ConfigurationError(f"{called} {shown}; it must be {type_.allowed}.") from None


def from_python(called: str, setting: str, value: object) -> object:
    """Return the value of a setting in `celeryconfig.py`, converted to the type Celery expects.

    Raises:
        ConfigurationError: The value is invalid.
    """
    name = SETTING_TYPES[setting]
    if name == NOT_A_STRING or (value is None and _OPTIONS[setting].default is None):
        return value
    type_ = TYPES[name]
    if type_.objects and (value is not None and not isinstance(value, _PLAIN)):
        return value
    if name == "json" and isinstance(value, str):
        return value  # the import path of a router or of annotations
    allowed = type_.in_python or type_.allowed
    try:
        if isinstance(value, bool) and "bool" not in name:
            raise ValueError("True is no number")
        return type_.adapter.validate_python(value)
    except ValueError:  # pydantic's ValidationError is one, too
        hidden = bool(type_.in_python) or allowed in _SECRET
        shown = f"is of type {type(value).__name__}" if hidden else f"is {value!r}"
        raise ConfigurationError(f"{called} {shown}; it must be {allowed}.") from None
