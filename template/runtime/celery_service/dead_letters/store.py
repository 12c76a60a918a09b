"""Where dead letters are kept, in the Redis of the results: records by id, their ids by time."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import structlog
from celery import Celery
from celery.backends.base import KeyValueStoreBackend
from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import dumps, loads
from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict
from redis.exceptions import RedisError

from celery_service.config.settings import read
from celery_service.data.results import passes
from celery_service.dead_letters import chords
from celery_service.dead_letters.story import Record
from celery_service.observability.signals import dead_letter_added

DAY = 24 * 60 * 60

#: So much of an error is kept, in characters, where the whole record is too large.
SHORT = 1000

ADD = Path(__file__).with_name("add.lua").read_text(encoding="utf-8")
REMOVE = Path(__file__).with_name("remove.lua").read_text(encoding="utf-8")

logger = structlog.get_logger(__name__)


class Settings(BaseSettings):
    """How many dead letters are kept, how large they are, and for how long."""

    model_config = SettingsConfigDict(env_prefix="dead_letters_", env_ignore_empty=True)

    # Older ones are dropped, and the oldest when there are more, or when they have more bytes.
    max_age_days: int = Field(default=30, ge=1)
    max_count: int = Field(default=10_000, ge=1)
    # Redis has them in memory, with everything else. A record without its arguments has 1 to 3 kB.
    max_bytes: int = Field(default=100_000_000, ge=10_000)


settings = read(Settings)


def redis_of(app: Celery, backend: Any = None) -> Any:
    """Return the Redis of the results; None where they are elsewhere, as with embedded brokers."""
    client = getattr(backend or app.backend, "client", None)
    return client if hasattr(client, "zadd") else None


def prefix_of(app: Celery) -> str:
    """Return how our keys in the result store begin: with its `global_keyprefix`, then the app."""
    of_tasks = getattr(app.backend, "task_keyprefix", "")
    shared = bytes_to_str(of_tasks).removesuffix(KeyValueStoreBackend.task_keyprefix)
    return f"{shared}{app.main}:"


def deliveries_key(app: Celery, task_id: str) -> str:
    """Return the key of the number of deliveries after the first one, by retry: see poison.py."""
    return f"{prefix_of(app)}deliveries:{task_id}"


class DeadLetters:
    """The dead letters of an app. Without a Redis to keep them in, they are only logged."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._redis = redis_of(app)
        prefix = f"{prefix_of(app)}dead-letters"
        self._records = f"{prefix}:records"
        self._times = f"{prefix}:times"
        self._size = f"{prefix}:size"

    @property
    def are_kept(self) -> bool:
        """Whether there is a Redis to keep them in."""
        return self._redis is not None

    @property
    def server(self) -> str:
        """Where they are kept, for people: the URL without its password."""
        return str(self._app.backend.as_uri())

    def add(self, record: Record) -> None:
        """Keep a record, in place of one of the same id, and drop those beyond the limits.

        With a task of a chord, the callback of the chord becomes a dead letter too. What Redis
        refuses for good is only logged.

        Raises:
            RedisError: Redis can't be reached, or can't write at the moment.
        """
        self._add(record)
        if callback := chords.callback_of(record):
            self._add(callback)

    def _add(self, record: Record) -> None:
        if self.are_kept:
            try:
                if record["reason"] == chords.CHORD and self._has(record["id"]):
                    return  # another task of the chord has failed before
                self._write(record)
            except RedisError as error:
                if passes(error):
                    raise
                logger.error(
                    "dead_letter_not_kept",
                    task_id=record["id"],
                    server=self.server,
                    error=str(error),
                )
        # This may be another task than the one that runs: the callback of its chord.
        logger.error(
            "dead_letter",
            task_id=record["id"],
            task_name=record["task"],
            retries=record.get("retries"),
            correlation_id=record.get("correlation_id"),
            **{name: record[name] for name in ("queue", "reason", "error", "deliveries")},
        )
        dead_letter_added.send(sender=self._app, record=record)

    def _write(self, record: Record) -> None:
        text = dumps(record)
        if len(text) > settings.max_bytes:
            logger.warning(
                "dead_letter_too_large",
                task_id=record["id"],
                bytes=len(text),
                DEAD_LETTERS_MAX_BYTES=settings.max_bytes,
                kept="without its arguments; it can't be replayed",
            )
            text = dumps(_shortened(record, len(text)))
        too_old = time.time() - settings.max_age_days * DAY
        dropped = self._redis.eval(
            *(ADD, 3, self._records, self._times, self._size),
            *(record["id"], record["time"], text),
            *(too_old, settings.max_count, settings.max_bytes),
        )
        if any(dropped):
            limits = ("max_age_days", "max_count", "max_bytes")
            logger.warning("dead_letters_dropped", **dict(zip(limits, dropped, strict=True)))

    def _has(self, record_id: str) -> bool:
        return bool(self._redis.hexists(self._records, record_id))

    def __len__(self) -> int:
        """Return the number of records; 0 where none are kept."""
        return int(self._redis.zcard(self._times)) if self.are_kept else 0

    def __iter__(self) -> Iterator[Record]:
        """Give the records, oldest first."""
        if not self.are_kept:
            return
        ids = self._redis.zrange(self._times, 0, -1)
        for start in range(0, len(ids), 100):
            for text in self._redis.hmget(self._records, ids[start : start + 100]):
                if text is not None:
                    yield loads(text)

    def get(self, record_id: str) -> Record | None:
        """Return a record, if it is there."""
        text = self._redis.hget(self._records, record_id) if self.are_kept else None
        return None if text is None else loads(text)

    def newest(self, count: int) -> list[Record]:
        """Return so many records, newest first."""
        ids = self._redis.zrevrange(self._times, 0, count - 1) if self.are_kept else []
        texts = self._redis.hmget(self._records, ids) if ids else []
        return [loads(text) for text in texts if text is not None]

    def remove(self, *records: Record) -> None:
        """Forget records, and how often their messages were delivered."""
        which = [part for record in records for part in (record["id"], record["time"])]
        with self._redis.pipeline(transaction=True) as pipe:
            pipe.eval(REMOVE, 3, self._records, self._times, self._size, *which)
            for record in records:
                pipe.delete(deliveries_key(self._app, record["id"]), self._claim(record["id"]))
            pipe.execute()

    def claim(self, record: Record, seconds: int) -> bool:
        """Tell whether this caller may replay a record: nobody else has done so, or does so now.

        Nobody else gets the record before it is removed or released, or so many seconds are over.
        """
        if not self._redis.set(self._claim(record["id"]), 1, nx=True, ex=seconds):
            return False
        if self._redis.zscore(self._times, record["id"]) == record["time"]:
            return True
        self.release(record["id"])
        return False

    def release(self, record_id: str) -> None:
        """Let others replay it, after an attempt that failed."""
        self._redis.delete(self._claim(record_id))

    def _claim(self, record_id: str) -> str:
        return f"{self._records}:{record_id}"


def _shortened(record: Record, size: int) -> Record:
    """Return a record that is too large without what can be large, such as its arguments."""
    small = ("id", "task", "queue", "retries", "deliveries", "reason", "time", "failed_at")
    return {
        **{name: record[name] for name in small if name in record},
        "error": record["error"][:SHORT],
        "options": {},
        "bytes": size,
    }
