"""The record of a message: its contents, how it failed, and how to send it again."""

import contextlib
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from celery import current_app
from celery.app.task import Context

from celery_service.brokers.messages import is_task, is_too_deep
from celery_service.brokers.queues import queue_of
from celery_service.observability import correlation

Record = dict[str, Any]


def story(context: Context, *, reason: str, error: str) -> Record:
    """Return the record of a task: its message, its error, and the options to send it again."""
    # Keep 0: it is the index of the first task in a chord.
    given = context.as_execution_options().items()
    options = {name: value for name, value in given if value or value == 0}
    options["headers"] = own_headers(context)
    return {
        "id": context.id,
        "task": getattr(context, "task", None),
        "args": context.args,
        "kwargs": context.kwargs,
        "queue": _queue(context.delivery_info),
        "options": options,
        "correlation_id": correlation.of_context(context),
        "replayed_from": options["headers"].get("replayed_from"),
        "retries": context.retries,
        "deliveries": 1,
        "reason": reason,
        "error": error,
        "traceback": "",
        **_now(),
    }


def story_of_message(message: Any, *, reason: str, error: str) -> Record:
    """Return the record of a message that was never passed to a task.

    If the message can't be decoded, the record has the text of its body instead of arguments.
    """
    headers, body = message.headers, message.body
    known = is_task(headers)
    with contextlib.suppress(Exception):  # any message must be kept
        args, kwargs, embed = message.decode()
        if known and not is_too_deep(args, kwargs, embed, headers):
            return story(context_of(message), reason=reason, error=error)
    return {
        "id": headers["id"] if known else str(uuid4()),
        "task": headers["task"] if known else None,
        "body": body if isinstance(body, str) else bytes(body).decode("utf-8", "backslashreplace"),
        "queue": _queue(message.delivery_info),
        "options": {},
        "correlation_id": correlation.id_of(headers) if known else None,
        "deliveries": 1,
        "reason": "undecodable",
        "error": error,
        **_now(),
    }


def context_of(message: Any) -> Context:
    """Return the context of a message's task, without arguments if they can't be decoded."""
    try:
        args, kwargs, embed = message.decode()
        body = {**(embed or {}), "args": args, "kwargs": kwargs}
    except Exception:  # the body may be anything
        body = {}
    return Context({**message.headers, **body, "delivery_info": message.delivery_info})


def own_headers(context: Context) -> Record:
    """Return the headers that the sender added, without those of Celery and ours."""
    known = {"argsrepr", "kwargsrepr", "lang", "redelivered", "task", correlation.HEADER}
    return {
        name: value
        for name, value in vars(context).items()
        if not hasattr(Context, name) and name not in known and not name.startswith(("_", "x-"))
    }


def headers_of(record: Record) -> Record:
    """Return the headers that a message gets when it is sent again."""
    id_ = record.get("correlation_id")
    return {"replayed_from": record["id"]} | ({correlation.HEADER: id_} if id_ else {})


def _queue(delivery_info: Any) -> str:
    found = queue_of(current_app, delivery_info)
    return found or str((delivery_info or {}).get("routing_key") or "")


def _now() -> dict[str, object]:
    now = datetime.now(UTC)
    return {"time": now.timestamp(), "failed_at": now.isoformat(timespec="seconds")}
