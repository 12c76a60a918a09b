"""What a worker costs before it does anything: seconds from exec to "ready", and memory of a child.

The project with everything on against a bare app, and against one that imports the libraries of the options, on Redis
with two processes. One worker runs at a time. A second of the start is Celery's: it waits for answers of other workers.
"""

import functools
import re
import statistics
import time
from pathlib import Path

from support.project import READY, Worker

from .report import Row
from .run import Run
from .tasks import BARE, redis_databases
from .throughput import Lane, Side

#: What a service with these options imports, whoever writes it.
LIBRARIES = (
    "aiocache",
    "psycopg",
    "pydantic_settings",
    "sqlalchemy.ext.asyncio",
    "sqlalchemy.orm",
    "structlog",
)
WHAT = "everything on"
#: Tasks before the memory is read: a child then has loaded what tasks need.
TASKS = 100


class _Probe:
    """Starts the worker of one side again and again; remembers what its children took."""

    def __init__(self, run: Run, name: str, side: Side) -> None:
        self.side = side
        self.variables = {"CELERY_BROKER_URL": side.broker, "CELERY_RESULT_BACKEND": side.results}
        self.folder = run.folder / "logs" / f"start-{name}".replace(" ", "-")
        self.megabytes: list[float] = []

    def seconds(self) -> float:
        """Start a worker, have it run some tasks, and stop it; give how long the start took."""
        log = self.folder / f"worker{len(self.megabytes)}.log"
        started = time.perf_counter()
        with Worker(self.side.project, env=self.variables, log=log, arguments=self.side.arguments) as worker:
            # `wait_ready` looks too seldom to tell small differences.
            while not re.search(READY["worker"], worker.text()):
                if time.perf_counter() - started > 30:
                    worker.wait_ready(0)
                time.sleep(0.005)
            seconds = time.perf_counter() - started
            lane = Lane(self.side, worker)
            lane.rate(TASKS)
            lane.thaw()
            self.megabytes.append(statistics.mean(map(_resident_megabytes, worker.children())))
        return seconds


def start_and_memory(run: Run) -> list[Row]:
    """Start all three in turns."""
    project = run.full_project("redis")
    apps = {
        "ours": project,
        "bare app": run.bare_app("bare-start", project, BARE),
        "bare app that imports the same libraries": run.bare_app("bare-importing", project, BARE, LIBRARIES),
    }
    with redis_databases(run, "start") as databases:
        probes = {
            name: _Probe(
                run,
                name,
                Side(
                    project=app,
                    task="benchmark.noop",
                    queue="default" if app is project else "bare",
                    broker=databases.pop(),
                    results=databases.pop(),
                ),
            )
            for name, app in apps.items()
        }
        seconds = dict(zip(probes, run.in_turns([probe.seconds for probe in probes.values()]), strict=True))
    ours, *others = apps
    rows = []
    for name in others:
        # A bare app alone imports neither SQLAlchemy nor pydantic: that ratio is reported, not aimed at.
        row = functools.partial(Row, baseline_is=name, at_most=1.15 if "libraries" in name else None)
        rows += [
            row(what=f"start of a worker, {WHAT}", unit="s", baseline=seconds[name], ours=seconds[ours]),
            row(
                what=f"memory of a child (RSS), {WHAT}",
                unit="MB",
                baseline=probes[name].megabytes,
                ours=probes[ours].megabytes,
            ),
        ]
    return rows


def _resident_megabytes(pid: int) -> float:
    """Give what `ps` calls RSS, which includes what is shared with the parent. Linux only."""
    found = re.search(r"^VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found
    return int(found[1]) / 1024
