"""How the tasks of a service run. A service calls `install`, and nothing else is needed.

README.md beside this package is the map: what each part promises, and what to read first.
"""

import importlib
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    # The health probe imports this package, and must not import Celery: it would cost a second.
    from celery import Celery

#: The parts, in the order in which they are installed: each is a module with `install(app)`.
PARTS = (
    "observability.correlation",
    "observability.logging",
    "observability.report",
    "brokers.queues",
    "brokers.clients",
    "tasks",
    "dead_letters",
    "brokers.redis.cluster",
    "lifecycle.versions",
    "lifecycle.green",
    "lifecycle.shutdown",
    "lifecycle.heartbeat",
    "lifecycle.memory",
    "lifecycle.beat",
    "lifecycle.schedule",
)

#: What a service can be monitored with: each is a module in `monitoring/` with `install(app)`, and
#: an extra of the same name.
MONITORING = ("flower", "opentelemetry", "prometheus", "sentry")


def install(
    app: "Celery",
    *,
    tasks: str,
    routes: Mapping[str, str] | None = None,
    monitoring: Collection[str] = (),
    without: Collection[str] = (),
) -> None:
    """Configure `app` from our defaults and `CELERY_*`, and install every part of the library.

    Args:
        app: The application, before anything else is done with it.
        tasks: The package whose modules hold the tasks, such as `"my_service.tasks"`.
        routes: Pattern of task names → queue, such as
            `{"my_service.tasks.cleanup.*": "low_priority"}`.
        monitoring: Names from `MONITORING`, such as `{"prometheus"}`.
        without: Names from `PARTS` to leave out, such as `{"observability.logging"}`.

    Raises:
        ConfigurationError: A `CELERY_*` variable is missing or can't be used. It is a `SystemExit`:
            the process ends with one line.
        ValueError: `without` holds a name that is not in `PARTS`, or `monitoring` one that is not
            in `MONITORING`.
    """
    from celery_service.config import merge
    from celery_service.tasks import modules

    if unknown := set(without) - set(PARTS):
        raise ValueError(f"without={sorted(unknown)}: the parts are {', '.join(PARTS)}")
    if unknown := set(monitoring) - set(MONITORING):
        raise ValueError(f"monitoring={sorted(unknown)}: there are {', '.join(MONITORING)}")
    merge.install(app, tasks=tasks, routes=routes or {})
    modules.install(app, tasks)
    for part in PARTS:
        if part not in without:
            importlib.import_module(f"{__name__}.{part}").install(app)
    for name in MONITORING:
        if name in monitoring:
            importlib.import_module(f"{__name__}.monitoring.{name}").install(app)
