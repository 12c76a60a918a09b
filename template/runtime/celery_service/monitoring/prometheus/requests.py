"""Counts what happens to the tasks of a worker, in its main process.

Celery calls the methods of a request there, whatever the pool. `send_event` is called for each step
of a task, also if Celery sends no events. So the numbers are those of the events, from which
celery-exporter makes metrics of the same names.
"""

import functools
from collections.abc import Callable
from typing import Any

from billiard.einfo import ExceptionWithTraceback  # type: ignore[attr-defined]
from celery.utils.imports import symbol_by_name
from prometheus_client import CollectorRegistry, Counter, Histogram

from celery_service.brokers.queues import queue_of
from celery_service.brokers.times import SENT_AT

#: The label of what isn't known, or of what there are too many of.
OTHER = "other"
#: The number of exception classes that are told apart.
MOST_EXCEPTIONS = 50

LABELS = ("name", "hostname", "queue_name")
RUNTIMES = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
WAITS = (0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 300, 600, 1800, 3600)

#: Event → the metric that counts it. A task has one of these ends.
ENDS = {
    "task-succeeded": "succeeded",
    "task-failed": "failed",
    "task-retried": "retried",
    "task-revoked": "revoked",
}


class Tasks:
    """The metrics of the tasks of a worker.

    Labels are bounded: `name` is the name of a registered task, `queue_name` that of a queue that
    the app knows.
    """

    def __init__(self, app: Any, hostname: str, registry: CollectorRegistry) -> None:
        self._app = app
        self._hostname = hostname
        self._exceptions: set[str] = set()
        #: Queue → when the newest message was sent, or was due, that came from it: see broker.py.
        self.newest: dict[str, float] = {}

        def counter(what: str, text: str, *more: str) -> Counter:
            name = f"celery_task_{what}_total"
            return Counter(name, text, (*LABELS, *more), registry=registry)

        self.received = counter("received", "Messages received for tasks.")
        self.started = counter("started", "Runs started.")
        self.succeeded = counter("succeeded", "Runs that ended with a result.")
        self.failed = counter("failed", "Tasks that failed for good.", "exception")
        self.retried = counter("retried", "Runs that ended with a retry.")
        self.rejected = counter(
            "rejected", "Messages rejected, also to be delivered again after a process died."
        )
        self.revoked = counter("revoked", "Tasks revoked, terminated or expired.")
        self.runtime = Histogram(
            "celery_task_runtime_seconds",
            "Time of runs that ended with a result.",
            LABELS,
            buckets=RUNTIMES,
            registry=registry,
        )
        self.wait = Histogram(
            "celery_task_wait_seconds",
            "Time from sending a message, or from its ETA, to the start of its task.",
            LABELS,
            buckets=WAITS,
            registry=registry,
        )
        self.series = functools.cache(self._series)
        # A message can have any routing key.
        self.queue = functools.lru_cache(maxsize=1000)(self._queue)

    def observe(self, task: Any) -> None:
        """Count the requests of a task, whatever class it uses for them."""
        base = symbol_by_name(task.Request)
        if not issubclass(base, Counting):
            task.Request = type("Request", (Counting, base), {"metrics": self})

    def _series(self, name: str, queue: str) -> "Series":
        return Series(self, (name, self._hostname, queue))

    def _queue(self, exchange: Any, routing_key: Any) -> str:
        found = queue_of(self._app, {"exchange": exchange, "routing_key": routing_key})
        return found if found and found in self._app.amqp.queues else OTHER

    def exception(self, name: str) -> str:
        """Return the name of an exception class, or OTHER if there are too many."""
        if name not in self._exceptions:
            if len(self._exceptions) >= MOST_EXCEPTIONS:
                return OTHER
            self._exceptions.add(name)
        return name


class Series:
    """The metrics of the tasks with one name from one queue. They are 0 from the first message."""

    def __init__(self, tasks: Tasks, labels: tuple[str, str, str]) -> None:
        self._tasks, self._labels = tasks, labels
        self.received = tasks.received.labels(*labels).inc
        self.started = tasks.started.labels(*labels).inc
        self.succeeded = tasks.succeeded.labels(*labels).inc
        self.retried = tasks.retried.labels(*labels).inc
        self.rejected = tasks.rejected.labels(*labels).inc
        self.revoked = tasks.revoked.labels(*labels).inc
        self.ran = tasks.runtime.labels(*labels).observe
        self.waited = tasks.wait.labels(*labels).observe

    def failed(self, exception: str) -> None:
        """Count a failure."""
        name = self._tasks.exception(exception)
        self._tasks.failed.labels(*self._labels, name).inc()


class Counting:
    """A mixin for a request, which counts."""

    metrics: Tasks
    _has_ended = False
    _exception = ""

    def __init_subclass__(cls, **options: Any) -> None:
        # Celery derives a class for each task, whose `on_success` calls no other one.
        super().__init_subclass__(**options)
        if on_success := vars(cls).get("on_success"):
            setattr(cls, "on_success", _counting(on_success))  # noqa: B010

    def __init__(self: Any, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        where = self.delivery_info
        queue = self.metrics.queue(where["exchange"], where["routing_key"])
        self.series = self.metrics.series(self.task.name, queue)
        self.series.received()
        self.due = _due(self.eta, self.request_dict.get(SENT_AT))
        if self.due is not None and self.due > self.metrics.newest.get(queue, 0.0):
            self.metrics.newest[queue] = self.due

    def on_accepted(self: Any, pid: int, time_accepted: float) -> None:
        """Count a start."""
        self.series.started()
        super().on_accepted(pid, time_accepted)  # type: ignore[misc]
        if self.due is not None:
            # Clocks of machines differ.
            self.series.waited(max(0.0, self.time_start - self.due))

    def on_failure(self: Any, exc_info: Any, *args: Any, **options: Any) -> None:
        """Keep the class of an exception, since not every exception shows it as a text."""
        self._exception = _class_of(exc_info.exception)
        super().on_failure(exc_info, *args, **options)  # type: ignore[misc]

    def send_event(self: Any, event: str, **fields: Any) -> None:
        """Count an event."""
        if event == "task-rejected":
            self.series.rejected()
        elif event in ENDS:
            self.count_end(event, fields)
        super().send_event(event, **fields)  # type: ignore[misc]

    def count_end(self: Any, event: str, fields: Any) -> None:
        """Count an end, once: a task that exceeds its hard time limit fails twice."""
        if self._has_ended:
            return
        self._has_ended = True
        if event == "task-failed":
            self.series.failed(self._exception or str(fields["exception"]).partition("(")[0])
        else:
            getattr(self.series, ENDS[event])()
        if fields.get("runtime") is not None:
            self.series.ran(fields["runtime"])


def _counting(on_success: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(on_success)
    def count(self: Any, outcome: tuple[bool, Any, float], **options: Any) -> Any:
        failed, _, runtime = outcome
        if not failed:
            self.count_end("task-succeeded", {"runtime": runtime})
        return on_success(self, outcome, **options)

    return count


def _due(eta: Any, sent_at: Any) -> float | None:
    """Return when a task could run. Any program can write into a message what it likes."""
    if eta is not None:
        return float(eta.timestamp())
    return float(sent_at) if isinstance(sent_at, int | float) and 0 < sent_at < 1e11 else None


def _class_of(exception: Any) -> str:
    """Return the name of an exception's class; "" if a later event tells it."""
    if isinstance(exception, ExceptionWithTraceback):
        exception = exception.exc
    # Celery replaces an exception that can't be pickled.
    name = getattr(exception, "exc_cls_name", type(exception).__name__)
    return str(name) if isinstance(exception, Exception) else ""
