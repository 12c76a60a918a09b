"""Metrics of the broker and of the dead letters. They are the same in each process.

The age of the oldest message in a queue: on Redis, the message that is taken next says when it was
sent. RabbitMQ shows no message without delivering it. There, the age is an upper bound: what waits
was sent after the newest message that any worker has received from this queue, and after the queue
was last seen empty. Workers share these times in the Redis of the results.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from celery_service.dead_letters.store import DeadLetters, prefix_of, redis_of
from celery_service.monitoring.prometheus.asking import WAIT, Question

LOOK = Path(__file__).with_name("look.lua").read_text(encoding="utf-8")
NEWEST = Path(__file__).with_name("newest.lua").read_text(encoding="utf-8")


class Queue(NamedTuple):
    """What a broker tells about a queue."""

    length: int
    #: When its oldest message was sent, or is due; None if that isn't known.
    oldest: float | None


class Servers(Collector):
    """What the broker and the result store tell."""

    def __init__(self, app: Any, newest: Mapping[str, float]) -> None:
        self._app = app
        self._of_worker = newest
        #: Queue → what waits there was sent after this time.
        self._after: dict[str, float] = {}
        self._connection: Any = None
        # Each thread has a result backend of its own. These are kept for all of them.
        self._redis: Any = None
        self._dead_letters: Any = None
        self._key = ""
        self._broker = Question("broker", self._ask_broker)
        self._results = Question("result store", self._ask_results)

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics. Those of a server that doesn't answer are missing."""
        until = time.monotonic() + WAIT
        self._broker.start()
        self._results.start()
        queues = self._broker.answer(until)
        up = GaugeMetricFamily("celery_broker_up", "Whether the broker answers.")
        up.add_metric([], float(queues is not None))
        yield up
        yield from _metrics_of(queues or {})
        if dead := self._results.answer(until):
            yield from _metrics_of_dead_letters(*dead)

    # --- the broker ---

    def _ask_broker(self) -> dict[str, Queue]:
        if self._connection is not None:
            # The broker may have closed it since the last scrape.
            with suppress(Exception):
                return self._ask_on(self._connection)
            with suppress(Exception):
                self._connection.release()
            self._connection = None
        # Nobody would answer heartbeats between two scrapes.
        with ExitStack() as stack:
            connection = self._app.connection_for_read(heartbeat=0)
            stack.callback(connection.release)
            connection.ensure_connection(max_retries=1, timeout=WAIT)
            answer = self._ask_on(connection)
            stack.pop_all()
            self._connection = connection
        return answer

    def _ask_on(self, connection: Any) -> dict[str, Queue]:
        names = list(self._app.amqp.queues)
        if connection.transport.driver_type == "redis":
            return _look(connection.default_channel, names)
        return self._estimate(_lengths(connection, names))

    def _estimate(self, lengths: dict[str, int]) -> dict[str, Queue]:
        now = time.time()
        for name, length in lengths.items():
            self._remember({name: self._of_worker.get(name, 0.0)})
            # If nothing is known about it, its messages are as old as our knowledge.
            if not length or not self._after.get(name):
                self._remember({name: now})
        return {name: Queue(length, self._after[name]) for name, length in lengths.items()}

    def _remember(self, times: Mapping[str, float]) -> None:
        for name, when in times.items():
            self._after[name] = max(when, self._after.get(name, 0.0))

    # --- the result store ---

    def _ask_results(self) -> tuple[int, dict[str, int]] | None:
        if self._dead_letters is None:
            self._redis = redis_of(self._app)
            self._key = f"{prefix_of(self._app)}metrics:newest"
            self._dead_letters = DeadLetters(self._app)
        if not self._dead_letters.are_kept:
            return None
        if self._after:
            self._share()
        counted: tuple[int, dict[str, int]] = self._dead_letters.count()
        return counted

    def _share(self) -> None:
        """Tell other processes what this one knows about the age of messages, and learn theirs."""
        told = [part for name, when in self._after.items() for part in (name, when)]
        known = self._redis.eval(NEWEST, 1, self._key, *told)
        pairs = zip(known[::2], known[1::2], strict=True)
        self._remember({name.decode(): float(when) for name, when in pairs})


def _lengths(connection: Any, names: list[str]) -> dict[str, int]:
    """Return the lengths of the queues that exist."""
    found: dict[str, int] = {}
    channel: Any = None
    for name in names:
        channel = channel or connection.channel()
        try:
            found[name] = channel.queue_declare(name, passive=True).message_count
        except connection.channel_errors:
            channel = None  # RabbitMQ closes it
    if channel:
        channel.close()
    return found


def _look(channel: Any, names: list[str]) -> dict[str, Queue]:
    """Return what Redis tells about its queues."""
    steps = channel.priority_steps
    keys = [channel._q_for_pri(name, step) for name in names for step in steps]
    with channel.conn_or_acquire() as client:
        found = client.execute_command(
            "EVAL", LOOK, len(keys), *(f"{channel.global_keyprefix}{key}" for key in keys)
        )
    answers = iter(found)
    queues = {}
    for name in names:
        lists = [next(answers) for _ in steps]
        times = [when for _, sent, eta in lists if (when := _when(sent.decode(), eta.decode()))]
        queues[name] = Queue(sum(length for length, *_ in lists), min(times, default=None))
    return queues


def _when(sent: str, eta: str) -> float | None:
    try:
        return datetime.fromisoformat(eta).timestamp() if eta else float(sent)
    except ValueError:
        return None


def _metrics_of(queues: Mapping[str, Queue]) -> Iterator[Metric]:
    length = GaugeMetricFamily(
        "celery_queue_length", "Messages that wait in a queue.", labels=["queue_name"]
    )
    age = GaugeMetricFamily(
        "celery_queue_oldest_message_age_seconds",
        "Age of the oldest message that waits in a queue, since it was sent or is due.",
        labels=["queue_name"],
    )
    now = time.time()
    for name, queue in queues.items():
        length.add_metric([name], queue.length)
        if not queue.length:
            age.add_metric([name], 0.0)
        elif queue.oldest is not None:
            age.add_metric([name], max(0.0, now - queue.oldest))
    yield length
    yield age


def _metrics_of_dead_letters(waiting: int, added: Mapping[str, int]) -> Iterator[Metric]:
    gauge = GaugeMetricFamily("celery_dead_letters", "Dead letters that are kept.")
    gauge.add_metric([], waiting)
    yield gauge
    total = CounterMetricFamily(
        "celery_dead_letters", "Dead letters added by all processes.", labels=["reason"]
    )
    for reason, number in added.items():
        total.add_metric([reason], number)
    yield total
