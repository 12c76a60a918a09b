"""Leases: what a worker holds is its own for as long as it renews it, and nobody's soon after.

Kombu gives a message back to its queue when it isn't acknowledged within the visibility timeout, so
that must be longer than any task and any countdown, and what a dead worker held comes back as late.
Here `visibility_timeout` is a lease. A thread renews it for every message that this process holds,
four times in its span, and puts back what others haven't renewed. These rules make it safe:

1. All times are those of Redis's own clock, when a message is fetched, renewed and taken over.
2. Only who has renewed without a gap for a whole lease takes over. After an outage of Redis all
   leases look old, and the first worker to reconnect would take over what the others still run.
3. Messages that plain Kombu has taken, whose tags nobody renews, keep Kombu's timeout.
4. The books belong to the process, not to a connection: what runs is renewed on the next one.

A worker that is frozen or cut off for longer than a lease loses what it holds: it runs twice.
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

RENEW = Path(__file__).with_name("renew.lua").read_text(encoding="utf-8")
CLAIM = Path(__file__).with_name("claim.lua").read_text(encoding="utf-8")

#: How delivery tags begin that their holder renews. Its lease follows, and its name for people.
PREFIX = "leased/"
#: Seconds after which messages come back that plain Kombu holds.
KOMBUS_TIMEOUT = float(Channel.visibility_timeout)
#: Seconds until the next attempt, when Redis couldn't be reached.
RETRY = 1.0
#: How long the thread may take to notice that the worker ends, and how long the worker waits for
#: that, in seconds.
STEP, STOP = 0.25, 3.0
#: How many messages are put back at a time: in between, the own leases are renewed.
BATCH = 100
#: A lease that is longer than so many seconds deserves a word.
LONG = 300.0

logger = get_logger(__name__)


class Leases:
    """What this process holds: delivery tag → what the message is, for people."""

    def __init__(self) -> None:
        #: Who holds it, for the warning of whoever takes over: the node name of a worker.
        self.holder = ""
        #: What Redis couldn't be told yet, by delivery tag: on the next connection it is.
        self.untold: dict[str, str] = {}
        self._held: dict[str, str] = {}
        #: Whether nothing may be fetched any more: the worker has ended, or given everything back.
        self.closed = False
        self._on_its_way = ""
        self._channel: Any = None
        self._client: Any = None
        self._spares: tuple[Any, ...] = ()
        self._wait: green.Wait | None = None
        self._process = 0
        # By Redis's clock: when the own leases were renewed last, and since when without a gap.
        self._renewed = 0.0
        self._unbroken_since = 0.0
        # In green pools the thread leaves it to the event loop to log and to take over.
        self._unsaid: list[tuple[object, ...]] = []
        self._tended = 0.0

    def new_tag(self, channel: Any) -> str:
        """Return the tag for what is fetched next on this channel. It is renewed from then on."""
        self._channel = channel
        if self._process != os.getpid():
            # A thread, since the event loop waits for its servers, and in some pools for tasks too.
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
        """Hold it no more, and return what it is. Call this before Redis is told."""
        return self._held.pop(tag, None)

    def warn_of_lost(self, names: Sequence[str | None]) -> None:
        """Say which messages others may have taken over; None stands for what isn't held here."""
        if known := [name for name in names if name]:
            self._warn(
                "lost the lease of %d messages, which others may run as well: %s. "
                "This process was frozen or cut off from Redis, or Redis lost its data.",
                *(len(known), ", ".join(known[:10])),
            )

    def stop(self) -> None:
        """Have no more fetched, and nothing renewed."""
        self.closed, self._process = True, 0
        if self._wait and green.is_green():
            self._wait(STOP)  # the interpreter crashes when it ends first

    def give_back(self, *, blocked: bool) -> None:
        """Give back what is held or on its way, to be fetched next, and have no more fetched.

        Args:
            blocked: Whether this is a thread of the system, and green ones are blocked: threads of
                both kinds can't share connections.
        """
        self.closed = True
        for tag in (*self._held, self._on_its_way):
            self._channel.qos.restore_by_tag(tag, client=self._spares[blocked])

    def tend(self, channel: Any) -> None:
        """Do what the thread leaves to green threads, on an open channel. Call this often."""
        self._channel = channel
        while self._unsaid:
            logger.warning(*self._unsaid.pop(0))
        if self._tended != self._renewed:
            self._tended = self._renewed
            # When Redis can't do it, the loop notices by itself.
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
            except Exception:  # whatever it is, others hold their leases only with us
                pause = min(pause, RETRY)
            self._pause(pause)

    def _pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self.closed and time.monotonic() < until:
            time.sleep(min(seconds, STEP))

    def _renew(self, lease: float) -> None:
        # What is on its way may have come, and wait for an event loop that is busy.
        tags = {*tuple(self._held), *tuple(self.untold), self._on_its_way}
        answer, lost = self._eval(self._client, RENEW, *tags)
        now = float(answer)
        # Below zero: another Redis, by whose clock it is earlier.
        if not 0 <= now - self._renewed <= lease / 2:
            self._unbroken_since = now
        self._renewed = now
        # What has been settled meanwhile isn't held any more.
        self.warn_of_lost([self.discard(tag.decode()) for tag in lost])

    def _take_over(self, lease: float, client: Any = None) -> int:
        """Put back what others haven't renewed; return how many messages these were."""
        if self._renewed - self._unbroken_since < lease:
            return 0
        client = client or self._client
        timeout = max(lease, KOMBUS_TIMEOUT)
        found = self._eval(client, CLAIM, PREFIX, lease, timeout, self._renewed, BATCH)
        tags = [tag.decode() for tag in found]
        for tag in tags:
            self._channel.qos.restore_by_tag(tag, client=client)
        holders = Counter(_holder(tag) for tag in tags)
        for holder, number in holders.items():
            self._warn("took over %d messages from %s, which has not renewed them", number, holder)
        return len(tags)

    def _eval(self, client: Any, script: str, *arguments: object) -> Any:
        key = f"{self._channel.global_keyprefix}{self._channel.unacked_index_key}"
        return client.execute_command("EVAL", script, 1, key, *arguments)


def _client_of(channel: Any) -> Any:
    """Return a client with connections of its own, which outlive those of the channel."""
    # Without redis-py's retries, whose pauses add up to more than a short lease: the next attempt
    # is ours.
    pool = channel._get_pool()
    pool.set_retry(Retry(NoBackoff(), 0))
    return channel.Client(connection_pool=pool)


def _holder(tag: str) -> str:
    _, _, rest = tag.removeprefix(PREFIX).partition("/")
    return rest.rpartition("/")[0] or "a plain Kombu worker"


leases = Leases()
