"""The consumer of a worker on RabbitMQ. Besides consuming tasks, it declares all queues, and it
consumes the queue `dead_letter` and keeps its messages as records.
"""

from typing import Any

import celery.worker.consumer
import kombu
from celery import bootsteps
from celery.exceptions import InvalidTaskError, Reject
from celery.signals import task_revoked
from celery.utils.log import get_logger
from celery.worker.consumer import delayed_delivery
from celery.worker.consumer.tasks import Tasks
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from celery_service.brokers import consumer
from celery_service.brokers.consumer import about, keep, logged, unknown
from celery_service.brokers.messages import check, is_task
from celery_service.brokers.queues import DEAD_LETTER_QUEUE
from celery_service.brokers.rabbitmq import BACKSTOP
from celery_service.dead_letters.poison import PoisonMessage
from celery_service.dead_letters.story import context_of
from celery_service.observability import context as observability

#: Seconds to wait for a heartbeat on the connection for events.
MOMENT = 0.001

logger = get_logger(__name__)


class DeclareQueues(bootsteps.StartStopStep):
    """Declares all queues when a worker connects, including those that it doesn't consume."""

    requires = ("celery.worker.consumer.connection:Connection",)

    def start(self, parent: Any) -> None:
        """Declare the queues, when the worker starts and after each reconnection."""
        with parent.connection.channel() as channel:
            for queue in parent.app.amqp.queues.values():
                queue.bind(channel).declare()


class DelaysAfterQueues(delayed_delivery.DelayedDelivery):
    """Binds the queues to the exchange that delays messages, after all queues are declared.

    Celery declares only the queues that a worker consumes. If it then binds a queue that doesn't
    exist, it turns delayed delivery off.
    """

    requires = (Tasks, DeclareQueues)


class KeepDeadLetters(bootsteps.ConsumerStep):
    """Consumes `dead_letter`: keeps each message as a record, and marks its task as failed.

    RabbitMQ moves a message there if it was delivered too often, was rejected or has expired.
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
        with observability.about(about(message, self._parent.hostname)):
            self._settle_message(message)

    def _settle_message(self, message: Any) -> None:
        app = self._parent.app
        # The first entry says why and from which queue RabbitMQ moved the message here. Later
        # entries are from delays.
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
            # The message stays in the queue, unacknowledged.
            logger.warning("can't keep a dead letter, trying again in 5 seconds: %s", error)
            self._parent.timer.call_after(5.0, self._settle, (message,))
        else:
            message.ack()

    def _revoke(self, message: Any) -> None:
        """Mark an expired task as revoked, as a worker does when it receives one."""
        app, context = self._parent.app, context_of(message)
        with logged("can't revoke a task"):
            app.backend.mark_as_revoked(context.id, "expired", request=context)
        told = {"request": context, "terminated": False, "signum": None, "expired": True}
        task_revoked.send(sender=app.tasks.get(message.headers["task"]), **told)

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
    """Reads from the connection for events for 1 ms only, and not while an event is being sent.

    In a pool without an event loop, such as gevent, Celery reads from this connection for 0.1 s
    after each message, to receive heartbeats. That has two problems: no worker starts more than
    ten tasks a second; and Celery may read the confirmation of an event, for which the sender of
    the event then waits for ever, while it holds the lock `dispatcher.mutex`.
    """

    requires = ("celery.worker.consumer.events:Events",)

    def include_if(self, parent: Any) -> bool:
        """Include this step only in pools without an event loop."""
        return not parent.hub

    def start(self, parent: Any) -> None:
        """Change the connection, when the worker starts and after each reconnection."""
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
    """A consumer with the steps above. RabbitMQ moves messages that it rejects to `dead_letter`."""

    class Blueprint(_celerys.Blueprint):  # type: ignore[misc]
        """The steps that start a consumer."""

        default_steps = (
            *(step for step in _celerys.Blueprint.default_steps if "DelayedDelivery" not in step),
            DeclareQueues,
            DelaysAfterQueues,
            KeepDeadLetters,
            LookBriefly,
        )

    def keep(self, message: Any, reason: str, exception: Exception) -> None:
        """Do nothing: RabbitMQ moves the rejected message to `dead_letter`."""

    def hand_back(self, *, blocked: bool) -> None:
        """Do nothing: RabbitMQ takes unfinished messages back when the connection closes."""
