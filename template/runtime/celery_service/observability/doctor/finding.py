"""What a check finds: a line of the table."""

from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

from celery import Celery

from celery_service.observability.terminal import span

__all__ = ["STATUS", "Check", "Finding", "Level", "some", "span"]

Level = Literal["ok", "unseen", "warning", "broken"]

#: Exit statuses. What can't be seen doesn't count.
STATUS: dict[Level, int] = {"ok": 0, "unseen": 0, "warning": 1, "broken": 2}


class Finding(NamedTuple):
    """A line. `fix` says what to do; it is empty when nothing is to be done."""

    level: Level
    check: str
    text: str
    fix: str = ""


#: A topic: it yields a finding for each thing that it looks at.
Check = Callable[[Celery], Iterator[Finding]]


def some(names: list[str], most: int = 3) -> str:
    """Return names for a line: the first ones, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
