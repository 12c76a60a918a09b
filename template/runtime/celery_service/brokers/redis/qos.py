"""How messages that were fetched from Redis are settled: acknowledged, discarded or put back.

If Redis fails, a message is settled on the next connection: its task has run.
"""

import threading
from typing import Any

import kombu.transport.redis
from celery.utils.log import get_logger
from kombu.transport import virtual
from kombu.utils.json import loads

from celery_service.brokers.redis.lease import leases

#: The number of green threads that may settle messages at the same time: a channel has ten
#: connections.
TELLING = 4

logger = get_logger(__name__)

_redis: Any = kombu.transport.redis


class QoS(_redis.QoS):  # type: ignore[misc]
    """Tracks the messages that this worker has fetched and not acknowledged."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._telling = threading.Semaphore(TELLING)

    def append(self, message: Any, delivery_tag: str) -> None:
        """Add a message. FETCH has already stored it as unacknowledged."""
        if delivery_tag == self.channel.fetched:
            self.channel.needs_ack = True
            leases.add(delivery_tag, message)
            virtual.QoS.append(self, message, delivery_tag)
        else:
            super().append(message, delivery_tag)

    def ack(self, delivery_tag: str) -> None:
        """Acknowledge a message."""
        self.settle(delivery_tag, "done")
        virtual.QoS.ack(self, delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Discard a message, or put it back at the end of its queue."""
        self.settle(delivery_tag, "last" if requeue else "done")
        virtual.QoS.ack(self, delivery_tag)

    def restore_unacked(self) -> None:
        """Put all messages back at the front of their queues."""
        for tag in self._delivered:
            self.settle(tag, "first")
        self._delivered.clear()

    def restore_visible(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: lease.py requeues messages of other workers."""

    def restore_by_tag(self, tag: str, client: Any = None, leftmost: bool = False) -> None:
        """Put a message back into its queue. Text that Kombu can't read is put back unchanged."""
        with self.channel.conn_or_acquire(client) as redis:
            written = redis.hget(self.unacked_key, tag) or b""
            text, ours, queue = written[1:-1].rpartition(b',"",')  # see FETCH
            try:
                if ours:
                    read(text)
            except Exception:
                with redis.pipeline() as pipe:
                    self._remove_from_indices(tag, pipe)
                    push = pipe.lpush if leftmost else pipe.rpush
                    push(self.channel._q_for_pri(loads(queue), 0), text)
                    pipe.execute()
            else:
                super().restore_by_tag(tag, redis, leftmost)

    def keep(self, delivery_tag: str) -> None:
        """Keep the message of a running task, although the connection is lost."""
        virtual.QoS.ack(self, delivery_tag)

    def catch_up(self) -> None:
        """Settle messages in Redis that could not be settled before.

        Raises:
            RedisError: Redis still fails.
        """
        for tag, outcome in list(leases.untold.items()):
            self._tell(tag, outcome)
            leases.untold.pop(tag, None)

    def settle(self, tag: str, outcome: str) -> None:
        """Settle a message in Redis: now, or on the next connection if Redis fails.

        `outcome` is "done", or the end of the queue that the message goes to: "first" or "last".
        """
        name = leases.discard(tag)
        try:
            with self._telling:
                was_ours = self._tell(tag, outcome)
            if not was_ours:
                leases.warn_of_lost([name])
        except Exception as error:  # any error: try again on the next connection
            logger.warning("can't settle a message yet (%s), trying again: %s", outcome, error)
            leases.untold[tag] = outcome

    def _tell(self, tag: str, outcome: str) -> bool:
        """Settle a message. Return False if this worker didn't hold it any more."""
        if outcome == "done":
            was_ours: int = self._remove_from_indices(tag).execute()[0]
            return bool(was_ours)
        self.restore_by_tag(tag, leftmost=outcome == "last")
        return True


def read(text: bytes) -> Any:
    """Parse a message of Kombu.

    Raises:
        Exception: The text isn't such a message. Kombu would end the worker or lose the text.
    """
    message = loads(text.decode("utf-8", "replace"))
    properties = message["properties"]
    mappings = (properties, properties.get("delivery_info", {}), message.get("headers", {}))
    if not (isinstance(message["body"], str) and all(isinstance(each, dict) for each in mappings)):
        raise TypeError("a part of the message is of another type")
    return message
