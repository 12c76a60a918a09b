"""Do once what may be delivered twice: docs/dev/tasks.md tells how, and what this can't promise."""

import contextlib
import json
import time
from collections.abc import Iterator
from hashlib import sha256
from typing import Any, Literal, Protocol

import celery
import structlog
from celery.backends.redis import RedisBackend
from redis.exceptions import RedisError

from celery_service.data.results import passes
from celery_service.dead_letters.store import prefix_of
from celery_service.tasks.limits import limits

DAY = 24 * 60 * 60.0
#: Seconds that a run may take where nothing limits it.
LONGEST_RUN = 60 * 60.0
#: Seconds that a process needs to end after its time limit.
MARGIN = 5.0

logger = structlog.get_logger(__name__)


class StillRunning(Exception):
    """The same work has begun elsewhere, and has neither ended nor failed."""


@contextlib.contextmanager
def once(key: str = "", *, lease: float | None = None, keep: float = 7 * DAY) -> Iterator[bool]:
    """Tell whether a piece of work in a task is still to be done. After the block it is done.

    When the block raises, the work is to be done again. When the process dies, it is so after the
    lease; a task that asks before is retried then.

    Args:
        key: Which work it is, among those of this task. By default it is what this message asks
            for, delivered and retried however often. A plain call has no message: it does the work.
        lease: Seconds that the block takes at most. By default, as long as the task may run.
        keep: Seconds to remember that it is done.

    Raises:
        Retry: Somebody else does it, or Redis can't be asked: the task runs again later.
        RedisError: Redis refuses for good, such as for a missing permission.
    """
    task = celery.current_app.current_task
    if task is None:
        raise RuntimeError("once() belongs into the body of a task")
    key = key or task.request.id or ""
    if not key:
        yield True
        return
    name = f"{prefix_of(task.app)}once:{task.name}:{key}"
    work = _work(task.app, name, lease or _longest_run(task))
    try:
        state = work.claim()
    except RedisError as error:
        if not passes(error):
            raise
        raise task.retry(exc=error) from error
    if state == "done":
        yield False
        return
    if state != "ours":
        running = StillRunning(f"{task.name} runs elsewhere; its lease ends in {state:.0f} s")
        raise task.retry(exc=running, countdown=state + 1)
    try:
        yield True
    except BaseException:
        # Without Redis the lease stays. What has happened here matters more.
        with contextlib.suppress(RedisError):
            work.release()
        raise
    try:
        work.finish(keep)
    except RedisError as error:
        # It is done. Failing now would have it done again.
        logger.warning("once_not_remembered", key=key, error=str(error))


def _longest_run(task: Any) -> float:
    hard, _ = limits(task, task.request.timelimit)
    longest: float = hard or task.app.conf.task_time_limit or LONGEST_RUN
    return longest + MARGIN


class _Work(Protocol):
    """A piece of work, and who does it."""

    def claim(self) -> Literal["ours", "done"] | float:
        """Hold the work if nobody does. Otherwise say that it is done, or how long it is held."""

    def release(self) -> None:
        """Let others have the work."""

    def finish(self, keep: float) -> None:
        """Remember for `keep` seconds that it is done, even if it took longer than the lease."""


class _WorkInRedis:
    """In the Redis of the results: redis-py's lock, and a key that says done."""

    def __init__(self, redis: Any, name: str, lease: float) -> None:
        self._redis = redis
        self._done = f"{name}:done"
        self._lock = redis.lock(name, timeout=lease, blocking=False)

    def claim(self) -> Literal["ours", "done"] | float:
        if not self._lock.acquire():
            return max(float(self._redis.pttl(self._lock.name)), 0.0) / 1000
        # Asked when the lock is ours: its last holder has said so before giving it back.
        if self._redis.exists(self._done):
            self._lock.release()
            return "done"
        return "ours"

    def release(self) -> None:
        self._lock.release()

    def finish(self, keep: float) -> None:
        self._redis.set(self._done, 1, px=int(keep * 1000))
        # The lease may have ended, or Redis gone away: it is remembered all the same.
        with contextlib.suppress(RedisError):
            self._lock.release()


class _WorkWithoutRedis:
    """The same for the results of tests and of the embedded broker, which have no locks.

    Two processes that ask at the very same time may both get the work.
    """

    def __init__(self, backend: Any, name: str, lease: float) -> None:
        self._backend = backend
        self._lease = lease
        # Results may be files, whose names can't hold every key.
        self._key = f"once-{sha256(name.encode()).hexdigest()}".encode()

    def claim(self) -> Literal["ours", "done"] | float:
        found = self._backend.get(self._key)
        state, end = json.loads(found) if found else ("", 0.0)
        if end < time.time():
            self._note("held", self._lease)
            return "ours"
        return "done" if state == "done" else end - time.time()

    def release(self) -> None:
        self._backend.delete(self._key)

    def finish(self, keep: float) -> None:
        self._note("done", keep)

    def _note(self, state: str, seconds: float) -> None:
        self._backend.set(self._key, json.dumps([state, time.time() + seconds]))


def _work(app: celery.Celery, name: str, lease: float) -> _Work:
    backend = app.backend
    if isinstance(backend, RedisBackend):
        return _WorkInRedis(backend.client, name, lease)
    return _WorkWithoutRedis(backend, name, lease)
