"""What logs and monitoring cost: tasks per second of a worker with them, against one that logs nothing of tasks.

All of it works: Prometheus's numbers are served, and a process on this machine takes the spans and the reports for
OpenTelemetry and Sentry. It shares the processors with the workers, as a collector on the same machine does. Tasks that
succeed are no reports for Sentry.
"""

import contextlib
import multiprocessing
from collections.abc import Iterator, Mapping
from http.server import ThreadingHTTPServer
from typing import Any

import yaml

from support.http import QuietHandler
from support.project import InstalledProject, render
from support.servers import HOST, free_port, listens, wait_until

from .report import Row
from .run import FULL, HERE, Run
from .tasks import redis_databases
from .throughput import Side, rates

OPTIONS = ("flower", "opentelemetry", "prometheus", "sentry")
#: The least that the throughput with everything on may be of that without.
GOAL = 0.9


def cost(run: Run) -> list[Row]:
    """Measure each option alone, and all together."""
    with _collector() as url, redis_databases(run, "observability") as databases:
        variables = {
            "METRICS_PORT": "0",
            "OTEL_EXPORTER_OTLP_ENDPOINT": url,
            "SENTRY_DSN": f"{url.replace('//', '//key@')}/1",
        }
        plans: dict[str, tuple[tuple[str, ...], bool]] = {
            "nothing": ((), False),
            "logs at INFO to a file": ((), True),
            **{name: ((name,), False) for name in OPTIONS},
            "everything, logs at INFO to a file": (OPTIONS, True),
        }
        sides = [_side(_project(run, *plan), databases, variables) for plan in plans.values()]
        nothing, *others = rates(run, "observability", sides)
    return [
        Row(
            what=f"task without work on Redis: {what}",
            baseline_is="no lines of tasks, no monitoring",
            unit="tasks/s",
            baseline=nothing,
            ours=found,
            at_least=GOAL if what.startswith("everything") else None,
        )
        for what, found in zip(list(plans)[1:], others, strict=True)
    ]


def _side(project: InstalledProject, databases: list[str], variables: Mapping[str, str]) -> Side:
    return Side(
        project=project,
        task="benchmark.noop",
        queue="default",
        broker=databases.pop(),
        results=databases.pop(),
        variables=variables,
    )


def _project(run: Run, monitoring: tuple[str, ...], has_lines: bool) -> InstalledProject:
    """The full project with this monitoring, in the environment of the full project."""
    full = run.full_project("redis")
    folder = run.folder / f"monitored-{'-'.join(monitoring)}-{has_lines}" / "project"
    answers: dict[str, Any] = yaml.safe_load(FULL.read_text())
    project = render(folder, answers | {"monitoring": sorted(monitoring)})
    target = folder / project.slug / "tasks" / "benchmark_noop.py"
    target.write_text((HERE / "noop_tasks.py").read_text())
    if not has_lines:
        with (folder / project.slug / "celery.py").open("a") as app:
            app.write("\nimport logging\nlogging.getLogger('celery_service.events').setLevel('ERROR')\n")
    return InstalledProject(folder=folder, slug=full.slug, environment=full.environment)


class _Handler(QuietHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.body()
        self.answer()


def _serve(port: int) -> None:
    ThreadingHTTPServer((HOST, port), _Handler).serve_forever()


@contextlib.contextmanager
def _collector() -> Iterator[str]:
    """A process that takes whatever it gets."""
    port = free_port()
    process = multiprocessing.get_context("spawn").Process(target=_serve, args=(port,), daemon=True)
    process.start()
    try:
        wait_until(lambda: listens(port), 30, "the collector")
        yield f"http://{HOST}:{port}"
    finally:
        process.kill()
