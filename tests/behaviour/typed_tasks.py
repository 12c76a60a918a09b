"""Tasks with type hints that the behaviour tests add to a rendered project."""

import functools
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal
from uuid import UUID

from celery import Task, current_app, shared_task
from pydantic import BaseModel, Field

from .probe import note

if TYPE_CHECKING:
    from nowhere import Thing


class Order(BaseModel):
    """A part of a message."""

    order_id: int
    quantity: int = Field(ge=1)


class Own:
    """Means nothing to pydantic."""


@current_app.task(name="typed.add", autoretry_for=(Exception,), default_retry_delay=0, retry_backoff=False)
def add(x: int, y: int = 0) -> int:
    """Add; retried whatever happens."""
    return x + y


@shared_task(name="typed.total")
def total(numbers: list[int], *, extra: int = 0) -> int:
    """The callback of a chord."""
    return sum(numbers) + extra


@current_app.task(name="typed.twice", autoretry_for=(Exception,))
def twice(items: Iterable[int]) -> list[int]:
    """Go through them twice; retried whatever happens."""
    return [*items, *items]


@current_app.task(name="typed.text")
def text(value: str) -> str:
    """Take text, and refuse a number."""
    return value


@current_app.task(name="typed.aware", bind=True)
async def aware(self: Task[..., Any], when: datetime, key: UUID, order: Order) -> list[str]:
    """Tell what arrives in a coroutine."""
    arrived = (when, key, order)
    return [str(self.request.id is not None), *(type(each).__name__ for each in arrived)]


@current_app.task(name="typed.noted", bind=True, autoretry_for=(Exception,), default_retry_delay=0)
def noted(self: Task[..., Any], path: str, number: int) -> None:
    """Leave a line, if it runs at all."""
    note(path, f"{number} {self.request.retries}")


Level = Literal["low", "high"]


@current_app.task(name="typed.odd")
def odd(thing: "Thing", own: Own, level: Level, *rest: "int", **more: Annotated[int, Field(gt=0)]) -> Any:
    """Hints of all kinds."""
    return [thing, own, level, rest, more]


@current_app.task(name="typed.untyped", typing=False)
def untyped(x: int) -> str:
    """Take any arguments: `typing=False` turns the checks off."""
    return repr(x)


def traced(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a function, so that it is between the task's decorator and the body."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return call


@current_app.task(name="typed.decorated")
@traced
def decorated(x: int) -> str:
    """Below another decorator."""
    return repr(x)


@current_app.task(name="typed.celerys", pydantic=True)
def celerys(order: Order) -> Order:
    """Celery's own option for models."""
    return order


class Scale(current_app.Task):
    """A task that is a class."""

    name = "typed.scale"

    def run(self, x: int, factor: float = 2) -> float:
        """Multiply."""
        return x * factor


scale: Any = current_app.register_task(Scale())
