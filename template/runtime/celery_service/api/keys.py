"""What the API remembers in the Redis of the results: which tasks it has sent, and for which keys.

Celery can't tell a task that waits from one that was never sent: neither has a result.
"""

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, cast

from celery import Celery
from kombu.utils.encoding import bytes_to_str

from celery_service.dead_letters.store import prefix_of, redis_of

#: Seconds that the `Idempotency-Key` of a client is remembered.
DAY = 24 * 60 * 60
#: Seconds after which a request that hasn't ended is given up: its process has died.
LOCK = 15

CLAIM = Path(__file__).with_name("claim.lua").read_text(encoding="utf-8")

#: The request may send its task: it is the first one, or others have failed before. Or the task was
#: sent, another request is sending it, or the key belongs to a different request.
Claim = Literal["new", "again", "sent", "busy", "other"]


class Keys(Protocol):
    """Where it is remembered. Threads call the methods, and they raise what Redis raises."""

    def add(self, task_ids: Sequence[str]) -> None:
        """Remember that tasks are sent, as long as their results would be kept."""

    def forget(self, task_id: str) -> None:
        """Forget a task that couldn't be sent."""

    def knows(self, task_id: str) -> bool:
        """Return whether a task was sent."""

    def claim(self, key: str, fingerprint: str, task_id: str) -> tuple[Claim, str]:
        """Return what becomes of a request, and the id of its task."""

    def release(self, key: str, *, sent: bool, forget: bool) -> None:
        """End the request that has claimed a key."""


def keys_of(app: Celery) -> Keys:
    """Return the keys in Redis; in this process if results are elsewhere, as with `make dev`."""
    return InMemory() if redis_of(app) is None else InRedis(app)


class InRedis:
    """Keys in the Redis of the results."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._prefix = prefix_of(app)
        self._expires = int(app.conf.result_expires or DAY)

    @property
    def _redis(self) -> Any:
        return redis_of(self._app)  # each thread has a client of its own

    def _sent(self, task_id: str) -> str:
        return f"{self._prefix}sent:{task_id}"

    def _key(self, key: str) -> tuple[str, str]:
        record = f"{self._prefix}idempotency:{key}"
        return record, f"{record}:lock"

    def add(self, task_ids: Sequence[str]) -> None:
        with self._redis.pipeline(transaction=False) as pipe:
            for task_id in task_ids:
                pipe.set(self._sent(task_id), 1, ex=self._expires)
            pipe.execute()

    def forget(self, task_id: str) -> None:
        self._redis.delete(self._sent(task_id))

    def knows(self, task_id: str) -> bool:
        return bool(self._redis.exists(self._sent(task_id)))

    def claim(self, key: str, fingerprint: str, task_id: str) -> tuple[Claim, str]:
        answer = self._redis.eval(CLAIM, 2, *self._key(key), fingerprint, task_id, DAY, LOCK)
        claim, known = map(bytes_to_str, answer)
        return cast(Claim, claim), known

    def release(self, key: str, *, sent: bool, forget: bool) -> None:
        record, lock = self._key(key)
        with self._redis.pipeline(transaction=True) as pipe:
            if sent:
                pipe.hset(record, "sent", 1)
                pipe.expire(record, DAY)
            elif forget:
                pipe.delete(record)
            pipe.delete(lock)
            pipe.execute()


class InMemory:
    """Keys in this process, for `make dev` without servers, and for tests."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._tasks: set[str] = set()
        self._records: dict[str, dict[str, Any]] = {}

    def add(self, task_ids: Sequence[str]) -> None:
        self._tasks.update(task_ids)

    def forget(self, task_id: str) -> None:
        self._tasks.discard(task_id)

    def knows(self, task_id: str) -> bool:
        return task_id in self._tasks

    def claim(self, key: str, fingerprint: str, task_id: str) -> tuple[Claim, str]:
        now = time.monotonic()
        with self._mutex:
            record = self._records.get(key)
            is_new = record is None or record["until"] < now
            if record is None or is_new:
                record = {"fingerprint": fingerprint, "task_id": task_id, "sent": False}
                self._records[key] = record = record | {"until": now + DAY, "lock": 0.0}
            elif record["fingerprint"] != fingerprint:
                return "other", ""
            if record["sent"]:
                return "sent", str(record["task_id"])
            if record["lock"] > now:
                return "busy", ""
            record["lock"] = now + LOCK
            return "new" if is_new else "again", str(record["task_id"])

    def release(self, key: str, *, sent: bool, forget: bool) -> None:
        with self._mutex:
            if forget:
                del self._records[key]
            else:
                self._records[key] |= {"sent": sent, "lock": 0.0}
