"""What becomes of a task: one line for each event, with the names of django-structlog.

Arguments and results of tasks aren't logged: they may be large or confidential.
"""

import datetime
import logging
from functools import partial
from typing import Any

from billiard.exceptions import Terminated, TimeLimitExceeded, WorkerLostError
from celery import current_app, signals, states
from celery.app.task import Context
from celery.exceptions import Reject

from celery_service.brokers.consumer import about
from celery_service.dead_letters.poison import PoisonMessage
from celery_service.observability import context, correlation, lines
from celery_service.observability.doubles import due, failed

logger = logging.getLogger("celery_service.events")

#: Their traceback shows only Celery.
_WITHOUT_TRACEBACK = (PoisonMessage, Terminated, TimeLimitExceeded, WorkerLostError)


def install() -> None:
    """Log the events of this process."""
    signals.after_task_publish.connect(_enqueued)
    signals.task_prerun.connect(_started)
    signals.task_success.connect(_succeeded)
    signals.task_retry.connect(_retrying)
    signals.task_failure.connect(_failed)
    signals.task_postrun.connect(_ignored)
    signals.task_internal_error.connect(_failed_outside)
    signals.task_revoked.connect(_revoked)
    signals.task_rejected.connect(_rejected)
    signals.task_unknown.connect(_unknown)


_tell = partial(lines.write, logger)


def _enqueued(
    sender: str, headers: dict[str, Any], exchange: Any, routing_key: Any, **kwargs: object
) -> None:
    if headers.get("retries"):
        return  # `task_retrying` says it
    if not logger.isEnabledFor(logging.INFO):
        return
    fields = {
        "task_id": headers.get("id"),
        "task_name": sender,
        "retries": 0,
        "queue": context.queue_at(
            current_app, str(getattr(exchange, "name", exchange) or ""), str(routing_key or "")
        ),
        "correlation_id": headers.get(correlation.HEADER),
    }
    # Who sent it.
    if entry := due.get():
        fields["schedule_entry"] = entry
        due.set(None)
    for name in ("parent_id", "eta", "expires", "replayed_from"):
        if headers.get(name):
            fields[name] = headers[name]
    _tell(logging.INFO, "task_enqueued", fields)


def _started(task: Any, **kwargs: object) -> None:
    info = task.request.delivery_info or {}
    _tell(logging.INFO, "task_started", {"redelivered": True} if info.get("redelivered") else {})


def _succeeded(runtime: float | None = None, **kwargs: object) -> None:
    _tell(logging.INFO, "task_succeeded", {} if runtime is None else {"runtime": round(runtime, 6)})


def _retrying(sender: Any, request: Context, reason: Any = None, **kwargs: object) -> None:
    # A worker that cancels its tasks, because it has lost its broker, gives no reason.
    error = getattr(reason, "exc", None)
    text = _line_of(error) if error else str(getattr(reason, "message", None) or "cancelled")
    fields = context.of_context(sender.name, request) | {"reason": text}
    when = getattr(reason, "when", None)
    if isinstance(when, datetime.datetime):
        fields["eta"] = when.isoformat()
    elif when is not None:
        fields["countdown"] = when
    _tell(logging.INFO, "task_retrying", fields)


def _failed(sender: Any, exception: BaseException, einfo: Any = None, **kwargs: object) -> None:
    request: Context = sender.request
    # A plain call, whose caller sees the exception, has no id. Nor has the first of two signals
    # about a time limit. A task that rejects its message is logged as `task_rejected`.
    if request.id is None or isinstance(exception, Reject):
        return
    failed.set(request.id)
    fields = context.of_context(sender.name, request)
    if sender.throws and isinstance(exception, sender.throws):
        _tell(logging.INFO, "task_failed", fields | {"error": _line_of(exception)})
    else:
        _tell(logging.ERROR, "task_failed", fields | _told(exception, einfo))


def _ignored(task: Any, state: str | None = None, **kwargs: object) -> None:
    """Log that the task raised `Ignore`, for which Celery has no signal."""
    if state == states.IGNORED:
        _tell(logging.INFO, "task_ignored", context.of_context(task.name, task.request))


def _failed_outside(
    sender: Any, request: Any, exception: BaseException, einfo: Any = None, **kwargs: object
) -> None:
    """Log that the task has ended, but that its result can't be stored, for example."""
    fields = context.of_context(sender.name, Context(request))
    _tell(logging.ERROR, "task_failed", fields | {"internal": True} | _told(exception, einfo))


def _revoked(
    sender: Any, request: Any, terminated: bool, signum: Any, expired: bool, **kwargs: object
) -> None:
    name = getattr(sender, "name", None) or getattr(request, "task", None)
    fields = context.of_context(str(name), request)
    fields |= {"terminated": bool(terminated), "expired": bool(expired)}
    if terminated:
        fields["signal"] = str(signum)
    _tell(logging.WARNING, "task_revoked", fields)


def _rejected(sender: Any, message: Any, exc: Any = None, **kwargs: object) -> None:
    """Log a message that has no valid form."""
    fields = _of_message(message, sender) | {"reason": _line_of(exc) if exc else "not a task"}
    _tell(logging.ERROR, "task_rejected", fields)


def _unknown(sender: Any, message: Any, **kwargs: object) -> None:
    _tell(logging.ERROR, "task_unknown", _of_message(message, sender))


def _of_message(message: Any, consumer: Any) -> context.Fields:
    return about(message, getattr(consumer, "hostname", None))


def _told(exception: BaseException, einfo: Any) -> context.Fields:
    text = str(getattr(einfo, "traceback", None) or "").rstrip()
    if not text or isinstance(exception, _WITHOUT_TRACEBACK):
        return {"error": _line_of(exception)}
    return {"exception": text}


def _line_of(error: BaseException | str) -> str:
    if isinstance(error, str):
        return error
    # str() of a KeyError puts quotes around the message.
    text = error.args[0] if isinstance(error, KeyError) and error.args else error
    return f"{type(error).__name__}: {text}"
