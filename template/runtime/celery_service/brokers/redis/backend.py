"""The result backend. If Redis is unreachable, workers wait and clients get an error.

Workers need `result_backend_always_retry`, with which Celery retries every command until Redis
answers. Celery then makes clients wait for ever too, and tells a client to restart that loses its
connection while it waits for a result. Here only workers retry, and a client that waits for a
result reconnects.
"""

import functools
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import celery.backends.redis
import structlog
from celery.states import PENDING, READY_STATES
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from celery_service.brokers.errors import unavailable
from celery_service.data.results import passes

#: Seconds between two checks, while waiting for a result, of whether it has arrived unnoticed and
#: whether Redis still answers.
LOOK = 1.0
#: The number of results that one check reads.
BATCH = 100

logger = structlog.get_logger(__name__)

_celerys: Any = celery.backends.redis


#: The attribute that a pool of connections has which is Celery's, and not the service's.
OF_CELERY = "is_of_celery"


class ResultConsumer(_celerys.ResultConsumer):  # type: ignore[misc]
    """Listens for results. It connects when somebody waits for one, and reconnects if it must."""

    _pubsub: Any = None
    _looked = 0.0
    # Whether results may have arrived while there was no connection.
    _has_missed = False

    def consume_from(self, task_id: str) -> None:
        """Subscribe to a result: now if there is a connection, otherwise when somebody waits."""
        with self._locked():
            if self._pubsub is not None:
                self._consume_from(task_id)
                return
            key = self._get_key_for_task(task_id)
            self._pending_unsubscribe.discard(key)
            self.subscribed_to.add(key)

    def on_wait_for_pending(self, result: Any, **options: Any) -> None:
        """Connect, and check for results that are there already.

        Raises:
            OperationalError: Redis is unreachable, and this isn't a worker.
        """
        self._looked = time.monotonic()
        self.backend.patiently(self._listen)
        super().on_wait_for_pending(result, **options)

    def _wait_for_pending(
        self, result: Any, timeout: Any = None, on_interval: Any = None, **options: Any
    ) -> Iterator[None]:
        def look() -> None:
            if time.monotonic() - self._looked >= LOOK:
                self._look()
            if on_interval:
                on_interval()

        yield from super()._wait_for_pending(result, timeout=timeout, on_interval=look, **options)

    def drain_events(self, timeout: float | None = None) -> None:
        """Read what has arrived. If Redis is unreachable, `_look` raises the error."""
        if self._pubsub is None:
            with suppress(RedisError, OSError):
                self._listen()
        super().drain_events(timeout)

    def _look(self) -> None:
        """Read results that may have been missed. This also notices a Redis that hangs."""
        self._looked = time.monotonic()
        self.backend.patiently(self._listen)
        with self._locked():
            keys = list(self.subscribed_to)
        if not self._has_missed:
            keys = random.sample(keys, min(len(keys), BATCH))
        for text in self.backend.mget(keys) if keys else ():
            found = self._decode_result(text) if text else {"status": PENDING}
            if found["status"] in READY_STATES:
                self.on_state_change(found, None)
        self._has_missed = False

    def _listen(self) -> None:
        """Connect, and subscribe to all results that somebody waits for."""
        with self._locked():
            if self._pubsub is not None:
                return
            pubsub = self.backend.client.pubsub(ignore_subscribe_messages=True)
            if self.subscribed_to:
                pubsub.subscribe(*self.subscribed_to)
            self._pubsub, self._has_missed = pubsub, True

    @contextmanager
    def reconnect_on_error(self) -> Iterator[None]:
        """Close a broken connection. The next `drain_events` or `_look` opens a new one."""
        try:
            yield
        except self._connection_errors:
            pubsub, self._pubsub = self._pubsub, None
            if pubsub is not None:
                pubsub.close()
            self._looked = 0.0


class RedisBackend(_celerys.RedisBackend):  # type: ignore[misc]
    """Results in Redis. Only workers wait for a Redis that is unreachable."""

    ResultConsumer = ResultConsumer

    def _create_client(self, **params: Any) -> Any:
        """Return a client. Its connections are marked as Celery's: tracing leaves them out."""
        client = super()._create_client(**params)
        setattr(client.connection_pool, OF_CELERY, True)
        return client

    def on_task_call(self, producer: Any, task_id: str) -> None:
        """Do nothing. Celery would subscribe to each result when it sends the task."""

    def exception_safe_to_retry(self, exc: BaseException) -> bool:
        """Return whether the error is temporary and this process is a worker."""
        # Celery sets this in workers and in the processes of their pools.
        is_worker: bool = self.app.loader.worker_initialized
        return is_worker and passes(exc)

    def store_result(self, task_id: Any, result: Any, state: Any, *rest: Any, **more: Any) -> Any:
        """Store a state. If Redis refuses it permanently, log an error; the task goes on."""
        try:
            return super().store_result(task_id, result, state, *rest, **more)
        except (RedisError, OperationalError) as error:
            if passes(error):
                raise
            told = {"state": state, "server": self.as_uri(), "error": str(error)}
            logger.error("result_not_stored", task_id=task_id, **told)
        return result

    def _ensure_retryable(self, func: Any, *args: Any, **options: Any) -> Any:
        """Log once that a worker waits, instead of each attempt: observability/doubles.py."""
        waits = False

        @functools.wraps(func)
        def ask(*args: Any, **options: Any) -> Any:
            nonlocal waits
            try:
                return func(*args, **options)
            except Exception as error:
                if not waits and self.always_retry and self.exception_safe_to_retry(error):
                    waits = True
                    logger.warning("result_backend_away", server=self.as_uri(), error=str(error))
                raise

        result = super()._ensure_retryable(ask, *args, **options)
        if waits:
            logger.info("result_backend_back", server=self.as_uri())
        return result

    def patiently(self, ask: Callable[[], Any]) -> Any:
        """Call `ask`. Workers retry until Redis answers.

        Raises:
            OperationalError: Redis is unreachable, and this isn't a worker.
        """
        return self._ensure_retryable(self._ask, ask)

    def get(self, key: Any) -> Any:
        """Return the value of a key."""
        return self._ask(super().get, key)

    def mget(self, keys: Any) -> Any:
        """Return the values of several keys."""
        return self.patiently(partial(super().mget, keys))

    def delete(self, key: Any) -> None:
        """Delete a key."""
        self._ask(super().delete, key)

    def ensure(self, fun: Any, args: Any, **policy: Any) -> Any:
        """Call a function, and retry it as `retry_policy` says."""
        return self._ask(super().ensure, fun, args, **policy)

    def _ask(self, ask: Callable[..., Any], *args: Any, **options: Any) -> Any:
        try:
            return ask(*args, **options)
        except (RedisError, OSError) as error:
            servers = self.connparams.get("hosts", [self.connparams])
            names = [each.get("path") or f"{each['host']}:{each['port']}" for each in servers]
            raise unavailable(f"result backend {', '.join(names)}", error) from error


class SentinelBackend(_celerys.SentinelBackend, RedisBackend):  # type: ignore[misc]
    """Results in the Redis that Sentinel names."""
