"""`once()`: do work once, even if its message is delivered twice. See docs/dev/tasks.md."""

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
#: The default lease in seconds, if the task has no time limit.
LONGEST_RUN = 60 * 60.0
#: Seconds that a process needs to end after its time limit.
MARGIN = 5.0

logger = structlog.get_logger(__name__)


class StillRunning(Exception):
    """Another process has begun the same work, and its lease has not ended."""


@contextlib.contextmanager
def once(key: str = "", *, lease: float | None = None, keep: float = 7 * DAY) -> Iterator[bool]:
    """Yield True if the work still has to be done, else False. When the block ends, it is done.

    If the block raises an exception, the next run does the work again. If the process dies, the
    next run does it when the lease has ended; a run before that is retried at the end of the lease.

    Args:
        key: Identifies the work among the work of this task. The default is the task id, which
            redeliveries and retries share. A plain call has no id: it always does the work.
        lease: The longest time in seconds that the block takes. The default is the task's limit.
        keep: Seconds to remember that the work is done.

    Raises:
        Retry: Another process does the work, or Redis is unreachable: the task runs again later.
        RedisError: Redis refuses permanently, for example because of a missing permission.
    """
    task = celery.current_app.current_task
    if task is None:
        raise RuntimeError("call once() in the body of a task")
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
        # If Redis is unreachable, the lease stays. Raise the exception of the block.
        with contextlib.suppress(RedisError):
            work.release()
        raise
    try:
        work.finish(keep)
    except RedisError as error:
        # The work is done. If the task failed now, the work would be done again.
        logger.warning("once_not_remembered", key=key, error=str(error))


def _longest_run(task: Any) -> float:
    hard, _ = limits(task, task.request.timelimit)
    longest: float = hard or task.app.conf.task_time_limit or LONGEST_RUN
    return longest + MARGIN


class _Work(Protocol):
    """Stores the state of the work: free, leased or done."""

    def claim(self) -> Literal["ours", "done"] | float:
        """Take the lease; return "ours", "done", or the seconds until the lease of another ends."""

    def release(self) -> None:
        """Give the lease back."""

    def finish(self, keep: float) -> None:
        """Store for `keep` seconds that the work is done, even if the lease has ended."""


class _WorkInRedis:
    """Uses the Redis of the result backend: a lock of redis-py, and a key when the work is done."""

    def __init__(self, redis: Any, name: str, lease: float) -> None:
        self._redis = redis
        self._done = f"{name}:done"
        self._lock = redis.lock(name, timeout=lease, blocking=False)

    def claim(self) -> Literal["ours", "done"] | float:
        if not self._lock.acquire():
            return max(float(self._redis.pttl(self._lock.name)), 0.0) / 1000
        # Check after taking the lock: its last holder has set the key before releasing the lock.
        if self._redis.exists(self._done):
            self._lock.release()
            return "done"
        return "ours"

    def release(self) -> None:
        self._lock.release()

    def finish(self, keep: float) -> None:
        self._redis.set(self._done, 1, px=int(keep * 1000))
        # This fails if the lease has ended or Redis is unreachable. The key is set already.
        with contextlib.suppress(RedisError):
            self._lock.release()


class _WorkWithoutRedis:
    """Uses the result backends of tests and of the embedded broker, which have no locks.

    If two processes call `claim` at the same time, both may get the lease.
    """

    def __init__(self, backend: Any, name: str, lease: float) -> None:
        self._backend = backend
        self._lease = lease
        # Results may be files, and not every key is a valid file name.
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
