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
    methods: list[tuple[Any, str]] = [(Redis, "execute_command"), (Pipeline, "execute")]
    plain = [getattr(kind, name) for kind, name in methods]
    for entry_point in entry_points(group="opentelemetry_instrumentor"):
        if entry_point.name not in without:
            _load(entry_point)
    for (kind, name), method in zip(methods, plain, strict=True):
        if (traced := getattr(kind, name)) is not method:
            setattr(kind, name, _for_celery(method, traced))


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


def _for_celery(plain: Callable[..., Any], traced: Callable[..., Any]) -> Callable[..., Any]:
    """Make no spans of messages and results, which would be more than those of the tasks."""

    @functools.wraps(plain)
    def ask(client: Any, *args: Any, **options: Any) -> Any:
        is_celerys = getattr(client.connection_pool, OF_CELERY, False)
        return (plain if is_celerys else traced)(client, *args, **options)

    return ask
