"""Beat shows in the Redis of the results that it runs, so that other machines see it.

heartbeat.py does the same for health checks on this machine, with files.
"""

import contextlib
import os
import socket
import threading
import time
from typing import Any, NamedTuple

from celery import Celery
from celery.signals import beat_init
from kombu.exceptions import OperationalError
from kombu.utils.json import dumps, loads
from redis.exceptions import RedisError

from celery_service.dead_letters.store import prefix_of, redis_of

#: Seconds between two signs. A beat that has given none for SILENCE seconds hangs or has ended.
INTERVAL, SILENCE = 10.0, 60.0
#: Seconds for which the last signs are kept, to tell since when no beat runs.
KEPT = 7 * 24 * 60 * 60


class Beat(NamedTuple):
    """A beat that runs or has run."""

    #: Host and process id.
    name: str
    #: Seconds since its last sign, by the clock of Redis.
    silent: float
    #: How many seconds its own clock was ahead of that of Redis.
    ahead: float
    #: Whether it was told to stop.
    stopped: bool


def install(app: Celery) -> None:
    """Have each beat of `app` show that it runs, also that of `worker --beat`."""

    def start(sender: Any, **kwargs: object) -> None:
        if sender.app is app:
            _Signs(app, sender.scheduler)

    beat_init.connect(start, weak=False)


class _Signs:
    """Writes the signs in a thread: beat must not wait for the Redis of the results."""

    def __init__(self, app: Celery, scheduler: Any) -> None:
        self._app = app
        self._ticked = time.monotonic()
        self._stopped = False
        self._tick = scheduler.tick
        scheduler.tick = self._note_tick
        self._close = scheduler.close
        scheduler.close = self._stop
        threading.Thread(target=self._keep_showing, name="signs of beat", daemon=True).start()

    def _note_tick(self, *args: Any, **options: Any) -> float:
        self._ticked = time.monotonic()
        interval: float = self._tick(*args, **options)
        # Beat would sleep until something is due, for up to five minutes.
        return min(interval, INTERVAL)

    def _stop(self) -> None:
        self._close()
        # A beat that replaces this one isn't a second one.
        self._stopped = True
        self._show()

    def _keep_showing(self) -> None:
        while not self._stopped:
            if time.monotonic() - self._ticked < SILENCE:
                self._show()
            time.sleep(INTERVAL)

    def _show(self) -> None:
        with contextlib.suppress(RedisError, OperationalError, OSError):
            self._write()

    def _write(self) -> None:
        redis = redis_of(self._app)
        if redis is None:
            return
        key = key_of(self._app)
        for beat in _read(redis, key):
            if beat.silent > KEPT:
                redis.hdel(key, beat.name)
        seconds, microseconds = redis.time()
        now = seconds + microseconds / 1_000_000
        sign = dumps({"seen": now, "ahead": time.time() - now, "stopped": self._stopped})
        with redis.pipeline() as pipe:
            pipe.hset(key, f"{socket.gethostname()}:{os.getpid()}", sign)
            pipe.expire(key, KEPT)
            pipe.execute()


def key_of(app: Celery) -> str:
    """Return the key in Redis of the signs."""
    return f"{prefix_of(app)}beat"


def beats(app: Celery) -> list[Beat] | None:
    """Return each beat that has shown itself, the latest first; None where no Redis keeps signs.

    Raises:
        RedisError: Redis can't be reached.
    """
    redis = redis_of(app)
    return None if redis is None else _read(redis, key_of(app))


def _read(redis: Any, key: str) -> list[Beat]:
    seconds, microseconds = redis.time()
    now = seconds + microseconds / 1_000_000
    found = []
    for name, text in redis.hgetall(key).items():
        sign = loads(text)
        beat = Beat(name.decode(), now - sign["seen"], sign["ahead"], sign["stopped"])
        found.append(beat)
    return sorted(found, key=lambda each: each.silent)
