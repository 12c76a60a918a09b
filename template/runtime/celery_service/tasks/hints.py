"""Converts the type hints of a task to hints that pydantic can check."""

import collections.abc
import importlib
import inspect
import sys
import types
from collections.abc import Callable
from inspect import Parameter
from types import SimpleNamespace
from typing import (
    Annotated,
    Any,
    Literal,
    NotRequired,
    Required,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

import typing_extensions
from pydantic import AfterValidator, TypeAdapter, with_config

# pydantic checks the items of these types while the body iterates, or not at all. So the body gets
# a list, or an iterator over a list.
_LISTS = {
    collections.abc.Collection,
    collections.abc.Container,
    collections.abc.Iterable,
    collections.abc.Reversible,
}
_ITERATORS = {collections.abc.Generator, collections.abc.Iterator}


def signature(body: Callable[..., Any]) -> inspect.Signature:
    """Return the signature of a body. Its hints may not be evaluated yet."""
    try:
        return inspect.signature(body)
    except NameError:
        # Python 3.14 evaluates hints here. One has a name that only type checkers import.
        library = importlib.import_module("annotationlib")
        options: dict[str, Any] = {"annotation_format": library.Format.FORWARDREF}
        return inspect.signature(body, **options)


def hint_of(parameter: Parameter, names: dict[str, Any]) -> Any:
    """Return the hint of a parameter for pydantic; `Any` if pydantic can't check it."""
    if parameter.annotation is parameter.empty:
        return Any
    try:
        holder = SimpleNamespace(__annotations__={"hint": parameter.annotation})
        hint = _checked_at_once(get_type_hints(holder, names, include_extras=True)["hint"])
        TypeAdapter(hint)
    except Exception:
        return Any
    return hint


def _checked_at_once(hint: Any) -> Any:
    """Return a hint that pydantic checks completely before the body begins."""
    origin, parts = get_origin(hint), get_args(hint)
    if (origin or hint) in _LISTS | _ITERATORS:
        items: Any = list[_checked_at_once(parts[0]) if parts else Any]  # type: ignore[misc]
        return Annotated[items, AfterValidator(iter)] if (origin or hint) in _ITERATORS else items
    if is_typeddict(hint) and sys.version_info < (3, 12):
        return _typed_dict(hint)
    if not parts or origin in (Literal, collections.abc.Callable):
        return hint
    if origin is Annotated:
        return Annotated[(_checked_at_once(parts[0]), *parts[1:])]
    checked = tuple(map(_checked_at_once, parts))
    if origin is types.UnionType:
        return Union[checked]  # noqa: UP007
    return hint if checked == parts else origin[checked if len(checked) > 1 else checked[0]]


def _typed_dict(hint: Any) -> Any:
    """Return a TypedDict of typing_extensions, which pydantic needs before Python 3.12."""
    keys: dict[str, Any] = {}
    for name, part in get_type_hints(hint, include_extras=True).items():
        keys[name] = _checked_at_once(part)
        if get_origin(part) not in (Required, NotRequired):
            is_required = name in hint.__required_keys__
            keys[name] = Required[keys[name]] if is_required else NotRequired[keys[name]]
    make: Any = typing_extensions.TypedDict
    config: Any = getattr(hint, "__pydantic_config__", {})
    return with_config(config)(make(hint.__name__, keys))
