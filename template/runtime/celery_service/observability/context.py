"""The task that a log line comes from."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import Any

import structlog
from celery import Celery, current_app
from celery.app.task import Context
from celery.signals import task_postrun, task_prerun

from celery_service.brokers.queues import queue_of
from celery_service.observability import correlation

Fields = dict[str, Any]

_fields: ContextVar[Fields | None] = ContextVar("celery_service_fields", default=None)
# As in correlation.py: eager tasks run inside others.
_outside: ContextVar[tuple[Fields | None, ...]] = ContextVar("celery_service_tasks", default=())


def fields() -> Fields | None:
    """Return what every line of the current task has; None outside of tasks. Don't change it."""
    return _fields.get()


def install() -> None:
    """Remember the task that runs."""
    task_prerun.connect(_enter)
    task_postrun.connect(_leave)


def of_context(task_name: str, context: Context) -> Fields:
    """Return what every line about a task has, by the context of the task."""
    return {
        "task_id": context.id,
        "task_name": task_name,
        "retries": context.retries,
        "queue": _queue(context.delivery_info),
        "worker": context.hostname,
        "correlation_id": correlation.of_context(context),
    }


def of_headers(headers: Mapping[str, Any], delivery_info: Any, worker: str | None) -> Fields:
    """Return what every line about a message has. Its headers may have any form."""
    return {
        "task_id": headers.get("id"),
        "task_name": headers.get("task"),
        "retries": headers.get("retries"),
        "queue": _queue(delivery_info),
        "worker": worker,
        "correlation_id": correlation.id_of(headers),
    }


@contextmanager
def about(fields: Fields) -> Iterator[None]:
    """Give the lines in this block these fields, and the messages that it sends their id.

    The main process of a worker ends tasks that aren't running: a lost process, a time limit.
    """
    before = _fields.get()
    _fields.set(fields)
    try:
        with correlation.bind(fields["correlation_id"]):
            yield
    finally:
        _fields.set(before)


def _enter(task: Any, **kwargs: object) -> None:
    context: Context = task.request
    if context.is_eager:
        _outside.set((*_outside.get(), _fields.get()))
    else:
        # A thread or process serves one task after the other: nothing of the last one may stay.
        _outside.set(())
        structlog.contextvars.clear_contextvars()
    found = of_context(task.name, context)
    # Whoever binds another id in a task wants to see it.
    del found["correlation_id"]
    _fields.set(found)


def _leave(task: Any, **kwargs: object) -> None:
    *before, outside = _outside.get() or (None,)
    _outside.set(tuple(before))
    _fields.set(outside)
    if not task.request.is_eager:
        structlog.contextvars.clear_contextvars()


def _queue(delivery_info: Any) -> str | None:
    info = delivery_info if isinstance(delivery_info, Mapping) else {}
    return queue_at(
        current_app, str(info.get("exchange") or ""), str(info.get("routing_key") or "")
    )


@lru_cache(maxsize=128)
def queue_at(app: Celery, exchange: str, routing_key: str) -> str | None:
    """Return the name of the queue where messages for this exchange and key go to."""
    return queue_of(app, {"exchange": exchange, "routing_key": routing_key})
