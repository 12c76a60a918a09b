"""The consumer of a worker on Redis. It keeps running tasks when it loses its connection."""

import time
import warnings
from typing import Any

from celery.exceptions import CPendingDeprecationWarning
from celery.utils.log import get_logger
from celery.worker.state import active_requests
from redis.exceptions import ResponseError

from celery_service.brokers import consumer
from celery_service.brokers.redis.lease import leases

logger = get_logger(__name__)

# With each lost connection, Celery would warn that the default of
# worker_cancel_long_running_tasks_on_connection_loss will change. Our settings set it.
warnings.filterwarnings("ignore", r"\s*In Celery 5\.1", CPendingDeprecationWarning)


class Consumer(consumer.Consumer):
    """Keeps the messages of running tasks after a lost connection."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        leases.holder, leases.closed = self.hostname, False

    def shutdown(self) -> None:
        """Stop renewing leases, when all tasks have ended."""
        super().shutdown()
        leases.stop()

    def hand_back(self, *, blocked: bool) -> None:
        """Give unfinished messages back; lifecycle/shutdown.py calls this if threads are green."""
        leases.give_back(blocked=blocked)

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        """Make running tasks acknowledge their messages on the next connection."""
        if isinstance(exc, ResponseError):
            logger.warning("Redis doesn't let a worker start, trying again in a second: %s", exc)
            time.sleep(1)
        tasks: Any = getattr(self, "task_consumer", None)
        if tasks:
            for running in active_requests:
                tasks.channel.qos.keep(running.message.delivery_tag)
        super().on_connection_error_after_connected(exc)
