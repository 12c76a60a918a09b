"""Follows tasks for all open streams, with one subscription to the Redis of the results.

A worker publishes each state that it stores. A thread listens, so that the event loop doesn't need
a client of its own. Without a Redis, it looks at the results instead.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import structlog
from celery import Celery
from kombu.exceptions import OperationalError
from kombu.utils.encoding import bytes_to_str
from redis.exceptions import RedisError

from celery_service.api.problems import Unavailable
from celery_service.api.status import TaskStatus, key_of, status_of
from celery_service.dead_letters.store import redis_of

#: Seconds between two looks at all results that somebody follows: a message may have been missed.
LOOK = 5.0
#: The same where nothing is published.
LOOK_WITHOUT_REDIS = 0.2
#: Seconds that the thread waits for a message before it looks for new streams.
WAIT = 0.05
#: States that wait for a client.
KEPT = 20
#: Seconds until the next attempt, after an error.
PAUSE = 1.0

logger = structlog.get_logger(__name__)


class Follower:
    """One stream. A client that reads slowly misses states, but never the newest."""

    def __init__(self) -> None:
        self._changed = asyncio.Event()
        self._states: deque[TaskStatus] = deque(maxlen=KEPT)
        self._stopped = False

    def put(self, status: TaskStatus) -> None:
        """Take a state, in the event loop."""
        self._states.append(status)
        self._changed.set()

    def stop(self) -> None:
        """End the stream, in the event loop."""
        self._stopped = True
        self._changed.set()

    async def states(self) -> AsyncGenerator[TaskStatus, None]:
        """Give states until the process stops."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            if self._stopped:
                return
            while self._states:
                yield self._states.popleft()


class Streams:
    """All streams of this process."""

    def __init__(self, app: Celery, most: int) -> None:
        self._app = app
        self._most = most
        self._mutex = threading.Lock()
        self._wake = threading.Event()
        self._stopped = False
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._followers: dict[str, set[Follower]] = {}
        self._count = 0

    @contextmanager
    def follow(self, task_id: str) -> Iterator[Follower]:
        """Follow a task.

        Raises:
            Unavailable: There are too many streams.
        """
        follower = Follower()
        self._add(task_id, follower)
        try:
            yield follower
        finally:
            self._remove(task_id, follower)

    def _add(self, task_id: str, follower: Follower) -> None:
        if self._count >= self._most:
            raise Unavailable("There are too many streams.")
        self._loop = asyncio.get_running_loop()
        with self._mutex:
            self._followers.setdefault(task_id, set()).add(follower)
        self._count += 1
        if self._stopped:
            follower.stop()
        elif self._thread is None:
            self._thread = threading.Thread(target=self._run, name="streams", daemon=True)
            self._thread.start()
        self._wake.set()

    def _remove(self, task_id: str, follower: Follower) -> None:
        with self._mutex:
            self._followers[task_id].discard(follower)
            if not self._followers[task_id]:
                del self._followers[task_id]
        self._count -= 1

    def stop(self) -> None:
        """End all streams. Call it in the event loop."""
        self._stopped = True
        self._wake.set()
        with self._mutex:
            followers = [each for group in self._followers.values() for each in group]
        for follower in followers:
            follower.stop()

    # --- in the thread ---

    def _run(self) -> None:
        is_away = False
        while True:
            self._wake.wait()
            self._wake.clear()
            while wanted := self._wanted():
                try:
                    if redis_of(self._app) is None:
                        self._look(wanted)
                        time.sleep(LOOK_WITHOUT_REDIS)
                    else:
                        self._listen()
                    is_away = False
                except (RedisError, OperationalError, OSError) as error:
                    if not is_away:
                        logger.warning("streams_wait", error=str(error))
                    is_away = True
                    time.sleep(PAUSE)
                except Exception:
                    logger.exception("streams_failed")
                    time.sleep(PAUSE)

    def _wanted(self) -> set[str]:
        with self._mutex:
            return set() if self._stopped else set(self._followers)

    def _listen(self) -> None:
        """Listen until nobody follows a task any more."""
        with redis_of(self._app).pubsub() as pubsub:
            subscribed: dict[str, str] = {}  # channel → task
            looked = time.monotonic()
            while wanted := self._wanted():
                channels = {bytes_to_str(key_of(self._app, each)): each for each in wanted}
                if new := channels.keys() - subscribed.keys():
                    pubsub.subscribe(*new)
                if old := subscribed.keys() - channels.keys():
                    pubsub.unsubscribe(*old)
                subscribed = channels
                # What was stored before the subscription began is not published again.
                self._look(self._read(pubsub, subscribed))
                if time.monotonic() - looked > LOOK:
                    looked = time.monotonic()
                    self._look(wanted)

    def _read(self, pubsub: Any, tasks: dict[str, str]) -> list[str]:
        """Pass messages on, and return the tasks whose subscription has begun."""
        begun = []
        message = pubsub.get_message(timeout=WAIT)
        while message:
            task_id = tasks.get(bytes_to_str(message["channel"]))
            if task_id and message["type"] == "subscribe":
                begun.append(task_id)
            elif task_id and message["type"] == "message":
                self._pass_on(task_id, message["data"])
            message = pubsub.get_message(timeout=0)
        return begun

    def _look(self, tasks: Iterable[str]) -> None:
        backend: Any = self._app.backend
        ids = list(tasks)
        for start in range(0, len(ids), 100):
            some = ids[start : start + 100]
            for task_id, stored in zip(some, self._stored(backend, some), strict=True):
                if stored:
                    self._pass_on(task_id, stored)

    def _stored(self, backend: Any, tasks: list[str]) -> list[Any]:
        keys = [key_of(self._app, each) for each in tasks]
        return list(backend.mget(keys)) if redis_of(self._app) else [*map(backend.get, keys)]

    def _pass_on(self, task_id: str, stored: Any) -> None:
        backend: Any = self._app.backend
        status = status_of(task_id, backend.decode(stored))
        with self._mutex:
            followers = list(self._followers.get(task_id, ()))
        if self._loop and followers:
            self._loop.call_soon_threadsafe(_put, followers, status)


def _put(followers: list[Follower], status: TaskStatus) -> None:
    for follower in followers:
        follower.put(status)
