"""Tasks per second of workers, each measured while the others are frozen.

A worker is stopped by SIGSTOP, its queue is filled, and the clock runs from SIGCONT until the last result is there. So
neither start nor publishing is part of the number, and no other worker of the run takes processor time meanwhile.
"""

import contextlib
import functools
import itertools
import json
import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import redis
from celery import Celery

from support.project import InstalledProject, Worker
from support.servers import wait_until

from .run import Run

TWO_PROCESSES = ("--pool", "prefork", "--concurrency", "2")
FEWEST = 50
#: What a worker may have fetched before it was frozen.
FETCHED = 10


@dataclass(frozen=True, kw_only=True)
class Side:
    """A task on a worker of its own. Nobody else may use the queue nor the Redis database of the results."""

    project: InstalledProject
    task: str
    queue: str
    broker: str
    results: str
    arguments: Sequence[str] = TWO_PROCESSES
    variables: Mapping[str, str] = field(default_factory=dict)
    #: How many tasks the worker holds that aren't due for a day.
    held: int = 0


def rates(run: Run, name: str, sides: Sequence[Side], *, tasks: int | None = None) -> list[list[float]]:
    """Give the tasks per second of each side in each round, of so many `tasks` or of what `run.seconds` take."""
    folder = run.folder / "logs" / name
    with contextlib.ExitStack() as stack:
        lanes = [stack.enter_context(_lane(side, folder / f"side{i}.log")) for i, side in enumerate(sides)]
        measurements = []
        for lane in lanes:
            # The first tasks open connections, and say roughly how many there must be.
            rate = lane.rate(tasks or FEWEST)
            if not tasks:
                rate = lane.rate(max(FEWEST, int(rate * run.seconds / 3)))
            measurements.append(functools.partial(lane.rate, tasks or max(FEWEST, int(rate * run.seconds))))
        return run.in_turns(measurements)


@contextlib.contextmanager
def _lane(side: Side, log: Path) -> Iterator["Lane"]:
    """Start a worker and freeze it; in the end stop it."""
    variables = {"CELERY_BROKER_URL": side.broker, "CELERY_RESULT_BACKEND": side.results, **side.variables}
    with Worker(side.project, env=variables, log=log, arguments=side.arguments) as worker:
        lane = Lane(side, worker)
        worker.wait_ready()
        if side.held:
            lane.hold(side.held)
        lane.freeze()
        try:
            yield lane
        finally:
            lane.thaw()


class Lane:
    """A side with its worker, which is frozen except while it is measured."""

    def __init__(self, side: Side, worker: Worker) -> None:
        self.side = side
        self.worker = worker
        self.results: Any = redis.Redis.from_url(side.results)

    def rate(self, tasks: int) -> float:
        """Give the tasks per second of a queue with so many."""
        self.freeze()
        pending = self._publish(tasks)
        started = time.perf_counter()
        self.thaw()
        ended = self._wait_for(pending)
        self.freeze()
        self.results.flushdb()
        return tasks / (ended - started)

    def hold(self, tasks: int) -> None:
        """Have the worker take so many tasks with a countdown of a day."""
        self._publish(tasks, eta=datetime.now(UTC) + timedelta(days=1))
        broker: Any = redis.Redis.from_url(self.side.broker)
        wait_until(lambda: broker.zcard("unacked_index") >= tasks, 300, f"{tasks} messages to be held")

    def freeze(self) -> None:
        os.killpg(self.worker.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.killpg(self.worker.pid, signal.SIGCONT)

    def _publish(self, tasks: int, **options: Any) -> list[str]:
        """Fill the queue with what any publisher of Celery would send; give the ids."""
        ids = [str(uuid4()) for _ in range(tasks)]
        app: Any = Celery(broker=self.side.broker)
        with app.connection() as connection:
            producer = connection.Producer(serializer="json")
            for number, task_id in enumerate(ids):
                message = app.amqp.as_task_v2(task_id, self.side.task, args=(number,), **options)
                # By the exchange that knows every queue by its name: nothing is declared here.
                producer.publish(
                    message.body,
                    exchange="",
                    routing_key=self.side.queue,
                    headers=message.headers,
                    delivery_mode="persistent",
                    **message.properties,
                )

            if options:
                return ids

            def is_full() -> bool:
                waiting: int = producer.channel.queue_declare(self.side.queue, passive=True).message_count
                return waiting >= tasks - FETCHED

            wait_until(is_full, 30, f"{tasks} messages in {self.side.queue}")
        return ids

    def _wait_for(self, pending: Sequence[str]) -> float:
        """Give the time at which all had succeeded. Results are counted before they are read, to disturb little."""
        keys = [f"celery-task-meta-{task_id}" for task_id in pending]
        deadline = time.perf_counter() + 300
        for _ in itertools.count():
            now = time.perf_counter()
            if self.results.dbsize() >= len(pending):
                # A result is there as soon as its task has started.
                states = [json.loads(each or "{}").get("status") for each in self.results.mget(keys)]
                if "FAILURE" in states or "RETRY" in states:
                    raise RuntimeError(f"{self.side.task} failed: see the log\n{self.worker.text()[-3000:]}")
                keys = [key for key, state in zip(keys, states, strict=True) if state != "SUCCESS"]
                if not keys:
                    return now
            if now > deadline:
                raise TimeoutError(f"{len(keys)} of {len(pending)} {self.side.task} have not ended")
            time.sleep(0.005)
        raise AssertionError
