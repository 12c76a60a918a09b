"""Leases: a worker holds a message as long as it renews the lease. Then other workers take it over.

Kombu gives a message back to its queue if it isn't acknowledged within the visibility timeout. This
timeout must be longer than any task and any countdown, and a dead worker's messages come back only
after it. Here `visibility_timeout` is a lease. A thread renews the leases of all messages that this
process holds, four times per lease, and requeues messages that others haven't renewed. The rules:

1. All times are from the clock of Redis: when a message is fetched, renewed and taken over.
2. Only a worker that has renewed without a gap for a whole lease takes over messages. After an
   outage of Redis all leases look old. The first worker to reconnect would otherwise take over
   messages whose tasks still run.
3. Messages that plain Kombu has fetched keep Kombu's timeout, because nobody renews their tags.
4. Leases belong to the process, not to a connection: they are renewed on the next connection.

A worker that is frozen or cut off for longer than a lease loses its messages: they run twice.
"""

import contextlib
import math
import os
import socket
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

from celery.utils.log import get_logger
from kombu.transport.redis import Channel
from redis.backoff import NoBackoff
from redis.retry import Retry

from celery_service.lifecycle import green
from celery_service.observability.signals import leases_lost

RENEW = Path(__file__).with_name("renew.lua").read_text(encoding="utf-8")
CLAIM = Path(__file__).with_name("claim.lua").read_text(encoding="utf-8")

#: The prefix of delivery tags with a lease. The lease in seconds and the holder's name follow.
PREFIX = "leased/"
#: Seconds after which a message that plain Kombu holds is taken over.
KOMBUS_TIMEOUT = float(Channel.visibility_timeout)
#: Seconds until the next attempt, if Redis is unreachable.
RETRY = 1.0
#: Seconds after which the thread notices that the worker stops, and seconds for which the worker
#: waits for the thread.
STEP, STOP = 0.25, 3.0
#: The number of messages that are taken over before this process renews its own leases again.
BATCH = 100
#: A worker logs a warning if the lease is longer than this, in seconds.
LONG = 300.0

logger = get_logger(__name__)


