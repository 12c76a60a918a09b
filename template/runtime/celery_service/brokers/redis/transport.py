"""How messages are fetched from Redis.

Kombu first removes a message from its queue and then stores it as unacknowledged. The message is
lost if the worker dies, freezes or loses its connection in between. Here Redis does both in one
step. qos.py settles messages. lease.py renews the leases of fetched messages and requeues those of
dead workers.
"""

import json
import time
from pathlib import Path
from queue import Empty
from typing import Any

import kombu.transport.redis
from celery.utils.log import get_logger
from kombu.utils.json import dumps
from redis.exceptions import ResponseError

from celery_service.brokers.redis.backend import OF_CELERY
from celery_service.brokers.redis.lease import leases
from celery_service.brokers.redis.qos import QoS, read

#: Seconds after which an idle worker checks its queues if no publisher wakes it. Publishers that
#: use plain Kombu don't wake workers.
LONGEST_WAIT = 0.25
#: Seconds that a worker waits if Redis can't write because it is out of memory or disk space.
REFUSAL = 1.0
#: Seconds between two checks of a worker without an event loop. The first one applies while it
#: waits for an acknowledgement before it may fetch again, the second one otherwise, so that it
#: calls leases.tend() often enough.
BUSY_WAIT, IDLE_WAIT = 0.02, 0.5

FETCH = Path(__file__).with_name("fetch.lua").read_text(encoding="utf-8")
PUT = Path(__file__).with_name("put.lua").read_text(encoding="utf-8")

logger = get_logger(__name__)

_redis: Any = kombu.transport.redis


