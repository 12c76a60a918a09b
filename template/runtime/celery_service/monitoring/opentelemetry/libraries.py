"""The instrumentations of libraries, such as SQLAlchemy, Redis and HTTP clients.

All that are installed are loaded, as `opentelemetry-instrument` does: a project adds one by
`uv add opentelemetry-instrumentation-…`.
"""

import functools
import os
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import structlog
from opentelemetry.instrumentation.dependencies import get_dist_dependency_conflicts
from opentelemetry.instrumentation.utils import suppress_instrumentation
from redis import Redis
from redis.client import Pipeline

from celery_service.brokers.redis.backend import OF_CELERY

#: spans.py does what this one does.
NOT_LOADED = {"celery"}
#: It names SQLAlchemy 2.0 as the newest one that it can; our tests run it on 2.1.
NOT_CHECKED = {"sqlalchemy"}

logger = structlog.get_logger(__name__)


def instrument() -> None:
    """Load the instrumentations, without those in `OTEL_PYTHON_DISABLED_INSTRUMENTATIONS`."""
    disabled = os.environ.get("OTEL_PYTHON_DISABLED_INSTRUMENTATIONS", "").split(",")
    without = NOT_LOADED | set(map(str.strip, disabled))
    if "*" in without:
        return
    for entry_point in entry_points(group="opentelemetry_instrumentor"):
        if entry_point.name not in without:
            _load(entry_point)
    if "redis" not in without:
        for kind, name in ((Redis, "execute_command"), (Pipeline, "execute")):
            setattr(kind, name, _leave_out_celery(getattr(kind, name)))


def _load(entry_point: EntryPoint) -> None:
    conflict = entry_point.dist and get_dist_dependency_conflicts(entry_point.dist)
    if conflict and not (conflict.found or conflict.found_any):
        return  # what it instruments isn't installed
    if conflict and entry_point.name not in NOT_CHECKED:
        logger.warning("not_instrumented", library=entry_point.name, reason=str(conflict))
        return
    try:
        instrumentor = entry_point.load()()
        if not instrumentor.is_instrumented_by_opentelemetry:
            instrumentor.instrument(skip_dep_check=True)
    except Exception as error:  # the service runs without it
        logger.warning("not_instrumented", library=entry_point.name, reason=str(error))


def _leave_out_celery(method: Callable[..., Any]) -> Callable[..., Any]:
    """Make no spans of storing results, which would be more than those of the tasks."""

    @functools.wraps(method)
    def ask(client: Any, *args: Any, **options: Any) -> Any:
        if not getattr(client.connection_pool, OF_CELERY, False):
            return method(client, *args, **options)
        with suppress_instrumentation():
            return method(client, *args, **options)

    return ask