class Leases:
    """The messages that this process holds: delivery tag → `task name[id]`, for logs."""

    def __init__(self) -> None:
        #: The node name of this worker. A worker that takes over messages logs it.
        self.holder = ""
        #: Outcomes by delivery tag that Redis doesn't know yet. The next connection sends them.
        self.untold: dict[str, str] = {}
        #: How many messages others may have taken over, since this process started.
        self.lost = 0
        self._held: dict[str, str] = {}
        #: Whether to fetch no more messages: the worker stops, or has given its messages back.
        self.closed = False
        self._on_its_way = ""
        self._channel: Any = None
        self._client: Any = None
        self._spares: tuple[Any, ...] = ()
        self._wait: green.Wait | None = None
        self._process = 0
        # By the clock of Redis: the last renewal of the own leases, and the first one after a gap.
        self._renewed = 0.0
        self._unbroken_since = 0.0
        # With green threads, the event loop logs and takes over messages, not the thread.
        self._unsaid: list[tuple[object, ...]] = []
        self._tended = 0.0

    @property
    def held(self) -> int:
        """The number of messages that this process holds."""
        return len(self._held)

    def new_tag(self, channel: Any) -> str:
        """Return the delivery tag of the next message, and renew its lease from now on."""
        self._channel = channel
        if self._process != os.getpid():
            # A thread, because the event loop waits for servers, and in some pools for tasks too.
            self._process = os.getpid()
            self._client = _client_of(channel)
            if green.is_green():
                self._spares = (_client_of(channel), _client_of(channel))
            self._wait = green.start_system_thread(self._keep_renewing)
        holder = self.holder or f"{socket.gethostname()}:{os.getpid()}"
        lease = math.ceil(channel.visibility_timeout)
        self._on_its_way = f"{PREFIX}{lease}/{holder}/{uuid4()}"
        return self._on_its_way

    def add(self, tag: str, message: Any) -> None:
        """Hold a message that was fetched under `tag`."""
        headers = message.headers or {}
        self._held[tag] = f"{headers.get('task')}[{headers.get('id')}]"

    def discard(self, tag: str) -> str | None:
        """Stop renewing a message, and return its name. Call this before you tell Redis."""
        return self._held.pop(tag, None)

    def warn_of_lost(self, names: Sequence[str | None]) -> None:
        """Log the messages that others may have taken over. None: this process didn't hold it."""
        if known := [name for name in names if name]:
            self._warn(
                "lost the lease of %d messages, which others may run as well: %s. "
                "This process was frozen or cut off from Redis, or Redis lost its data.",
                *(len(known), ", ".join(known[:10])),
            )
            self.lost += len(known)
            leases_lost.send(sender=self, count=len(known))

    def stop(self) -> None:
        """Stop fetching messages and renewing leases."""
        self.closed, self._process = True, 0
        if self._wait and green.is_green():
            self._wait(STOP)  # the interpreter crashes if it exits before the thread

    def give_back(self, *, blocked: bool) -> None:
        """Put all messages back at the front of their queues, and stop fetching.

        Args:
            blocked: Whether the caller is a system thread, because the green threads are blocked.
                System threads and green threads can't share connections.
        """
        self.closed = True
        for tag in (*self._held, self._on_its_way):
            self._channel.qos.restore_by_tag(tag, client=self._spares[blocked])

    def tend(self, channel: Any) -> None:
        """Log and take over messages for the thread, on an open channel. Call this often."""
        self._channel = channel
        while self._unsaid:
            logger.warning(*self._unsaid.pop(0))
        if self._tended != self._renewed:
            self._tended = self._renewed
            # If Redis fails, the event loop notices it elsewhere.
            with contextlib.suppress(Exception), channel.conn_or_acquire() as client:
                self._take_over(float(channel.visibility_timeout), client)

    def _warn(self, *line: object) -> None:
        if green.is_green():
            self._unsaid.append(line)
        else:
            logger.warning(*line)

    def _keep_renewing(self) -> None:
        lease = float(self._channel.visibility_timeout)
        if lease > LONG:
            self._warn(
                "visibility_timeout is %g s: what a dead worker held comes back after so long. "
                "It may be shorter than a task, since workers renew it; the default is 60.",
                lease,
            )
        while not self.closed:
            pause = lease / 4
            try:
                self._renew(lease)
                while not green.is_green() and self._take_over(lease) == BATCH:
                    self._renew(lease)
            except Exception:  # any error: the thread must not end, or all leases are lost
                pause = min(pause, RETRY)
            self._pause(pause)

    def _pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self.closed and time.monotonic() < until:
            time.sleep(min(seconds, STEP))

    def _renew(self, lease: float) -> None:
        # Redis may have sent the next message already, and the event loop may be too busy to read.
        tags = {*tuple(self._held), *tuple(self.untold), self._on_its_way}
        answer, lost = self._eval(self._client, RENEW, *tags)
        now = float(answer)
        # A negative difference: this is another Redis, whose clock is behind.
        if not 0 <= now - self._renewed <= lease / 2:
            self._unbroken_since = now
        self._renewed = now
        # A message that was settled in the meantime isn't held any more: `discard` returns None.
        self.warn_of_lost([self.discard(tag.decode()) for tag in lost])

    def _take_over(self, lease: float, client: Any = None) -> int:
        """Requeue messages that others haven't renewed; return how many there were."""
        if self._renewed - self._unbroken_since < lease:
            return 0
        client = client or self._client
        timeout = max(lease, KOMBUS_TIMEOUT)
        found = self._eval(client, CLAIM, PREFIX, lease, timeout, self._renewed, BATCH)
        tags = [tag.decode() for tag in found]
        for tag in tags:
            self._channel.qos.restore_by_tag(tag, client=client)
        holders = Counter(holder_of(tag) for tag in tags)
        for holder, number in holders.items():
            self._warn("took over %d messages from %s, which has not renewed them", number, holder)
        return len(tags)

    def _eval(self, client: Any, script: str, *arguments: object) -> Any:
        key = f"{self._channel.global_keyprefix}{self._channel.unacked_index_key}"
        return client.execute_command("EVAL", script, 1, key, *arguments)


def _client_of(channel: Any) -> Any:
    """Return a client with its own connections, which stay open when the channel is closed."""
    # No retries by redis-py: their pauses add up to more than a short lease. The thread retries.
    pool = channel._get_pool()
    pool.set_retry(Retry(NoBackoff(), 0))
    return channel.Client(connection_pool=pool)


def holder_of(tag: str) -> str:
    """Return the node name of the worker that holds a message."""
    _, _, rest = tag.removeprefix(PREFIX).partition("/")
    return rest.rpartition("/")[0] or "a plain Kombu worker"


leases = Leases()
