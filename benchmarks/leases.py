"""What it costs a process to hold messages on Redis, such as 10,000 with a countdown.

One renewal of all of them, as the process waits for it and as Redis works on it, against a process that holds a single
one. How many commands a lease takes is counted while the thread of a process renews for real.
"""

import contextlib
import functools
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import kombu
import redis
from celery_service.brokers.redis.lease import Leases, _client_of

from support.servers import start_redis

from .report import Row
from .run import Run

HELD = 10_000
TRANSPORT = "celery_service.brokers.redis.transport:Transport"
#: Seconds of a lease. The first number is the default; the other is for counting.
LEASE, SHORT = 60.0, 4.0
#: How many renewals a number is the mean of.
RENEWALS = 10


class _Process:
    """Books of a process that holds so many messages, on a Redis of its own."""

    def __init__(self, url: str, connection: Any, count: int) -> None:
        self.leases = Leases()
        self.channel = connection.channel()
        self.client: Any = redis.Redis.from_url(url)
        self.milliseconds_of_redis: list[float] = []
        tags = [f"leased/benchmark@host/{number}" for number in range(count)]
        self.client.zadd(self.channel.unacked_index_key, dict.fromkeys(tags, 0))
        for tag in tags:
            self.leases.add(tag, SimpleNamespace(headers={"task": "benchmark.noop", "id": tag}))
        self.leases._channel, self.leases._client = self.channel, _client_of(self.channel)
        self.leases._renew(LEASE)  # connects

    def milliseconds(self) -> float:
        """Give what a renewal takes; remember what it takes Redis."""
        self.client.config_resetstat()
        started = time.perf_counter()
        for _ in range(RENEWALS):
            self.leases._renew(LEASE)
        seconds = time.perf_counter() - started
        self.milliseconds_of_redis.append(self.client.info("commandstats")["cmdstat_eval"]["usec_per_call"] / 1000)
        return seconds * 1000 / RENEWALS

    def commands_in_a_lease(self) -> float:
        """Count them while a thread renews, and looks for what others haven't renewed."""
        self.leases.new_tag(self.channel)
        time.sleep(1.5 * SHORT)  # it takes over nothing in its first lease
        self.client.config_resetstat()
        time.sleep(2 * SHORT)
        return float(self.client.info("commandstats")["cmdstat_eval"]["calls"]) / 2


def renewal(run: Run) -> list[Row]:
    """Renew both in turns."""
    with _process(run, "many", HELD) as many, _process(run, "one", 1) as one:
        ours, baseline = run.in_turns([many.milliseconds, one.milliseconds])
        commands = many.commands_in_a_lease()
        row = functools.partial(Row, baseline_is="one message", unit="ms")
        what = f"renewal of {HELD:,} held messages"
        return [
            row(what=f"{what}, {commands:.0f} commands in a lease", baseline=baseline, ours=ours),
            row(what=f"{what}, time in Redis", baseline=one.milliseconds_of_redis, ours=many.milliseconds_of_redis),
        ]


@contextlib.contextmanager
def _process(run: Run, name: str, count: int) -> Iterator[_Process]:
    options = {"visibility_timeout": SHORT}
    with (
        start_redis(run.folder / f"renewal-{name}") as server,
        kombu.Connection(server.url, transport=TRANSPORT, transport_options=options) as connection,
    ):
        yield _Process(server.url, connection, count)
