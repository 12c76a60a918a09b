"""What a worker on RabbitMQ does besides consuming tasks: it declares the queues, and keeps what
ends in `dead_letter`.
"""

from typing import Any

import kombu
from celery import bootsteps
from celery.app.task import Context
from celery.exceptions import NotRegistered, Reject
from celery.utils.log import get_logger
from celery.worker import consumer
from celery.worker.consumer import delayed_delivery
from celery.worker.consumer.tasks import Tasks
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from celery_service.brokers.queues import DEAD_LETTER_QUEUE
from celery_service.brokers.rabbitmq import BACKSTOP
from celery_service.dead_letters.poison import PoisonMessage
from celery_service.dead_letters.store import DeadLetters
from celery_service.dead_letters.story import story_of_message

#: How long to look whether there is a heartbeat, in seconds.
MOMENT = 0.001

logger = get_logger(__name__)


class DeclareQueues(bootsteps.StartStopStep):
    """Declare every queue when a worker connects, those too that it doesn't consume."""

    requires = ("celery.worker.consumer.connection:Connection",)

    def start(self, parent: Any) -> None:
        """Declare them, at start and after each reconnection."""
        with parent.connection.channel() as channel:
            for queue in parent.app.amqp.queues.values():
                queue.bind(channel).declare()


class DelaysAfterQueues(delayed_delivery.DelayedDelivery):
    """Binds the queues to the exchange that delays messages, once they are all there.

    Celery declares only what a worker consumes; binding any other switches delays off.
    """

    requires = (Tasks, DeclareQueues)


class KeepDeadLetters(bootsteps.ConsumerStep):
    """Take messages out of `dead_letter`, keep them as records, and mark their tasks as failed.

    RabbitMQ puts there what was delivered too often and what a worker rejected.
    """

    requires = (DeclareQueues,)

    def __init__(self, parent: Any, **kwargs: Any) -> None:
        super().__init__(parent, **kwargs)
        self._parent = parent

    def get_consumers(self, channel: Any) -> list[kombu.Consumer]:
        """Return the consumer of `dead_letter`."""
        queue = self._parent.app.amqp.queues[DEAD_LETTER_QUEUE]
        return [kombu.Consumer(channel, queues=[queue], on_message=self._keep, prefetch_count=10)]

    def _keep(self, message: Any) -> None:
        app = self._parent.app
        exception, reason = self._cause(message)
        record = story_of_message(message, reason=reason, error=str(exception.args[0]))
        if reason == "poison":
            record["deliveries"] = BACKSTOP
        try:
            DeadLetters(app).add(record)
            if record["task"]:
                context = Context(message.headers)
                app.backend.mark_as_failure(record["id"], exception, request=context)
        except (RedisError, OperationalError) as error:
            # It stays in the queue, unacknowledged.
            logger.warning("can't keep a dead letter, trying again in 5 seconds: %s", error)
            self._parent.timer.call_after(5.0, self._keep, (message,))
        else:
            message.ack()

    def _cause(self, message: Any) -> tuple[Exception, str]:
        name = message.headers.get("task")
        if message.headers.get("x-first-death-reason") == "delivery_limit":
            return PoisonMessage(BACKSTOP), "poison"
        if name is None:
            return Reject("not a task"), "undecodable"
        if name not in self._parent.app.tasks:
            return NotRegistered(f"no task is named {name!r}"), "unknown_task"
        return Reject("rejected by its task"), "rejected"


class LookBriefly(bootsteps.StartStopStep):
    """Look only for a moment at the connection for events, and only when nobody else does.

    In a pool without an event loop, such as gevent, Celery looks for a heartbeat there after each
    message, and for 0.1 seconds: no worker would start more than ten tasks a second. And it takes
    the confirmation that who sends an event waits for, for ever and with a lock.
    """

    requires = ("celery.worker.consumer.events:Events",)

    def include_if(self, parent: Any) -> bool:
        """Leave it alone where there is an event loop."""
        return not parent.hub

    def start(self, parent: Any) -> None:
        """Change the connection, at start and after each reconnection."""
        dispatcher = parent.event_dispatcher
        drain = dispatcher.connection.drain_events

        def look(**_: object) -> None:
            if dispatcher.mutex.acquire(blocking=False):
                try:
                    drain(timeout=MOMENT)
                finally:
                    dispatcher.mutex.release()

        dispatcher.connection.drain_events = look


_celerys: Any = consumer.Consumer


class Consumer(_celerys):  # type: ignore[misc]
    """Celery's, with the steps above, and rejecting what Celery would acknowledge unseen."""

    class Blueprint(_celerys.Blueprint):  # type: ignore[misc]
        """The steps in which it starts."""

        default_steps = (
            *(step for step in _celerys.Blueprint.default_steps if "DelayedDelivery" not in step),
            DeclareQueues,
            DelaysAfterQueues,
            KeepDeadLetters,
            LookBriefly,
        )

    def hand_back(self, *, blocked: bool) -> None:
        """Do nothing: RabbitMQ sees that the connection ends."""

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        """Reject a message whose body can't be read: RabbitMQ then gives it to `dead_letter`."""
        logger.error("can't decode a message: %s", exc)
        message.reject_log_error(logger, self.connection_errors)
