"""Owned by the template: `copier update` changes this file.

Do once what may be delivered twice: docs/dev/tasks.md tells how, and what this can't promise.
"""

import contextlib
import json
import time
from collections.abc import Iterator
from hashlib import sha256
from typing import Any
from uuid import uuid4

import celery
import structlog
from celery.backends.redis import RedisBackend
from redis.exceptions import RedisError

DAY = 24 * 60 * 60.0
#: How long a run may take where nothing limits it.
LONGEST_RUN = 60 * 60.0
#: What a process needs to end after its time limit.
MARGIN = 5.0
#: Ask again after this long at most: Redis may deliver twice what waits for longer.
LONGEST_WAIT = 600.0

DONE = "done"

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
    """
    task = celery.current_app.current_task
    if task is None:
        raise RuntimeError("once() belongs into the body of a task")
    key = key or task.request.id or ""
    if not key:
        yield True
        return
    work = _work(task.app, f"{task.app.main}:once:{task.name}:{key}")
    try:
        holder, seconds = work.claim(lease or _longest_run(task))
    except RedisError as error:
        raise task.retry(exc=error) from error
    if holder == DONE:
        yield False
        return
    if holder != work.token:
        running = StillRunning(f"{task.name} runs elsewhere; its lease ends in {seconds:.0f} s")
        raise task.retry(exc=running, countdown=min(seconds + 1, LONGEST_WAIT))
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
    hard, _ = task.request.timelimit or (None, None)
    limit: float = hard or task.app.conf.task_time_limit or LONGEST_RUN
    return limit + MARGIN


class _Work:
    """Who holds a piece of work, in the Redis of the results: a token with a lease, or DONE."""

    # Both in one step, since others do the same at this moment.
    CLAIM = """
        local holder = redis.call("get", KEYS[1])
        if not holder then redis.call("set", KEYS[1], ARGV[1], "px", ARGV[2]) end
        return {holder or ARGV[1], redis.call("pttl", KEYS[1])}
    """
    RELEASE = 'if redis.call("get", KEYS[1]) == ARGV[1] then redis.call("del", KEYS[1]) end'

    def __init__(self, redis: Any, name: str) -> None:
        self._redis = redis
        self._name = name
        self.token = str(uuid4())

    def claim(self, lease: float) -> tuple[str, float]:
        """Hold the work if nobody does; return who holds it, and for how many seconds."""
        found = self._redis.eval(self.CLAIM, 1, self._name, self.token, int(lease * 1000))
        return found[0].decode(), found[1] / 1000

    def release(self) -> None:
        """Let others have the work, if the lease hasn't done so."""
        self._redis.eval(self.RELEASE, 1, self._name, self.token)

    def finish(self, keep: float) -> None:
        """Say that it is done, even if it took longer than the lease."""
        self._redis.set(self._name, DONE, px=int(keep * 1000))


class _WorkWithoutRedis(_Work):
    """The same for the results of tests and of the embedded broker, which have no locks.

    Two processes that ask at the very same time may both get the work.
    """

    def __init__(self, backend: Any, name: str) -> None:
        super().__init__(None, name)
        self._backend = backend
        # Results may be files, whose names can't hold every key.
        self._key = f"once-{sha256(name.encode()).hexdigest()}".encode()

    def claim(self, lease: float) -> tuple[str, float]:
        found = self._backend.get(self._key)
        holder, end = json.loads(found) if found else ("", 0.0)
        if end < time.time():
            holder, end = self.token, self._hold(self.token, lease)
        return holder, end - time.time()

    def release(self) -> None:
        found = self._backend.get(self._key)
        if found and json.loads(found)[0] == self.token:
            self._backend.delete(self._key)

    def finish(self, keep: float) -> None:
        self._hold(DONE, keep)

    def _hold(self, holder: str, seconds: float) -> float:
        end = time.time() + seconds
        self._backend.set(self._key, json.dumps([holder, end]))
        return end


def _work(app: celery.Celery, name: str) -> _Work:
    backend = app.backend
    if isinstance(backend, RedisBackend):
        return _Work(backend.client, name)
    return _WorkWithoutRedis(backend, name)
