"""What a check finds: a line of the table."""

import math
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

from celery import Celery

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


def span(seconds: float) -> str:
    """Return a span of time for people, such as `5 s`, `12 min`, `3 h` or `2 d`."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{math.floor(seconds / size)} {unit}"
    return f"{seconds:.0f} s"


def some(names: list[str], most: int = 3) -> str:
    """Return names for a line: the first ones, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
