"""The table of results, and where it is kept."""

import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from support.project import run_python

from . import REPOSITORY
from .run import Run

DOCUMENT = REPOSITORY / "docs" / "benchmarks.md"
BEGIN, END = "<!-- written by `make bench ARGS=--write`: begin -->", "<!-- end -->"
OF_THE_PROJECT = ("celery", "kombu", "redis", "sqlalchemy", "psycopg", "pydantic")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One comparison: the same quantity on both sides, one number for each round."""

    what: str
    baseline_is: str
    unit: str
    baseline: Sequence[float]
    ours: Sequence[float]
    at_least: float | None = None
    at_most: float | None = None

    @property
    def ratios(self) -> list[float]:
        """Ours by the baseline's. What happens to the machine in a round happens to both."""
        return [ours / baseline for ours, baseline in zip(self.ours, self.baseline, strict=True)]

    def __str__(self) -> str:
        """A line of the table."""
        ratio = statistics.median(self.ratios)
        if self.at_least is not None:
            target, good = f"≥ {self.at_least:g}", ratio >= self.at_least
        elif self.at_most is not None:
            target, good = f"≤ {self.at_most:g}", ratio <= self.at_most
        else:
            target, good = "", None
        cells = [
            self.what,
            f"{self.baseline_is}: {_number(statistics.median(self.baseline))} {self.unit}",
            f"{_number(statistics.median(self.ours))} {self.unit}",
            f"{_number(ratio)} ({_number(min(self.ratios))} to {_number(max(self.ratios))})",
            target,
            "" if good is None else "yes" if good else "**no**",
        ]
        return f"| {' | '.join(cells)} |"


def _number(value: float) -> str:
    """Three digits are more than the machine can promise."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


HEAD = "| what | baseline | ours | ratio (range) | target | ok? |\n|---|---|---|---|---|---|"


def write(rows: Sequence[Row], run: Run) -> None:
    """Replace what stands between the marks."""
    text = DOCUMENT.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    table = "\n".join([HEAD, *map(str, rows)])
    parts = [before + BEGIN, _circumstances(run), table, END + after]
    DOCUMENT.write_text("\n\n".join(parts), encoding="utf-8")


def _circumstances(run: Run) -> str:
    """Say when, on what and with what it was measured."""
    names = ", ".join(repr(name) for name in OF_THE_PROJECT)
    code = f"import importlib.metadata as m, json; print(json.dumps([(n, m.version(n)) for n in ({names})]))"
    versions: list[tuple[str, str]] = run_python(run.full_project("redis"), code)
    versions = [("Python", platform.python_version()), *versions, ("copier", version("copier"))]
    return "\n".join(
        [
            f"{datetime.now(UTC):%Y-%m-%d}, {_processor()}, {os.cpu_count()} processors, {platform.platform()}.",
            f"{', '.join(f'{name} {number}' for name, number in versions)}.",
            f"{run.rounds} rounds of {run.seconds:g} s for each side.",
        ]
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except FileNotFoundError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
