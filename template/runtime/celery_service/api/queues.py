"""How many messages wait in the queues, and for how long the oldest one has waited."""

import json
import time
from typing import Any

from celery import Celery
from celery.signals import before_task_publish
from pydantic import BaseModel

from celery_service.brokers.errors import broker_errors

#: The header of a message that says when it was sent, in seconds since 1970.
SENT_AT = "sent_at"


class Queue(BaseModel):
    """A queue of the broker."""

    name: str
    length: int
    #: None if it is empty, or if the broker or the message doesn't tell.
    oldest_age_seconds: float | None = None


def write_times() -> None:
    """Write the time into the messages that this process sends."""
    before_task_publish.connect(_write_time)


def _write_time(headers: dict[str, Any] | None = None, **kwargs: object) -> None:
    if headers is not None:
        headers.setdefault(SENT_AT, round(time.time(), 3))


def queues(app: Celery) -> list[Queue]:
    """Return the queues of the service. One that doesn't exist yet is empty.

    Raises:
        OperationalError: The broker can't be reached.
    """
    with app.connection_for_read() as connection, broker_errors(connection):
        connection.ensure_connection(max_retries=1, interval_start=0, interval_step=0)
        return [_look(connection, name) for name in app.amqp.queues]


def _look(connection: Any, name: str) -> Queue:
    with connection.channel() as channel:
        try:
            length = int(channel.queue_declare(queue=name, passive=True).message_count)
        except connection.channel_errors as error:
            if getattr(error, "reply_code", None) not in (404, "404"):
                raise
            length = 0
        return Queue(name=name, length=length, oldest_age_seconds=_age(channel, name))


def _age(channel: Any, queue: str) -> float | None:
    """Return the age of the message that is taken next. Only Redis shows it."""
    if getattr(channel.connection, "driver_type", "") != "redis":
        return None
    with channel.conn_or_acquire() as client:
        # Publishers push to the left, workers take from the right.
        text = client.lindex(channel._q_for_pri(queue, 0), -1)
    try:
        return max(0.0, round(time.time() - float(json.loads(text)["headers"][SENT_AT]), 1))
    except (KeyError, TypeError, ValueError):
        return None
