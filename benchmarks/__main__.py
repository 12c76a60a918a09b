"""The command line: choose benchmarks, run them, print the table, or write it to docs/benchmarks.md."""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from . import api, leases, observability, tasks, template, workers
from .report import HEAD, Row, write
from .run import Run

BENCHMARKS: dict[str, Callable[[Run], list[Row]]] = {
    "async-db": tasks.async_with_a_query,
    "async-noop": tasks.async_without_work,
    "awaits": tasks.concurrent_awaits,
    "noop-redis": tasks.project_on_redis,
    "noop-rabbitmq": tasks.project_on_rabbitmq,
    "renewal": leases.renewal,
    "held": tasks.held_messages,
    "observability": observability.cost,
    "api": api.under_load,
    "start": workers.start_and_memory,
    "copy": template.copy,
    "space": template.space,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default: all of {', '.join(BENCHMARKS)}")
    parser.add_argument("--seconds", type=float, default=1.5, help="how long each side runs in each round: %(default)s")
    parser.add_argument("--rounds", type=int, default=5, help="how often the sides take turns: %(default)s")
    parser.add_argument("--write", action="store_true", help="write the table to docs/benchmarks.md")
    chosen = parser.parse_args()
    if unknown := set(chosen.names) - BENCHMARKS.keys():
        parser.error(f"no benchmark is named {', '.join(sorted(unknown))}")
    if chosen.write and chosen.names:
        parser.error("--write replaces the whole table, so it takes no names")
    if chosen.seconds <= 0 or chosen.rounds < 1:
        parser.error("--seconds and --rounds must be positive")

    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as folder:
        # Copier would take default answers from the settings of whoever runs this.
        settings = Path(folder, "settings.yml")
        settings.write_text("{}\n")
        os.environ["COPIER_SETTINGS_PATH"] = str(settings)
        run = Run(folder=Path(folder), seconds=chosen.seconds, rounds=chosen.rounds)
        print(HEAD)
        for name in chosen.names or BENCHMARKS:
            try:
                found = BENCHMARKS[name](run)
            except pytest.skip.Exception as reason:  # from the support package, when a server isn't installed
                print(f"{name}: skipped, {reason}", file=sys.stderr)
            else:
                print(*found, sep="\n", flush=True)
                rows += found
        if chosen.write:
            write(rows, run)


if __name__ == "__main__":
    main()
