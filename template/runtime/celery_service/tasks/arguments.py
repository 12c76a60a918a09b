"""Checks the arguments of a task against its type hints. Invalid arguments don't reach the body.

pydantic converts arguments in its lax mode, because JSON has neither dates nor UUIDs, and a sender
may have only text. An `int` accepts "5" and a `date` accepts "2030-01-31", but a `str` refuses 5.
https://docs.pydantic.dev/latest/concepts/conversion_table/

Celery's own `pydantic=True` supports only hints that are a `BaseModel`.
"""

import functools
import inspect
from collections.abc import Callable
from inspect import Parameter
from pathlib import PurePath
from typing import Any

from kombu.utils.json import register_type
from pydantic import BaseModel, ValidationError, validate_call

from celery_service.tasks.hints import hint_of, signature

Call = tuple[tuple[Any, ...], dict[str, Any]]

# Celery encodes dates, UUIDs and decimals. Models and paths are sent as plain JSON, and the hint
# converts them back.
register_type(BaseModel, None, lambda model: model.model_dump(mode="json"))
register_type(PurePath, None, str)


class InvalidArguments(TypeError):
    """A call that can't succeed: an argument is wrong, missing or unknown. It is never retried."""


class Arguments:
    """The arguments that a task takes.

    The signature is read when it is first needed, so that importing tasks is fast. If a hint can't
    be resolved, or pydantic doesn't support it, its argument isn't checked.

    Args:
        task: The name of the task, for messages.
        body: The function with the signature.
        bound: Whether the first parameter is the task itself, which is not an argument here.
    """

    def __init__(self, task: str, body: Callable[..., Any], *, bound: bool) -> None:
        self._task = task
        self._body = body
        self._bound = bound

    def check(self, args: Any, kwargs: Any, *, complete: bool = True) -> Call:
        """Return the arguments of a call, converted to the types of the hints.

        If not `complete`, arguments may be missing, such as the result of the previous task.

        Raises:
            InvalidArguments: The body doesn't take these arguments.
        """
        try:
            return self._convert(*args, **kwargs)
        except ValidationError as error:
            problems = error.errors(include_url=False, include_context=False)
            if not complete:
                problems = [each for each in problems if not each["type"].startswith("missing_")]
            if problems:
                raise self._invalid(problems) from None
        return args, kwargs

    def checked(self, body: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that checks its arguments and then calls the body."""

        @functools.wraps(body)
        def run(*args: Any, **kwargs: Any) -> Any:
            itself, given = (args[:1], args[1:]) if self._bound else ((), args)
            positional, keywords = self.check(given, kwargs)
            return body(*itself, *positional, **keywords)

        return run

    @functools.cached_property
    def _parameters(self) -> list[Parameter]:
        parameters = list(signature(self._body).parameters.values())
        return parameters[1:] if self._bound else parameters

    @functools.cached_property
    def _convert(self) -> Callable[..., Call]:
        names = getattr(inspect.unwrap(self._body), "__globals__", {})
        hints = {each.name: hint_of(each, names) for each in self._parameters}

        def call(*args: Any, **kwargs: Any) -> Call:
            return args, kwargs

        # pydantic uses the signature of the body, but calls this function.
        call.__annotations__ = hints
        vars(call)["__signature__"] = inspect.Signature(
            [each.replace(annotation=hints[each.name]) for each in self._parameters]
        )
        return validate_call(call)

    def _invalid(self, problems: list[Any]) -> InvalidArguments:
        """Describe the problems and the parameters. Don't show values: they may be private."""
        positional = [each.name for each in self._parameters if each.kind < each.VAR_POSITIONAL]
        texts = []
        for problem in problems[:3]:
            place, *inside = problem["loc"]
            if isinstance(place, int):
                place = positional[place] if place < len(positional) else f"number {place + 1}"
            where = ".".join(map(str, [place, *inside]))
            texts.append(f"argument {where:.100}: {problem['msg']:.200}")
        # Parameters with their stars, but without hints and defaults.
        bare: dict[str, Any] = {"annotation": Parameter.empty, "default": Parameter.empty}
        takes = ", ".join(str(each.replace(**bare)) for each in self._parameters)
        text = f"{self._task}: {'; '.join(texts)}; it takes ({takes})"
        return InvalidArguments(" ".join(text.split()))
