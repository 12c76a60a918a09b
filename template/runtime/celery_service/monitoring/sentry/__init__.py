"""Reports errors of workers, beat and the HTTP API to Sentry, if SENTRY_DSN is set.

Sentry's integration for Celery reports what tasks raise. This part adds what it can't see: lost
processes, time limits, messages that are no tasks, and exceptions around a task. Each is reported
once, and not for attempts that are retried.
"""

import os
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

from celery import Celery, current_task
from celery.app.task import Context
from celery.exceptions import Ignore, Reject
from celery.signals import (
    beat_embedded_init,
    beat_init,
    celeryd_init,
    task_failure,
    task_internal_error,
    worker_process_init,
    worker_shutdown,
)

from celery_service.brokers.queues import queue_of
from celery_service.config.settings import read
from celery_service.monitoring.sentry.settings import FLUSH, Settings
from celery_service.observability import correlation
from celery_service.observability.redaction import redact
from celery_service.observability.signals import (
    api_started,
    dead_letter_added,
    process_lost,
    request_failed,
)

#: Dead letters that aren't reported here. Those of failures are reported where the task runs, those
#: of chords follow from another failure, and a task that rejects its message has decided so.
REASONS = frozenset({"failure", "chord", "rejected"})

Tags = dict[str, str | None]

MECHANISM = {"type": "celery_service", "handled": False}


def install(app: Celery) -> None:
    """Report errors of workers, beat and the API of `app`. Other processes aren't changed."""
    settings = read(Settings)
    if settings.dsn is None:
        return
    reports = _Reports(app, settings)

    def start(sender: Any = None, instance: Any = None, **kwargs: object) -> None:
        if getattr(instance or sender, "app", sender) is app:
            reports.start()

    api_started.connect(start, weak=False)
    celeryd_init.connect(start, weak=False)
    beat_init.connect(start, weak=False)
    beat_embedded_init.connect(start, weak=False)


class _Reports:
    """The reports of a process."""

    def __init__(self, app: Celery, settings: Settings) -> None:
        self.app = app
        self.settings = settings
        self.pid = 0
        # The tasks whose failure this process has reported.
        self.failed: deque[str] = deque(maxlen=1000)

    def start(self) -> None:
        """Start in a main process. Its children start anew."""
        if not self.pid:
            worker_process_init.connect(self.init, weak=False)
            worker_shutdown.connect(_flush, weak=False)
            task_failure.connect(self.on_failure, weak=False)
            task_internal_error.connect(self.on_failure, weak=False)
            dead_letter_added.connect(self.on_dead_letter, weak=False)
            process_lost.connect(self.on_process_lost, weak=False)
            request_failed.connect(self.on_request_failed, weak=False)
        self.init()

    def init(self, **_: object) -> None:
        """Initialise the SDK, once in each process.

        After a fork, a child would use the connections of its parent, and send its reports again.
        """
        if self.pid == os.getpid():
            return
        # Imported here: publishers don't need it.
        from celery_service.monitoring.sentry import sdk

        is_first, self.pid = not self.pid, os.getpid()
        sdk.start(self.app, self.settings, self.complete, is_first=is_first)

    # --- what Sentry's integration doesn't see ---

    def on_failure(
        self,
        sender: Any,
        task_id: str,
        exception: BaseException,
        request: dict[str, Any] | None = None,
        **_: object,
    ) -> None:
        """Report a task that failed, unless Sentry's integration has reported it."""
        if sender.app is not self.app or isinstance(exception, (Ignore, Reject, *sender.throws)):
            return
        context = sender.request if request is None else Context(request)
        # The first of Celery's two signals about a time limit has no context.
        if context.id is not None and task_id not in self.failed:
            self.report(exception, task_id, self.tags_of(sender.name, context))

    def on_process_lost(
        self, sender: Any, request: Any, exception: BaseException, **_: object
    ) -> None:
        """Report a task whose process has died, and that runs again."""
        if sender.app is self.app and request.id not in self.failed:
            tags = self.tags_of(sender.name, request._context)
            self.report(exception, request.id, tags, level="warning")

    def on_dead_letter(self, sender: Celery, record: Mapping[str, Any], **_: object) -> None:
        """Report a message that never was a task, or that no process survives."""
        if sender is not self.app or record["reason"] in REASONS:
            return
        kind, _colon, text = record["error"].partition(": ")
        headers = record.get("options", {}).get("headers", {})
        tags = {
            "task": record["task"],
            "queue": record["queue"],
            "correlation_id": headers.get(correlation.HEADER) or correlation.current(),
        }
        event = {
            "level": "error",
            "exception": {"values": [{"type": kind, "value": text, "mechanism": MECHANISM}]},
            "fingerprint": ["dead letter", record["reason"], record["task"] or "", kind],
        }
        self.send(event, record["id"], tags)

    def on_request_failed(
        self, sender: Celery, exception: BaseException, request: str, **_: object
    ) -> None:
        """Report an exception of a route."""
        if sender is self.app:
            self.report(
                exception, None, {"request": request, "correlation_id": correlation.current()}
            )

    def report(
        self, exception: BaseException, task_id: str | None, tags: Tags, level: str = "error"
    ) -> None:
        """Send an exception."""
        import sentry_sdk
        from sentry_sdk.utils import event_from_exception

        event, hint = event_from_exception(
            exception, client_options=sentry_sdk.get_client().options, mechanism=MECHANISM
        )
        self.send({**event, "level": level}, task_id, tags, hint)

    def send(
        self,
        event: dict[str, Any],
        task_id: str | None,
        tags: Tags,
        hint: dict[str, Any] | None = None,
    ) -> None:
        """Send a report."""
        import sentry_sdk

        if task_id and event["level"] == "error":
            self.failed.append(task_id)
        tags = {"celery_task_id": task_id} | tags
        event["tags"] = {key: tag for key, tag in tags.items() if tag}
        sentry_sdk.capture_event(event, hint)  # type: ignore[arg-type]

    # --- what is in a report ---

    def complete(self, event: Any, _hint: Any) -> Any:
        """Add tags to a report, and remove arguments and secrets."""
        if event.get("type") == "check_in":
            return event
        tags = event.setdefault("tags", {})
        task: Any = current_task
        if task and "task" not in tags:
            found = self.tags_of(task.name, task.request)
            tags.update({key: tag for key, tag in found.items() if tag})
        if event.get("extra", {}).pop("celery-job", None) and self.settings.send_arguments:
            event["extra"]["arguments"] = {"args": task.request.args, "kwargs": task.request.kwargs}
        # The integration has reported what the body of a task has raised.
        errors = event.get("exception", {}).get("values", ())
        if any(each.get("mechanism", {}).get("type") == "celery" for each in errors):
            self.failed.append(tags["celery_task_id"])
        # Variables of libraries hold texts of arguments, in which no name tells what is secret.
        for frame in _frames_of(errors):
            if not frame.get("in_app"):
                frame.pop("vars", None)
        return redact(event)

    def tags_of(self, name: str, context: Context) -> Tags:
        """Return the tags of a task."""
        return {
            "task": name,
            "queue": queue_of(self.app, context.delivery_info),
            "correlation_id": correlation.current() or correlation.of_context(context),
        }


def _frames_of(errors: Any) -> Iterator[dict[str, Any]]:
    for error in errors:
        yield from (error.get("stacktrace") or {}).get("frames", ())


def _flush(**kwargs: object) -> None:
    import sentry_sdk

    sentry_sdk.flush(FLUSH)
