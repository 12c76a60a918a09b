"""Where dead letters are kept, in the Redis of the results: records by id, their ids by time."""

import time
from collections.abc import Iterator
from typing import Any

import structlog
from celery import Celery
from kombu.utils.json import dumps, loads
from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from celery_service.config.settings import read
from celery_service.dead_letters.story import Record

DAY = 24 * 60 * 60

logger = structlog.get_logger(__name__)


class Settings(BaseSettings):
    """How many dead letters are kept, and for how long."""

    model_config = SettingsConfigDict(env_prefix="dead_letters_", env_ignore_empty=True)

    # Older ones are dropped, and the oldest when there are more.
    max_age_days: int = Field(default=30, ge=1)
    max_count: int = Field(default=10_000, ge=1)


settings = read(Settings)


def redis_of(app: Celery, backend: Any = None) -> Any:
    """Return the Redis of the results; None where they are elsewhere, as with embedded brokers."""
    client = getattr(backend or app.backend, "client", None)
    return client if hasattr(client, "zadd") else None


def deliveries_key(app: Celery, task_id: str) -> str:
    """Return the key of the number of deliveries after the first one, by retry: see poison.py."""
    return f"{app.main}:deliveries:{task_id}"


class DeadLetters:
    """The dead letters of an app. Without a Redis to keep them in, they are only logged."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._redis = redis_of(app)
        self._records = f"{app.main}:dead-letters:records"
        self._times = f"{app.main}:dead-letters:times"

    @property
    def are_kept(self) -> bool:
        """Whether there is a Redis to keep them in."""
        return self._redis is not None

    def add(self, record: Record) -> None:
        """Keep a record, in place of one of the same id, and drop those beyond the limits.

        Raises:
            RedisError: Redis can't be reached, or can't write.
        """
        if self.are_kept:
            with self._redis.pipeline(transaction=True) as pipe:
                pipe.hset(self._records, record["id"], dumps(record))
                pipe.zadd(self._times, {record["id"]: record["time"]})
                pipe.execute()
            self._drop_beyond_limits()
        told = ("id", "task", "reason", "error", "queue", "deliveries")
        logger.error("dead_letter", **{name: record[name] for name in told})

    def __iter__(self) -> Iterator[Record]:
        """Give the records, oldest first."""
        if not self.are_kept:
            return
        ids = self._redis.zrange(self._times, 0, -1)
        for start in range(0, len(ids), 100):
            for text in self._redis.hmget(self._records, ids[start : start + 100]):
                if text is not None:
                    yield loads(text)

    def remove(self, *ids: str) -> None:
        """Forget records, and how often their messages were delivered."""
        with self._redis.pipeline(transaction=True) as pipe:
            pipe.hdel(self._records, *ids)
            pipe.zrem(self._times, *ids)
            pipe.delete(*(deliveries_key(self._app, id_) for id_ in ids))
            pipe.execute()

    def claim(self, record_id: str, seconds: int) -> bool:
        """Tell whether nobody else replays this record: true for one caller in so many seconds."""
        return bool(self._redis.set(f"{self._records}:{record_id}", 1, nx=True, ex=seconds))

    def release(self, record_id: str) -> None:
        """Let others replay it, after an attempt that failed."""
        self._redis.delete(f"{self._records}:{record_id}")

    def _drop_beyond_limits(self) -> None:
        too_old = time.time() - settings.max_age_days * DAY
        ids: list[bytes] = self._redis.zrangebyscore(self._times, "-inf", too_old)
        ids += self._redis.zrange(self._times, 0, -settings.max_count - 1)
        if ids:
            self.remove(*(id_.decode() for id_ in ids))
