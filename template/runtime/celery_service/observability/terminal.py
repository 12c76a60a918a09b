"""What commands print for people: tables that fit the terminal, and progress on long work."""

import math
import shutil
import sys
import textwrap
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import click

T = TypeVar("T")

#: Columns where there is no terminal, or none that tells its width.
WIDTH = 80
#: The columns between two cells.
GAP = "  "


def width() -> int:
    """Return the number of columns of the terminal."""
    return shutil.get_terminal_size((WIDTH, 24)).columns if sys.stdout.isatty() else WIDTH


def printable(text: str) -> str:
    """Return text as one line that a terminal only shows: without control characters."""
    line = " ".join(text.split())
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape", "surrogatepass").decode()
        for each in line
    )


def columns(text: str) -> int:
    """Return how many columns text takes in a terminal."""
    return sum(
        0 if unicodedata.combining(each) else 2 if unicodedata.east_asian_width(each) in "WF" else 1
        for each in text
    )


def cut(text: str, most: int) -> str:
    """Return text that takes so many columns at most, with `…` where something is missing."""
    if columns(text) <= most:
        return text
    kept = ""
    for each in text:
        if columns(kept + each) > most - 1:
            break
        kept += each
    return f"{kept}…" if most > 0 else ""


def padded(text: str, to: int) -> str:
    """Return text with blanks up to so many columns."""
    return text + " " * (to - columns(text))


def wrapped(text: str, most: int, *, hang: str = "") -> list[str]:
    """Return text as lines of so many columns at most, broken at blanks where there are some.

    Lines after the first begin with `hang`.
    """
    lines = textwrap.wrap(text, max(most, 20), subsequent_indent=hang, break_on_hyphens=False)
    return lines or [""]


def table(
    head: Sequence[str], rows: Sequence[Sequence[str]], flexible: Sequence[int], most: int
) -> Iterator[str]:
    """Yield the lines of a table. Only the `flexible` columns are cut, to share what is left.

    Args:
        head: The names of the columns.
        rows: The cells.
        flexible: The columns that may be cut. The last one gets what the others don't need.
        most: The number of columns of the terminal.
    """
    lines = [list(map(printable, row)) for row in (head, *rows)]
    widths = [max(columns(line[number]) for line in lines) for number in range(len(head))]
    fixed = sum(widths[number] for number in range(len(head)) if number not in flexible)
    left = max(most - fixed - len(GAP) * (len(head) - 1), 10 * len(flexible))
    for place, number in enumerate(flexible):
        widths[number] = min(widths[number], left // (len(flexible) - place))
        left -= widths[number]
    for line in lines:
        cells = [padded(cut(cell, size), size) for cell, size in zip(line, widths, strict=True)]
        yield GAP.join(cells).rstrip()


def span(seconds: float) -> str:
    """Return a span of time for people, such as `5 s`, `12 min`, `3 h` or `2 d`."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{math.floor(seconds / size)} {unit}"
    return f"{seconds:.0f} s"


@contextmanager
def progress(
    items: Iterable[T], label: str, length: int, *, least: int = 1
) -> Iterator[Iterable[T]]:
    """Show a progress bar while a block goes through items, if a person watches standard error.

    Fewer than `least` items don't take long enough for one.
    """
    if length < least or not sys.stderr.isatty():
        yield items
        return
    with click.progressbar(items, length=length, label=label, file=sys.stderr) as bar:
        yield bar
