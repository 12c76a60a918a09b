"""Poison messages: those whose task kills its process each time. After DELIVERY_LIMIT deliveries,
such a message becomes a dead letter.

Neither broker can count these deliveries. Redis counts nothing. RabbitMQ can't tell whether a task
killed its process or a deployment interrupted it. So we count in the Redis of the result backend.
"""

from collections.abc import Iterable
from typing import Any

import structlog
from celery import Celery
from celery.app.task import Context
from redis.exceptions import RedisError

from celery_service.dead_letters.store import DAY, deliveries_key, redis_of

#: A message whose process has died at each of so many deliveries becomes a dead letter.
DELIVERY_LIMIT = 3

logger = structlog.get_logger(__name__)


class PoisonMessage(Exception):
    """A message was delivered DELIVERY_LIMIT times, and its process died each time."""

    def __init__(self, deliveries: int = DELIVERY_LIMIT) -> None:
        super().__init__(f"delivered {deliveries} times, and its process died each time")


def refuse(app: Celery, context: Context) -> None:
    """Count a redelivered message, in the process that is about to run it.

    Raises:
        PoisonMessage: The message has reached DELIVERY_LIMIT.
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
    """Uncount deliveries that end because the worker stops. If Redis is unreachable, they count."""
    # A separate backend: with green threads, the threads that run tasks use the app's backend.
    anything: Any = app
    redis = redis_of(app, anything._get_backend())
    if redis is None:
        return
    try:
        with redis.pipeline() as pipe:
            for request in requests:
                if request.time_start:  # a task that hasn't started isn't counted
                    _count(pipe, app, request.id, request.request_dict.get("retries", 0), -1)
            pipe.execute()
    except RedisError as error:
        logger.warning("interruption_counts_as_delivery", error=str(error))


def _count(pipe: Any, app: Celery, task_id: str, retries: int, number: int) -> None:
    name = deliveries_key(app, task_id)
    pipe.hincrby(name, retries, number).expire(name, DAY)
