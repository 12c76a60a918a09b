"""Poison: a message whose process dies each time. It is given up after DELIVERY_LIMIT deliveries.

Neither broker counts what we need: Redis counts nothing, and RabbitMQ can't tell a task that kills
its process from one that a deployment has interrupted. So we count, in the Redis of the results.
"""

from collections.abc import Iterable
from typing import Any

import structlog
from celery import Celery
from celery.app.task import Context
from redis.exceptions import RedisError

from celery_service.dead_letters.store import DAY, deliveries_key, redis_of

#: Deliveries of one message. When its process has died each time, it becomes a dead letter.
DELIVERY_LIMIT = 3

logger = structlog.get_logger(__name__)


class PoisonMessage(Exception):
    """A message was delivered as often as allowed, and each time its process died."""

    def __init__(self, deliveries: int = DELIVERY_LIMIT) -> None:
        super().__init__(f"delivered {deliveries} times, and its process died each time")


def refuse(app: Celery, context: Context) -> None:
    """Count a message that comes again, in the process that is about to run it.

    Raises:
        PoisonMessage: It was delivered as often as allowed.
    """
    redis = redis_of(app)
    if redis is None or not (context.delivery_info or {}).get("redelivered"):
        return
    try:
        with redis.pipeline() as pipe:
            _count(pipe, app, str(context.id), context.retries, 1)
            redeliveries: int = pipe.execute()[0]
    except RedisError as error:
        logger.warning("delivery_not_counted", error=str(error))
        return
    if redeliveries >= DELIVERY_LIMIT:
        raise PoisonMessage


def forgive(app: Celery, requests: Iterable[Any]) -> None:
    """Have deliveries not count that end because their worker stops. Without Redis they do."""
    # A backend of its own: where threads are green, the app's belongs to those that run tasks.
    anything: Any = app
    redis = redis_of(app, anything._get_backend())
    if redis is None:
        return
    try:
        with redis.pipeline() as pipe:
            for request in requests:
                if request.time_start:  # what hasn't begun isn't counted
                    _count(pipe, app, request.id, request.request_dict.get("retries", 0), -1)
            pipe.execute()
    except RedisError as error:
        logger.warning("interruption_counts_as_delivery", error=str(error))


def _count(pipe: Any, app: Celery, task_id: str, retries: int, number: int) -> None:
    name = deliveries_key(app, task_id)
    pipe.hincrby(name, retries, number).expire(name, DAY)
