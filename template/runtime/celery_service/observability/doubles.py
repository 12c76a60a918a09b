"""Silences the lines of Celery about what events.py logs. Other lines of its loggers stay."""

import logging
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import celery.app.trace
import celery.worker.consumer.consumer
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from celery_service.observability import context

#: The id of the last task that was logged as failed.
failed: ContextVar[str | None] = ContextVar("celery_service_failed", default=None)
#: The entry of the schedule that beat is sending.
due: ContextVar[str | None] = ContextVar("celery_service_due", default=None)

_trace: Any = celery.app.trace
_consumer: Any = celery.worker.consumer.consumer

_OF_TASKS = {_trace.LOG_SUCCESS, _trace.LOG_FAILURE, _trace.LOG_INTERNAL_ERROR, _trace.LOG_RETRY}
_OF_MESSAGES = {
    _consumer.UNKNOWN_FORMAT,
    _consumer.UNKNOWN_TASK_ERROR,
    _consumer.INVALID_TASK_ERROR,
}


def silence() -> None:
    """Silence them in this process."""
    for name, keeps in _FILTERS.items():
        logger = logging.getLogger(name)
        if keeps not in logger.filters:
            logger.addFilter(keeps)


def skip() -> None:
    """Don't even make the lines about received and successful tasks: that costs time.

    Celery has asked for their level before the first message.
    """
    for name in ("celery.app.trace", "celery.worker.strategy"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _of_trace(record: logging.LogRecord) -> bool:
    if record.msg == _trace.LOG_REJECTED:
        # The signal `task_rejected` isn't sent for tasks that reject their message themselves.
        _becomes(record, "task_rejected", reason=record.data["exc"])  # type: ignore[attr-defined]
    elif record.msg == _trace.LOG_IGNORED:
        # Other messages are ignored before they run: they were delivered after a success.
        return bool(record.data["description"] != "ignored")  # type: ignore[attr-defined]
    return record.msg not in _OF_TASKS


def _of_request(record: logging.LogRecord) -> bool:
    text = str(record.msg)
    if text.startswith("Task handler raised error"):
        of_task, told = context.fields() or {}, failed.get()
        # The same task may be replayed.
        failed.set(None)
        if told is not None and told == of_task.get("task_id"):
            return False
        # The message goes back to the broker. The traceback shows only Celery.
        error = _argument_of(record)
        _becomes(record, "task_process_lost", error=f"{type(error).__name__}: {error}")
        return True
    return not (
        text.startswith(("Discarding revoked task", "Hard time limit"))
        or text == "Task %s[%s] retry: %s"
    )


def _of_beat(record: logging.LogRecord) -> bool:
    if str(record.msg).startswith("Scheduler: Sending due task"):
        due.set(str(_argument_of(record)))
        return False
    return True


def _of_results(record: logging.LogRecord) -> bool:
    # brokers/redis/backend.py logs once for each wait instead of once for each attempt.
    error = record.exc_info[1] if record.exc_info else None
    is_away = isinstance(error, RedisError | OperationalError)
    return not (is_away and str(record.msg).startswith("Failed operation"))


def _argument_of(record: logging.LogRecord) -> object:
    """Return the first argument of the text."""
    return record.args[0] if isinstance(record.args, tuple) and record.args else None


def _becomes(record: logging.LogRecord, event: str, **fields: object) -> None:
    record.msg, record.args, record.exc_info = event, (), None
    record.service_fields = fields


#: Loggers → what tells whether to keep a record.
_FILTERS: dict[str, Callable[[logging.LogRecord], bool]] = {
    "celery.app.trace": _of_trace,
    "celery.worker.strategy": lambda record: record.msg != _trace.LOG_RECEIVED,
    "celery.worker.request": _of_request,
    "celery.worker.consumer.consumer": lambda record: record.msg not in _OF_MESSAGES,
    "celery.beat": _of_beat,
    "celery.backends.base": _of_results,
    "celery.backends.redis": lambda record: not str(record.msg).startswith("Connection to Redis"),
    "py.warnings": lambda record: "Exception raised outside body" not in str(record.args),
}
