"""The time at which a message was sent: a header, for whoever tells how long messages wait."""

import json
import time
from datetime import datetime
from typing import Any

from celery.signals import before_task_publish

#: The header, in seconds since 1970.
SENT_AT = "sent_at"


def write_times() -> None:
    """Write the time into the messages that this process sends."""
    before_task_publish.connect(_write_time)


def _write_time(headers: dict[str, Any] | None = None, **kwargs: object) -> None:
    # A retry and a replayed dead letter have the time of the message before.
    if headers is not None:
        headers[SENT_AT] = round(time.time(), 3)


def time_of(message: bytes | str | None) -> float | None:
    """Return when a message was sent, as Redis stores it, if it has the header."""
    try:
        value = json.loads(message or b"")["headers"][SENT_AT]
        return datetime.fromisoformat(value).timestamp() if isinstance(value, str) else float(value)
    except (KeyError, TypeError, ValueError):
        return None
