"""What a worker costs before it does anything: seconds from exec to "ready", and memory of a child.

The project with everything on against a bare app with Celery's defaults, on Redis with two processes. One worker runs
at a time. Half of the start is Celery's: it waits a second for the answers of other workers.
"""

import functools
import json
import re
import statistics
import time
from pathlib import Path

from support.project import READY, InstalledProject, Worker, run_python
from support.servers import start_redis

from .report import Row
from .run import Run
from .tasks import BARE

#: Tasks before the memory is read: a child then has loaded what tasks need.
TASKS = 100
SEND = """
from {slug}.celery import {app} as app
app.set_current()
sent = [app.send_task("benchmark.noop", (number,), queue={queue!r}) for number in range({tasks})]
for each in sent:
    each.get(timeout=30)
"""


class _Probe:
    """Starts the worker of one side again and again; remembers what its children took."""

    def __init__(self, run: Run, project: InstalledProject, url: str, name: str, app: str, queue: str) -> None:
        self.project = project
        self.variables = {"CELERY_BROKER_URL": url, "CELERY_RESULT_BACKEND": url}
        self.folder = run.folder / "logs" / f"start-{name}"
        self.send = SEND.format(slug=project.slug, app=app, queue=queue, tasks=TASKS)
        self.megabytes: list[float] = []

    def seconds(self) -> float:
        """Start a worker, have it run some tasks, and stop it; give how long the start took."""
        log = self.folder / f"worker{len(self.megabytes)}.log"
        started = time.perf_counter()
        with Worker(self.project, env=self.variables, log=log, arguments=("--concurrency", "2")) as worker:
            # `wait_ready` looks too seldom to tell small differences.
            while not re.search(READY["worker"], worker.text()):
                if time.perf_counter() - started > 30:
                    worker.wait_ready(0)
                time.sleep(0.005)
            seconds = time.perf_counter() - started
            run_python(self.project, self.send, self.variables)
            self.megabytes.append(statistics.mean(map(_resident_megabytes, worker.children())))
        return seconds


def start_and_memory(run: Run) -> list[Row]:
    """Start both in turns."""
    project = run.full_project("redis")
    bare = run.bare_app("bare-start", project, BARE)
    with start_redis(run.folder / "redis" / "start") as server:
        base = server.url.rpartition("/")[0]
        ours = _Probe(run, project, f"{base}/1", "ours", "celery", "default")
        theirs = _Probe(run, bare, f"{base}/2", "bare", "app", "bare")
        seconds, bare_seconds = run.in_turns([ours.seconds, theirs.seconds])
    row = functools.partial(Row, baseline_is="bare app", at_most=1.25)
    return [
        row(what="start of a worker, everything on", unit="s", baseline=bare_seconds, ours=seconds),
        row(what="memory of a child (RSS)", unit="MB", baseline=theirs.megabytes, ours=ours.megabytes),
    ]


def _resident_megabytes(pid: int) -> float:
    """Include what is shared with other processes, as `ps` and limits of containers do not agree to leave out."""
    text = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"^VmRSS:\s+(\d+) kB", text, re.MULTILINE)
    assert found, json.dumps(text)
    return int(found[1]) / 1024
