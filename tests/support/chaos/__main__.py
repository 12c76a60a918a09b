"""The long form: every cell on both brokers; prints the table and writes it to docs/reliability.md.

make chaos
make chaos ARGS='--broker redis --cell "worker killed" --tasks 1500'
CHAOS_SEED=42 make chaos
"""

import argparse
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from support.chaos.bench import servers
from support.chaos.cells import CELLS, LONG_SCALE, Cell, Outcome, Scale, run, seed
from support.project import REPOSITORY
from support.servers import find_rabbitmq, find_redis

PAGE = REPOSITORY / "docs" / "reliability.md"
BEGIN, END = "<!-- make chaos writes from here -->\n", "<!-- to here -->\n"
COLUMNS = (
    *("Broker", "Fault", "Sent", "Refused", "Lost", "Ran twice", "Dead letters"),
    *("Slowest publish", "Slowest task", "Time"),
)


def main() -> int:
    """Run what was asked for; status 1 when something was lost."""
    options = _options()
    scale = replace(LONG_SCALE, tasks=options.tasks, outage=options.outage, faults=options.faults)
    number = seed()
    print(f"CHAOS_SEED={number}", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    with ThreadPoolExecutor(options.parallel) as executor:
        asked = [(name, _chosen(name, options.cell), scale, number, folder) for name in options.broker]
        outcomes = [each for done in executor.map(lambda some: _run_all(*some), asked) for each in done]
    failed = any(each.problems() for each in outcomes)
    if failed:
        print(f"the logs are in {folder}")
    else:
        shutil.rmtree(folder)
    table = _table(outcomes, scale, number)
    print(table)
    if not options.cell and len(options.broker) == 2:
        before, _, rest = PAGE.read_text().partition(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}\n{table}\n{END}{rest.partition(END)[2]}")
    return int(failed)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make chaos")
    parser.add_argument("--broker", nargs="+", default=["redis", "rabbitmq"], choices=["redis", "rabbitmq"])
    parser.add_argument("--cell", action="append", help="the name of a row; by default, all")
    parser.add_argument("--tasks", type=int, default=LONG_SCALE.tasks, help="in each cell")
    parser.add_argument("--faults", type=int, default=LONG_SCALE.faults, help="in each cell")
    parser.add_argument("--outage", type=float, default=LONG_SCALE.outage, help="the longest, in seconds")
    parser.add_argument("--parallel", type=int, default=2, help="brokers at the same time")
    return parser.parse_args()


def _chosen(broker: str, names: Sequence[str] | None) -> list[Cell]:
    return [cell for cell in CELLS if broker in cell.brokers and (not names or cell.name in names)]


def _run_all(broker: str, cells: Sequence[Cell], scale: Scale, number: int, folder: Path) -> list[Outcome]:
    outcomes = []
    with servers(broker, folder / broker) as some:
        for cell in cells:
            outcome = run(cell, some, scale, number)
            outcomes.append(outcome)
            print(_row(outcome), flush=True)
            if problems := outcome.problems():
                print("\n".join(["", *problems, "", *outcome.journal, ""]), flush=True)
    return outcomes


def _row(outcome: Outcome) -> str:
    refused = f"{outcome.unconfirmed} ({outcome.unconfirmed_ran} ran)" if outcome.unconfirmed else "0"
    dead = f"{outcome.dead} of {outcome.condemned}" if outcome.condemned else str(outcome.dead)
    lost = str(len(outcome.lost))
    if outcome.cell.kills:
        lost += f" ({len(outcome.lost) / outcome.cell.kills:.2f} for each kill)"
    fields = (
        {"redis": "Redis", "rabbitmq": "RabbitMQ"}[outcome.broker],
        outcome.cell.name,
        *(outcome.sent, refused, lost, len(outcome.doubled), dead),
        *(f"{outcome.slowest_publish:.1f} s", f"{outcome.slowest_task:.0f} s", f"{outcome.seconds:.0f} s"),
    )
    return f"| {' | '.join(map(str, fields))} |"


def _table(outcomes: Sequence[Outcome], scale: Scale, number: int) -> str:
    parts = [f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in ("celery", "kombu"))]
    parts += [f"Redis {_redis_version()}", f"RabbitMQ {_rabbitmq_version()}"]
    rows = [f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}", *map(_row, outcomes)]
    sums = [
        f"{name}: {sum(each.sent for each in some)} tasks, {sum(len(each.lost) for each in some)} lost"
        f"{' (all of them on the transport of Kombu)' if any(each.cell.stock and each.lost for each in some) else ''}"
        for name in ("redis", "rabbitmq")
        if (some := [each for each in outcomes if each.broker == name])
    ]
    told = [
        f"{datetime.now(UTC).date()}, {', '.join(parts)}. {'; '.join(sums)}.",
        f"{scale.faults} faults in each row, outages of 1 to {scale.outage:g} s. `CHAOS_SEED={number}`",
    ]
    return "\n".join([*told, "", *rows, ""])


def _redis_version() -> str:
    told = subprocess.run([find_redis() or "redis-server", "--version"], capture_output=True, text=True, check=True)
    return told.stdout.partition("v=")[2].split()[0]


def _rabbitmq_version() -> str:
    """Read the name of the folder of its libraries; the program itself takes seconds to tell."""
    scripts = Path(find_rabbitmq() or "/").resolve().parents
    found = [path.name for folder in scripts for path in folder.glob("lib/rabbitmq_server-*")]
    return found[0].rpartition("-")[2] if found else "unknown"


if __name__ == "__main__":
    sys.exit(main())
