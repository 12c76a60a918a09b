"""A cache that tasks don't depend on. While its server is unreachable, reads find nothing, writes
do nothing, and tasks go on. aiocache provides connections, namespaces and timeouts:
https://aiocache.aio-libs.org
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

#: Seconds between two checks for a value that another process computes.
POLL = 0.05

logger = structlog.get_logger(__name__)


#: CACHE_URL → cache, for caches without a server.
WITHOUT_SERVER = {"memory://": MemoryCache, "none": NoCache}


def _check_url(secret: SecretStr) -> SecretStr:
    url = secret.get_secret_value()
    if url in WITHOUT_SERVER:
        return secret
    if scheme_of(url) in ("redis", "rediss"):
        check_redis(url)
    try:
        # This parses the address without opening a connection.
        ConnectionPool.from_url(url).make_connection()  # type: ignore[no-untyped-call]
    except (TypeError, ValueError, RedisError):
        # Their messages may contain a password.
        allowed = "memory://, none or such as redis://:password@host:6379/1"
        raise ValueError(f"must be {allowed}") from None
    return secret


class Settings(BaseSettings):
    """The address of the cache, its timeouts and its defaults."""

    model_config = SettingsConfigDict(env_prefix="cache_", env_ignore_empty=True)

    # memory:// gives each process its own cache, all processes share a Redis, none is no cache.
    url: Annotated[SecretStr, AfterValidator(_check_url)] = SecretStr("memory://")
    # The prefix of all keys. The default is the namespace that the service sets.
    namespace: str = ""
    # Seconds for which a value is kept, unless `set` gets a `ttl`.
    ttl: float = Field(default=300, ge=0.001, allow_inf_nan=False)
    # Seconds to wait for Redis before a task goes on without the cache.
    timeout: float = Field(default=0.5, gt=0, allow_inf_nan=False)


settings = read(Settings)

#: The maximum number of connections of each event loop. Each concurrent call needs one.
MAX_CONNECTIONS = 10


def from_environment(namespace: str) -> dict[str, Any]:
    """Return the configuration from CACHE_* for `aiocache.caches.set_config`.

    Args:
        namespace: The prefix of all keys, unless CACHE_NAMESPACE is set.
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
    # aiocache has no arguments for users and TLS options, but the URL may contain them.
    return BlockingConnectionPool.from_url(
        settings.url.get_secret_value(),
        max_connections=MAX_CONNECTIONS,
        timeout=settings.timeout,
        socket_timeout=settings.timeout,
        socket_connect_timeout=settings.timeout,
        # Retry once, without a pause: Redis may have closed an idle connection.
        retry=Retry(NoBackoff(), 1),
    )


class Cache:
    """A cache. You configure it in `aiocache.caches`. Each event loop opens its own client.

    All methods are coroutines. In sync code, use `.sync`, which has the same methods without
    `await`. JSON must be able to represent a value. `None` isn't stored: it means "no value".
    """

    def __init__(self, alias: str = "default") -> None:
        self.sync = SyncCache(self)
        self._alias = alias
        self._clients = PerLoop(self._open)
        self._outage = Outage(alias)

    async def get(self, key: str, default: Any = None) -> Any:
        """Return the value, or `default` if it is missing or expired, or Redis is unreachable."""
        try:
            value = await self._ask("get", key)
        except ValueError as error:
            # Another version or another program has written the value. The next `set` replaces it.
            logger.warning("cache_value_unreadable", key=key, error=str(error))
            value = None
        return default if value is None else value

    async def set(self, key: str, value: Any, ttl: float | None = None) -> None:
        """Store a value for `ttl` seconds. The default is CACHE_TTL."""
        if ttl is not None and ttl <= 0:
            raise ValueError(f"ttl must be above 0, not {ttl}")
        if value is not None:
            await self._ask("set", key, value, **({} if ttl is None else {"ttl": float(ttl)}))

    async def delete(self, key: str) -> None:
        """Delete a value."""
        await self._ask("delete", key)

    async def clear(self) -> bool:
        """Delete all values of this service: all keys that begin with its namespace.

        With `memory://`, only the values of this event loop are deleted.

        Returns:
            Whether the values are deleted: False while Redis is unreachable.

        Raises:
            ValueError: The cache has no namespace, so its keys can't be told from others.
        """
        # CACHE_TIMEOUT applies to each step, not to all steps together.
        return await self._ask("clear", timeout=None) is not None

    async def get_or_set(
        self,
        key: str,
        compute: Callable[[], Awaitable[T]],
        ttl: float | None = None,
        lease: float = 30,
    ) -> T:
        """Return the value. If there is none, compute it and store it.

        If several tasks in any processes need the value at the same time, one of them computes it
        and the others wait. If there is still no value after `lease` seconds, because that task has
        died or takes longer, another task computes it, and the others wait for up to `lease`
        seconds more. `lease` should be longer than `compute` takes.
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
        """Return the value and the time at which the caller's lease ends; 0 if it has no lease.

        If the value is None, the caller computes it. aiocache's own lock works only within a
        process.
        """
        give_up = time.monotonic() + 2 * lease
        lease_end = 0.0
        # Read again after getting the lease: its last holder may have stored the value.
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
        """Give a lease back, unless it has expired: another task may hold it then."""
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
    """The methods of `Cache` for sync code. They run on the event loop of the thread."""

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
        """See `Cache.get_or_set`. `compute` is a plain function; the event loop doesn't run."""
        found, lease_end = run(self._cache.find_or_lease(key, lease))
        if found is not None:
            return found  # type: ignore[no-any-return]
        try:
            value = compute()
            self.set(key, value, ttl)
        finally:
            run(self._cache.release(key, lease_end))
        return value
