"""How many messages wait in the queues, and for how long the oldest one has waited."""

import time
from typing import Any

from celery import Celery
from pydantic import BaseModel

from celery_service.brokers.errors import broker_errors
from celery_service.brokers.times import time_of
from celery_service.observability.overview import length_of


class Queue(BaseModel):
    """A queue of the broker."""

    name: str
    length: int
    #: None if it is empty, or if the broker or the message doesn't tell.
    oldest_age_seconds: float | None = None


def queues(app: Celery) -> list[Queue]:
    """Return the queues of the service. One that doesn't exist yet is empty.

    Raises:
        OperationalError: The broker can't be reached.
    """
    with app.connection_for_read() as connection, broker_errors(connection):
        connection.ensure_connection(max_retries=1, interval_start=0, interval_step=0)
        return [_look(connection, name) for name in app.amqp.queues]


def _look(connection: Any, name: str) -> Queue:
    length = length_of(connection, name).waiting
    with connection.channel() as channel:
        return Queue(name=name, length=length, oldest_age_seconds=_age(channel, name))


def _age(channel: Any, queue: str) -> float | None:
    """Return the age of the message that is taken next. Only Redis shows it."""
    if getattr(channel.connection, "driver_type", "") != "redis":
        return None
    with channel.conn_or_acquire() as client:
        # Publishers push to the left, workers take from the right.
        sent = time_of(client.lindex(channel._q_for_pri(queue, 0), -1))
    return None if sent is None else max(0.0, round(time.time() - sent, 1))
