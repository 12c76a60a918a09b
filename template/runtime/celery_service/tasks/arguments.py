"""What tasks take: their arguments are what the type hints say, or the body doesn't run.

pydantic converts as in its lax mode, because JSON has neither dates nor ids, and who sends by name
may have only text: "5" will do for an `int`, and "2030-01-31" for a `date`; 5 won't for a `str`.
https://docs.pydantic.dev/latest/concepts/conversion_table/

Celery's own `pydantic=True` knows only hints that are a `BaseModel`.
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

# Celery sends dates, UUIDs and decimals. These travel as plain JSON, and a hint brings them back.
register_type(BaseModel, None, lambda model: model.model_dump(mode="json"))
register_type(PurePath, None, str)


class InvalidArguments(TypeError):
    """A call that can't succeed: an argument is wrong, missing or unknown. It is never retried."""


class Arguments:
    """The arguments that a task takes.

    They are read when first needed, so that importing tasks stays quick. A hint that can't be
    resolved, or that means nothing to pydantic, leaves its argument as it is.

    Args:
        task: The name of the task, for messages.
        body: What has the signature.
        bound: Whether it takes the task itself first. That is not among the arguments here.
    """

    def __init__(self, task: str, body: Callable[..., Any], *, bound: bool) -> None:
        self._task = task
        self._body = body
        self._bound = bound

    def check(self, args: Any, kwargs: Any, *, complete: bool = True) -> Call:
        """Return the arguments of a call as the body expects them.

        Without `complete`, others may join them, such as the result of the task before.

        Raises:
            InvalidArguments: They aren't what the body takes.
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
        """Return a body that checks its arguments before it begins."""

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

        # pydantic sees the signature of the body, but calls this.
        call.__annotations__ = hints
        vars(call)["__signature__"] = inspect.Signature(
            [each.replace(annotation=hints[each.name]) for each in self._parameters]
        )
        return validate_call(call)

    def _invalid(self, problems: list[Any]) -> InvalidArguments:
        """Say what is wrong, and what the task takes. Values aren't shown: they may be private."""
        positional = [each.name for each in self._parameters if each.kind < each.VAR_POSITIONAL]
        texts = []
        for problem in problems[:3]:
            place, *inside = problem["loc"]
            if isinstance(place, int):
                place = positional[place] if place < len(positional) else f"number {place + 1}"
            where = ".".join(map(str, [place, *inside]))
            texts.append(f"argument {where:.100}: {problem['msg']:.200}")
        # With their stars, but without hints and defaults.
        bare: dict[str, Any] = {"annotation": Parameter.empty, "default": Parameter.empty}
        takes = ", ".join(str(each.replace(**bare)) for each in self._parameters)
        text = f"{self._task}: {'; '.join(texts)}; it takes ({takes})"
        return InvalidArguments(" ".join(text.split()))
