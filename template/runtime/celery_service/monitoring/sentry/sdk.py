"""Sets up Sentry's SDK. Only processes that report import it."""

import functools
import importlib.metadata
import logging
from collections.abc import Callable
from typing import Any

import sentry_sdk
from celery import Celery
from celery.app import trace as celerys_trace
from celery.signals import task_retry
from celery.worker.consumer import consumer
from sentry_sdk.integrations import atexit, celery, redis
from sentry_sdk.integrations import logging as log_integration
from sentry_sdk.integrations.celery import beat
from sentry_sdk.scrubber import EventScrubber
from sentry_sdk.utils import logger as sdk_logger

from celery_service.monitoring.sentry.settings import FLUSH, Settings

_celery: Any = celery


def start(
    app: Celery, settings: Settings, complete: Callable[[Any, Any], Any], *, is_first: bool
) -> None:
    """Start the SDK in this process. Before a report is sent, call `complete`.

    Args:
        app: The application.
        settings: The settings.
        complete: Takes a report and a hint, and returns the report.
        is_first: Whether no process has started it from which this one was forked.
    """
    if is_first and not settings.traces_sample_rate:
        # Spans that nobody sees would be most of what Sentry costs: for one of them, it makes a
        # connection to the broker in each task.
        _celery._wrap_tracer = _in_scope
        # What this would report, `_Reports.on_failure` does.
        _celery._wrap_task_call = lambda _task, body: body
    sentry_sdk.init(
        dsn=settings.dsn.get_secret_value() if settings.dsn else None,
        environment=settings.environment,
        release=settings.release or _release(app),
        integrations=[
            # Entries of the schedule that Sentry can't monitor are left out: those with less than a
            # minute, or with a part of one.
            celery.CeleryIntegration(monitor_beat_tasks=True),
            # By default, it prints that it waits.
            atexit.AtexitIntegration(callback=lambda *_: None),
        ],
        # The others record spans, for traces, and change libraries to do so.
        auto_enabling_integrations=settings.traces_sample_rate > 0,
        disabled_integrations=[
            # Our log lines about a failure would be second reports of it.
            log_integration.LoggingIntegration,
            # It would record each command that fetches messages.
            redis.RedisIntegration,
        ],
        traces_sample_rate=settings.traces_sample_rate or None,
        include_local_variables=settings.send_arguments,
        event_scrubber=EventScrubber(recursive=True),
        before_send=complete,
        before_send_transaction=complete,
        in_app_exclude=["celery_service"],
        shutdown_timeout=FLUSH,
    )
    if not sentry_sdk.get_client().options["debug"]:
        # The SDK makes lines for debugging, several in each task, and drops them afterwards.
        sdk_logger.setLevel(logging.WARNING)
    # It was imported before the integration replaced it. Threads run the tasks with it.
    imported: Any = consumer
    imported.build_tracer = celerys_trace.build_tracer
    # A retry isn't the end of a run: the monitor of the schedule would alert.
    task_retry.disconnect(getattr(beat, "crons_task_retry", None))
    if is_first:
        _report_crashes()


def _in_scope(task: Any, trace: Callable[..., Any]) -> Callable[..., Any]:
    """Give each run of a task its own scope, as Sentry's `_wrap_tracer`, without a span."""

    @functools.wraps(trace)
    def trace_in_scope(*args: Any, **kwargs: Any) -> Any:
        with sentry_sdk.isolation_scope() as scope:
            scope.clear_breadcrumbs()
            scope.add_event_processor(_celery._make_event_processor(task, *args, **kwargs))
            # Reports of a task belong to the trace of whoever has sent it.
            scope.generate_propagation_context(args[3].get("headers") or {})
            return trace(*args, **kwargs)

    return trace_in_scope


def _release(app: Celery) -> str | None:
    """Return the name and the version of the service, if it is installed."""
    try:
        return f"{app.main}@{importlib.metadata.version(app.main or '')}"
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return None


def _report_crashes() -> None:
    """Report what ends a worker or beat, which Celery only logs."""
    # The second one logs uncaught exceptions.
    for name in ("celery", "celery_service"):
        logging.getLogger(name).addHandler(log_integration.EventHandler(logging.CRITICAL))
