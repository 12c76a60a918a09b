"""The spans of tasks: one when a task is published, and one when it runs.

They have the names and attributes of opentelemetry-instrumentation-celery, which
docs/decisions/0025-tracing.md of the template compares with this.
"""

import functools
import sys
import traceback
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

from celery import Celery, canvas, current_app
from celery.app.task import Context as Request
from celery.exceptions import TimeLimitExceeded, WorkerLostError
from celery.signals import (
    before_task_publish,
    task_failure,
    task_postrun,
    task_prerun,
    task_retry,
)
from opentelemetry import trace
from opentelemetry.context import Context, attach, detach
from opentelemetry.propagate import extract, inject
from opentelemetry.propagators.textmap import Getter
from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from celery_service.brokers.queues import queue_of
from celery_service.monitoring.opentelemetry.provider import is_set
from celery_service.observability import correlation
from celery_service.observability.redaction import redact_text

#: Where the span of a task is, in its request. It also marks what is wrapped already.
SLOT = "_celery_service_span"

#: The name of the correlation id, as in log lines.
CORRELATION = "correlation_id"
TASK = "celery.task_name"
ACTION = "celery.action"
MESSAGE = "messaging.message.id"
QUEUE = "messaging.destination.name"

tracer = trace.get_tracer("celery_service")


def install(app: Celery, start: Callable[[], None]) -> None:
    """Make spans of what `app` publishes and runs. Before the first one, call `start`."""
    send = app.send_task

    @functools.wraps(send)
    def send_task(name: str, *args: Any, **options: Any) -> Any:
        start()
        if not is_set():
            return send(name, *args, **options)
        with _publishing(name, _parent(options)):
            return send(name, *args, **options)

    app.send_task = send_task  # type: ignore[method-assign]
    for kind in (canvas.group, canvas.chord):
        kind.apply_async = _together(kind.apply_async, start)  # type: ignore[method-assign]
    before_task_publish.connect(_add_context)
    _connect_first(task_prerun, _enter)
    task_failure.connect(_note_failure)
    task_retry.connect(_note_retry)
    task_postrun.connect(_leave)


def _connect_first(signal: Any, receiver: Callable[..., None]) -> None:
    """Call this receiver before those that log: a line about the start of a task has its ids."""
    before = len(signal.receivers)
    signal.connect(receiver)
    if len(signal.receivers) > before:  # not yet connected for another app
        signal.receivers.insert(0, signal.receivers.pop())


