"""What a worker on RabbitMQ does besides consuming tasks: it declares the queues, and keeps what
ends in `dead_letter`.
"""

from typing import Any

import celery.worker.consumer
import kombu
from celery import bootsteps
from celery.exceptions import InvalidTaskError, Reject
from celery.utils.log import get_logger
from celery.worker.consumer import delayed_delivery
from celery.worker.consumer.tasks import Tasks
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from celery_service.brokers import consumer
from celery_service.brokers.consumer import keep, logged, unknown
from celery_service.brokers.messages import check, is_task
from celery_service.brokers.queues import DEAD_LETTER_QUEUE
from celery_service.brokers.rabbitmq import BACKSTOP
from celery_service.dead_letters.poison import PoisonMessage
from celery_service.dead_letters.story import context_of

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
    """Take messages out of `dead_letter`: keep them as records, and mark their tasks.

    RabbitMQ puts there what was delivered too often, what a worker rejected, and what has expired.
    """

    requires = (DeclareQueues,)

    def __init__(self, parent: Any, **kwargs: Any) -> None:
        super().__init__(parent, **kwargs)
        self._parent = parent

    def get_consumers(self, channel: Any) -> list[kombu.Consumer]:
        """Return the consumer of `dead_letter`."""
        queue = self._parent.app.amqp.queues[DEAD_LETTER_QUEUE]
        consumer = kombu.Consumer(
            channel,
            queues=[queue],
            on_message=self._settle,
            on_decode_error=lambda message, _: self._settle(message),
            accept=self._parent.app.conf.accept_content,
            prefetch_count=10,
        )
        return [consumer]

    def _settle(self, message: Any) -> None:
        app = self._parent.app
        # Why RabbitMQ put it here, and from which queue. A delay leaves older entries.
        reason = queue = ""
        match message.headers.get("x-death"):
            case [{"reason": str(reason), "queue": str(queue)}, *_]:
                pass
        try:
            if reason == "expired" and is_task(message.headers):
                self._revoke(message)
            elif reason == "delivery_limit":
                exception = PoisonMessage(BACKSTOP)
                keep(app, message, "poison", exception, queue=queue, deliveries=BACKSTOP)
            else:
                keep(app, message, *self._cause(message), queue=queue)
        except (RedisError, OperationalError) as error:
            # It stays in the queue, unacknowledged.
            logger.warning("can't keep a dead letter, trying again in 5 seconds: %s", error)
            self._parent.timer.call_after(5.0, self._settle, (message,))
        else:
            message.ack()

    def _revoke(self, message: Any) -> None:
        """Mark a task that has expired, as a worker does that receives one."""
        context = context_of(message)
        logger.info("Discarding revoked task: %s[%s]", message.headers["task"], context.id)
        with logged("can't revoke a task"):
            self._parent.app.backend.mark_as_revoked(context.id, "expired", request=context)

    def _cause(self, message: Any) -> tuple[str, Exception]:
        try:
            check(message)
        except Exception as error:
            return "undecodable", error
        name = message.headers.get("task")
        if name is None:
            return "undecodable", InvalidTaskError("not a task")
        if name not in self._parent.app.tasks:
            return "unknown_task", unknown(message)
        return "rejected", Reject("a worker has rejected it")


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


_celerys: Any = celery.worker.consumer.Consumer


class Consumer(consumer.Consumer):
    """Has the steps above. RabbitMQ puts the messages that it rejects into `dead_letter`."""

    class Blueprint(_celerys.Blueprint):  # type: ignore[misc]
        """The steps in which it starts."""

        default_steps = (
            *(step for step in _celerys.Blueprint.default_steps if "DelayedDelivery" not in step),
            DeclareQueues,
            DelaysAfterQueues,
            KeepDeadLetters,
            LookBriefly,
        )

    def keep(self, message: Any, reason: str, exception: Exception) -> None:
        """Do nothing: RabbitMQ puts the message into `dead_letter`."""

    def hand_back(self, *, blocked: bool) -> None:
        """Do nothing: RabbitMQ sees that the connection ends."""