class _Fetching:
    """Fetches messages in one step. Kombu's event loop calls the methods `_brpop_*`."""

    QoS = QoS

    #: The delivery tag of the message fetched last, and whether its consumer acknowledges.
    fetched = ""
    needs_ack = False

    _asked: tuple[str, ...] = ()
    _found_nothing = False
    _refused_until = 0.0
    _of_commands: Any = None

    def _create_client(self: Any, asynchronous: bool = False) -> Any:
        """Return a client. For commands, Kombu makes a new one each time, which takes longer."""
        create = super()._create_client  # type: ignore[misc]  # of a mixin, as below
        if asynchronous:
            return create(asynchronous)
        if self._of_commands is None or self._of_commands.connection_pool is not self.pool:
            self._of_commands = create()
        return self._of_commands

    def _get_pool(self: Any, *args: Any, **options: Any) -> Any:
        """Return a pool. Its connections are marked as Celery's: tracing leaves them out."""
        pool = super()._get_pool(*args, **options)  # type: ignore[misc]
        setattr(pool, OF_CELERY, True)
        return pool

    def _brpop_start(self: Any) -> None:
        """Request a message. If the last request found none, wait until a publisher wakes us."""
        if leases.closed or time.monotonic() < self._refused_until:
            return
        queues = self._queue_cycle.consume(len(self.active_queues))
        if not queues:
            return
        try:
            self.qos.catch_up()
        except ResponseError as error:
            self._wait_for_redis(error)
            return
        connection = self.client.connection
        self._in_poll = connection
        self._brpop_sent_at = time.monotonic()
        if self._found_nothing:
            keys = [self._wake_key(queue) for queue in queues]
            connection.send_command("BRPOP", *keys, LONGEST_WAIT)
            return
        asked = [(queue, step) for step in self.priority_steps for queue in queues]
        self._asked = tuple(queue for queue, _ in asked)
        self.fetched = leases.new_tag(self)
        keys = [self.unacked_key, self.unacked_index_key]
        keys += [self._q_for_pri(queue, step) for queue, step in asked]
        connection.send_command(
            *("EVAL", FETCH, len(keys), *(f"{self.global_keyprefix}{key}" for key in keys)),
            *(self.fetched, *(json.dumps(queue) for queue in self._asked)),
        )

    def _brpop_read(self: Any, **options: Any) -> bool:
        """Read the response, and pass the message to its consumer.

        Raises:
            Empty: There was no message.
        """
        connection = self.client.connection
        was_fetch = not self._found_nothing
        try:
            reply = self.client.parse_response(connection, "EVAL", **options)
        except ResponseError as error:
            self._wait_for_redis(error)
            raise Empty from error
        except self.connection_errors:
            if was_fetch:
                leases.untold[self.fetched] = "first"
            connection.disconnect()
            raise
        finally:
            self._in_poll = None
            self._flush_brpop_reauth()
        if self._refused_until:
            logger.info("fetching messages from Redis again")
            self._refused_until = 0.0
        self._found_nothing = was_fetch and reply is None
        if not was_fetch or reply is None:
            raise Empty
        number, text = reply
        queue = self._asked[number]
        message = self._message(text, queue)
        self._queue_cycle.rotate(queue)
        tag, self.needs_ack = self.fetched, False
        self.connection._deliver(message, queue)
        if not self.needs_ack:  # such as replies to `celery inspect`
            self.qos.settle(tag, "done")
        return True

    def _message(self: Any, text: bytes, queue: str) -> Any:
        """Parse a message of Kombu. If the text isn't one, return a message with it as the body."""
        where = {"exchange": "", "routing_key": queue}
        own = {"delivery_tag": self.fetched, "delivery_info": where}
        try:
            message = read(text)
            message["properties"] = {**own, **message["properties"], "delivery_tag": self.fetched}
            self.Message(message, channel=self)
        except Exception:  # Any exception here would end the worker.
            message = {"body": text, "content-type": "application/data", "properties": own}
        return message

    def _wait_for_redis(self: Any, error: ResponseError) -> None:
        if not self._refused_until:
            logger.warning("can't fetch messages from Redis, trying again every second: %s", error)
        self._refused_until = time.monotonic() + REFUSAL
        self._found_nothing = False

    def _put(self: Any, queue: str, message: Any, **kwargs: Any) -> None:
        """Put a message into a queue, and wake an idle worker."""
        if kwargs.get("_publish_batch") is not None or queue in self._expires:
            super()._put(queue, message, **kwargs)  # type: ignore[misc]
            return
        priority = self._get_message_priority(message, reverse=False)
        key = f"{self.global_keyprefix}{self._q_for_pri(queue, priority)}"
        with self.conn_or_acquire() as client:
            client.execute_command("EVAL", PUT, 2, key, self._wake_key(queue), dumps(message))

    def _wake_key(self: Any, queue: str) -> str:
        return f"{self.global_keyprefix}_wake.{queue}"


class Channel(_Fetching, _redis.Channel):  # type: ignore[misc]
    """A channel to a Redis."""


class SentinelChannel(_Fetching, _redis.SentinelChannel):  # type: ignore[misc]
    """A channel to the Redis that Sentinel names."""


class _Draining:
    """Receives messages in a pool that has no event loop, such as gevent."""

    def drain_events(self: Any, connection: Any, timeout: float | None = None) -> None:
        """Handle events. Return after BUSY_WAIT if all prefetched messages are unacknowledged."""
        fetching = [each for each in self.channels if each.active_queues]
        for channel in fetching:
            leases.tend(channel)
        busy = any(not each.qos.can_consume() for each in fetching)
        timeout = min(timeout or IDLE_WAIT, BUSY_WAIT if busy else IDLE_WAIT)
        super().drain_events(connection, timeout)  # type: ignore[misc]


class Transport(_Draining, _redis.Transport):  # type: ignore[misc]
    """The transport for `redis://` and `rediss://`: see `brokers.redis.settings`."""

    Channel = Channel


class SentinelTransport(_Draining, _redis.SentinelTransport):  # type: ignore[misc]
    """The transport for `sentinel://`."""

    Channel = SentinelChannel