def add_ids(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> Any:
    """Add the ids of the trace and the span to a log line. This is a processor of structlog."""
    here = trace.get_current_span().get_span_context()
    if here.is_valid:
        event["trace_id"] = trace.format_trace_id(here.trace_id)
        event["span_id"] = trace.format_span_id(here.span_id)
    return event


# --- publishing ---------------------------------------------------------------------------------


def _parent(options: dict[str, Any]) -> Context | None:
    """Return where a message belongs that is sent again outside of a task: to its old trace."""
    headers = options.get("headers")
    if headers and not trace.get_current_span().get_span_context().is_valid:
        return extract(headers, getter=_FROM_HEADERS)
    return None


@contextmanager
def _publishing(name: str, context: Context | None = None) -> Iterator[None]:
    attributes = {ACTION: "apply_async", TASK: name}
    with tracer.start_as_current_span(
        f"apply_async/{name}",
        context,
        SpanKind.PRODUCER,
        attributes,
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        try:
            yield
        except Exception as error:
            _fail(span, error)
            raise


def _add_context(
    headers: dict[str, Any], exchange: Any = "", routing_key: str = "", **kwargs: object
) -> None:
    span = trace.get_current_span()
    if not span.get_span_context().is_valid:
        return
    inject(headers)
    if span.is_recording():
        span.set_attribute(MESSAGE, str(headers.get("id")))
        info = {"exchange": getattr(exchange, "name", exchange), "routing_key": routing_key}
        span.set_attribute(QUEUE, queue_of(current_app, info) or "")
        span.set_attribute(CORRELATION, correlation.id_of(headers))


def _together(apply_async: Callable[..., Any], start: Callable[[], None]) -> Callable[..., Any]:
    """Put the tasks of a canvas into one trace, where they don't belong to one already."""
    if hasattr(apply_async, SLOT):  # for another app
        return apply_async

    @functools.wraps(apply_async)
    def apply_in_one_trace(self: Any, *args: Any, **options: Any) -> Any:
        start()
        if not is_set() or trace.get_current_span().get_span_context().is_valid:
            return apply_async(self, *args, **options)
        with _publishing(str(self.task).rpartition(".")[2]):
            return apply_async(self, *args, **options)

    setattr(apply_in_one_trace, SLOT, True)
    return apply_in_one_trace


# --- running ------------------------------------------------------------------------------------


def _enter(task: Any, **kwargs: object) -> None:
    if is_set():
        request = task.request
        # Nothing of the last task of this thread may stay, so the context is that of the message.
        context = None if request.is_eager else _context_of(request)
        span = _start("run", task, request, context)
        setattr(request, SLOT, (span, attach(trace.set_span_in_context(span, context))))


def _leave(task: Any, state: str | None = None, **kwargs: object) -> None:
    if entered := vars(task.request).pop(SLOT, None):
        span, token = entered
        if state:
            span.set_attribute("celery.state", state)
        elif error := sys.exc_info()[1]:  # this process is told to end
            _fail(span, error)
        span.end()
        detach(token)


def _note_failure(sender: Any, exception: BaseException, **kwargs: object) -> None:
    request = sender.request
    if entered := getattr(request, SLOT, None):
        if not isinstance(exception, tuple(sender.throws or ())):
            _fail(entered[0], exception)
    elif request.id and isinstance(exception, (TimeLimitExceeded, WorkerLostError)):
        _note_lost(sender, request, exception)


def _note_retry(sender: Any, request: Request, reason: Any, **kwargs: object) -> None:
    if entered := getattr(request, SLOT, None):
        entered[0].set_attribute("celery.retry.reason", redact_text(str(reason)))
    elif isinstance(error := getattr(reason, "exc", None), WorkerLostError):
        _note_lost(sender, request, error)


def _note_lost(task: Any, request: Request, error: BaseException) -> None:
    """Add a span for a task whose process was killed, and the span of its run with it.

    Called in the worker's main process. Nothing there knows when the task has started.
    """
    if is_set():
        span = _start("lost", task, request, _context_of(request))
        _fail(span, error)
        span.end()


def _start(action: str, task: Any, request: Request, context: Context | None) -> Span:
    kind = SpanKind.INTERNAL if request.is_eager else SpanKind.CONSUMER
    span = tracer.start_span(f"{action}/{task.name}", context, kind)
    if span.is_recording():
        attributes = {
            ACTION: action,
            TASK: task.name,
            MESSAGE: request.id,
            CORRELATION: correlation.of_context(request),
            "celery.hostname": request.hostname,
            "celery.retries": request.retries,
            QUEUE: queue_of(task.app, request.delivery_info),
        }
        span.set_attributes({name: value for name, value in attributes.items() if value})
    return span


def _fail(span: Span, error: BaseException) -> None:
    if not span.is_recording():
        return
    kind, message = type(error), redact_text(str(error))
    # As `record_exception` does, but without secrets.
    event = {
        "exception.type": kind.__qualname__,
        "exception.message": message,
        "exception.stacktrace": redact_text("".join(traceback.format_exception(error))),
    }
    span.add_event("exception", event)
    span.set_status(Status(StatusCode.ERROR, f"{kind.__qualname__}: {message}"))


class _FromRequest(Getter[Request]):
    """Finds headers of a message in the request of its task."""

    def get(self, carrier: Request, key: str) -> list[str] | None:
        value = vars(carrier).get(key)
        return [value] if isinstance(value, str) else None

    def keys(self, carrier: Request) -> list[str]:
        return list(vars(carrier))


class _FromHeaders(Getter[dict[str, Any]]):
    """Finds headers of a message. Whoever has sent it may have put anything there."""

    def get(self, carrier: dict[str, Any], key: str) -> list[str] | None:
        value = carrier.get(key)
        return [value] if isinstance(value, str) else None

    def keys(self, carrier: dict[str, Any]) -> list[str]:
        return list(carrier)


_FROM_REQUEST = _FromRequest()
_FROM_HEADERS = _FromHeaders()


def _context_of(request: Request) -> Context:
    return extract(request, Context(), _FROM_REQUEST)
