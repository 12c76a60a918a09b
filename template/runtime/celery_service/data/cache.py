"""A cache that no task depends on: while its server is away, nothing is found, nothing is kept, and
tasks go on. Connections, namespaces and time-outs are aiocache's: https://aiocache.aio-libs.org
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Annotated, Any, TypeVar

import aiocache  # type: ignore[import-untyped]
import structlog
from pydantic import AfterValidator, Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict
from redis.asyncio import BlockingConnectionPool, ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from celery_service.config.addresses import check_redis, scheme_of
from celery_service.config.settings import read
from celery_service.data.backends import JsonSerializer, MemoryCache, NoCache, RedisCache
from celery_service.data.outage import Outage
from celery_service.data.per_loop import PerLoop
from celery_service.tasks.loop import run

T = TypeVar("T")

#: Seconds between two looks for the answer that another process computes.
POLL = 0.05

logger = structlog.get_logger(__name__)


#: Caches that need no server, by what CACHE_URL says.
WITHOUT_SERVER = {"memory://": MemoryCache, "none": NoCache}


def _check_url(secret: SecretStr) -> SecretStr:
    url = secret.get_secret_value()
    if url in WITHOUT_SERVER:
        return secret
    if scheme_of(url) in ("redis", "rediss"):
        check_redis(url)
    try:
        # As the address says, but it isn't opened.
        ConnectionPool.from_url(url).make_connection()  # type: ignore[no-untyped-call]
    except (TypeError, ValueError, RedisError):
        # Their own words may quote a password.
        allowed = "memory://, none or such as redis://:password@host:6379/1"
        raise ValueError(f"must be {allowed}") from None
    return secret


class Settings(BaseSettings):
    """Where the cache is, and for how long it keeps what."""

    model_config = SettingsConfigDict(env_prefix="cache_", env_ignore_empty=True)

    # memory:// gives each process a cache of its own; a Redis is shared by all; none is no cache.
    url: Annotated[SecretStr, AfterValidator(_check_url)] = SecretStr("memory://")
    # What the names of all keys start with; by default what the service says.
    namespace: str = ""
    # Seconds for which a value is kept, unless it is set with a `ttl`.
    ttl: float = Field(default=300, ge=0.001, allow_inf_nan=False)
    # Seconds to wait for Redis before a task goes on without the cache.
    timeout: float = Field(default=0.5, gt=0, allow_inf_nan=False)


settings = read(Settings)

#: Each event loop opens at most so many connections: one per task that asks at the same moment.
MAX_CONNECTIONS = 10


def from_environment(namespace: str) -> dict[str, Any]:
    """Return what aiocache is to make a cache of, by CACHE_*: see `aiocache.caches.set_config`.

    Args:
        namespace: What the names of all keys start with, unless CACHE_NAMESPACE is set.
    """
    url = settings.url.get_secret_value()
    place: dict[str, Any] = {"cache": RedisCache, "connection_pool_class": _connections}
    if url in WITHOUT_SERVER:
        place = {"cache": WITHOUT_SERVER[url]}
    return place | {
        "namespace": settings.namespace or namespace,
        "ttl": settings.ttl,
        "timeout": settings.timeout,
        "serializer": {"class": JsonSerializer},
    }


def _connections(**kwargs: Any) -> BlockingConnectionPool:
    # aiocache's own arguments know neither users nor TLS options; the URL does.
    return BlockingConnectionPool.from_url(
        settings.url.get_secret_value(),
        max_connections=MAX_CONNECTIONS,
        timeout=settings.timeout,
        socket_timeout=settings.timeout,
        socket_connect_timeout=settings.timeout,
        # Once more, at once: Redis closes connections that idle, and the next one is fine.
        retry=Retry(NoBackoff(), 1),
    )


class Cache:
    """A cache that `caches` of aiocache is configured for; each event loop opens its own client.

    All methods are coroutines. Sync code uses `.sync`, which has the same ones without `await`.
    Values are what JSON can hold. `None` isn't kept: it means that there is nothing.
    """

    def __init__(self, alias: str = "default") -> None:
        self.sync = SyncCache(self)
        self._alias = alias
        self._clients = PerLoop(self._open)
        self._outage = Outage(alias)

    async def get(self, key: str, default: Any = None) -> Any:
        """Return the value, or `default` where it is missing, expired or out of reach."""
        try:
            value = await self._ask("get", key)
        except ValueError as error:
            # Written by another version or another program. What comes next replaces it.
            logger.warning("cache_value_unreadable", key=key, error=str(error))
            value = None
        return default if value is None else value

    async def set(self, key: str, value: Any, ttl: float | None = None) -> None:
        """Keep a value for `ttl` seconds, or for CACHE_TTL."""
        if ttl is not None and ttl <= 0:
            raise ValueError(f"ttl must be above 0, not {ttl}")
        if value is not None:
            await self._ask("set", key, value, **({} if ttl is None else {"ttl": float(ttl)}))

    async def delete(self, key: str) -> None:
        """Forget a value."""
        await self._ask("delete", key)

    async def clear(self) -> bool:
        """Delete all values of this service: all keys that begin with its namespace.

        In memory, these are the values of this event loop only.

        Returns:
            Whether they are gone: false while Redis is away.

        Raises:
            ValueError: The cache has no namespace, so its keys can't be told from others.
        """
        # A step has CACHE_TIMEOUT seconds, not all of them together.
        return await self._ask("clear", timeout=None) is not None

    async def get_or_set(
        self,
        key: str,
        compute: Callable[[], Awaitable[T]],
        ttl: float | None = None,
        lease: float = 30,
    ) -> T:
        """Return the value; where there is none, compute and keep it.

        Of all who ask at the same time, in all processes, one computes. The others wait for its
        answer. When there is none after `lease` seconds, because it has died or takes longer, one
        of them computes, and the others wait as long again: give more than computing takes.
        """
        found, lease_end = await self.find_or_lease(key, lease)
        if found is not None:
            return found  # type: ignore[no-any-return]
        try:
            value = await compute()
            await self.set(key, value, ttl)
        finally:
            await self.release(key, lease_end)
        return value

    async def find_or_lease(self, key: str, lease: float) -> tuple[Any, float]:
        """Return the value, or None and when the caller's right to compute it ends (0: none).

        aiocache's own lock makes those wait only that are in the process that holds it.
        """
        give_up = time.monotonic() + 2 * lease
        lease_end = 0.0
        # Look again after getting the lease: its last holder has stored the value by then.
        while (found := await self.get(key)) is None and not lease_end:
            start = time.monotonic()
            if start >= give_up:
                break
            try:
                await self._ask("add", f"{key}:lease", 1, ttl=float(lease))
                lease_end = start + lease
            except ValueError:  # it exists
                await asyncio.sleep(POLL)
        if found is not None:
            await self.release(key, lease_end)
        return found, lease_end

    async def release(self, key: str, lease_end: float) -> None:
        """Give a lease back; one that has run out is another's by now."""
        if time.monotonic() < lease_end:
            await self.delete(f"{key}:lease")

    async def _ask(self, method: str, *args: Any, **kwargs: Any) -> Any:
        if self._outage.is_on():
            return None
        client = await self._clients.get()
        try:
            answer = await getattr(client, method)(*args, **kwargs)
        except (RedisError, OSError) as error:  # a TimeoutError is an OSError
            self._outage.begin(error)
            return None
        except ValueError:
            self._outage.end()
            raise
        self._outage.end()
        return answer

    async def _open(self) -> AsyncGenerator[Any, None]:
        client = aiocache.caches.create(self._alias)
        try:
            yield client
        finally:
            await client.close()


class SyncCache:
    """What `Cache` does, for sync code: it waits on the loop of its thread."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache

    def get(self, key: str, default: Any = None) -> Any:
        """See `Cache.get`."""
        return run(self._cache.get(key, default))

    def set(self, key: str, value: Any, ttl: float | None = None) -> None:
        """See `Cache.set`."""
        run(self._cache.set(key, value, ttl))

    def delete(self, key: str) -> None:
        """See `Cache.delete`."""
        run(self._cache.delete(key))

    def clear(self) -> bool:
        """See `Cache.clear`."""
        return run(self._cache.clear())

    def get_or_set(
        self, key: str, compute: Callable[[], T], ttl: float | None = None, lease: float = 30
    ) -> T:
        """See `Cache.get_or_set`. `compute` is a plain function, and no loop runs while it does."""
        found, lease_end = run(self._cache.find_or_lease(key, lease))
        if found is not None:
            return found  # type: ignore[no-any-return]
        try:
            value = compute()
            self.set(key, value, ttl)
        finally:
            run(self._cache.release(key, lease_end))
        return value
