"""The story of a message: what it says, how it ended, and how to send it again."""

from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from celery import current_app
from celery.app.task import Context

from celery_service.brokers.queues import queue_of

Record = dict[str, Any]


def story(context: Context, *, reason: str, error: str) -> Record:
    """Return the record of a task: what its message says, how it failed, how to send it again."""
    # A 0 counts: it is the place of the first task in its chord.
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
        "correlation_id": context.correlation_id,
        "replayed_from": options["headers"].get("replayed_from"),
        "retries": context.retries,
        "deliveries": 1,
        "reason": reason,
        "error": error,
        "traceback": "",
        **_now(),
    }


def story_of_message(message: Any, *, reason: str, error: str) -> Record:
    """Return the record of a message that no task has seen; of its text, where it is no task."""
    try:
        args, kwargs, embed = message.decode()
        parts = {"args": args, "kwargs": kwargs, "delivery_info": message.delivery_info}
        context = Context({**message.headers, **embed, **parts})
        if context.id:
            return story(context, reason=reason, error=error)
    except Exception as decoding:  # whatever arrives, nothing may be lost
        error = f"{error} ({type(decoding).__name__}: {decoding})"
    body = message.body
    return {
        "id": str(uuid4()),
        "task": None,
        "body": body if isinstance(body, str) else bytes(body).decode("utf-8", "backslashreplace"),
        "queue": _queue(message.delivery_info),
        "options": {},
        "deliveries": 1,
        "reason": "undecodable",
        "error": error,
        **_now(),
    }


def own_headers(context: Context) -> Record:
    """Return the headers that the sender added to Celery's own."""
    celerys = {"argsrepr", "kwargsrepr", "lang", "redelivered", "task"}
    return {
        name: value
        for name, value in vars(context).items()
        if not hasattr(Context, name) and name not in celerys and not name.startswith(("_", "x-"))
    }


def _queue(delivery_info: Any) -> str:
    found = queue_of(current_app, delivery_info)
    return found or str((delivery_info or {}).get("routing_key") or "")


def _now() -> dict[str, object]:
    now = datetime.now(UTC)
    return {"time": now.timestamp(), "failed_at": now.isoformat(timespec="seconds")}
