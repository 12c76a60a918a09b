"""Fixes for aiocache 0.12.3, which is the newest release: https://aiocache.aio-libs.org"""

import asyncio
import json
import re
from typing import Any

import aiocache  # type: ignore[import-untyped]
from aiocache.serializers import BaseSerializer  # type: ignore[import-untyped]

#: The number of Redis keys that `clear` scans in one step.
BATCH = 1000


class MemoryCache(aiocache.SimpleMemoryCache):  # type: ignore[misc]
    """A cache in memory, for one event loop. Values also expire while the loop doesn't run.

    aiocache deletes expired values by timers of the loop, which don't run between two tasks.
    """

    async def _get(self, key: str, **kwargs: Any) -> Any:
        await self._expire_now(key)
        return await super()._get(key, **kwargs)

    async def _add(self, key: str, value: Any, **kwargs: Any) -> Any:
        await self._expire_now(key)
        return await super()._add(key, value, **kwargs)

    async def _clear(self, *_names: Any, **_options: Any) -> bool:
        # aiocache doesn't cancel the timers. They would delete values that are stored later.
        for key in tuple(self._cache):
            await self._delete(key)
        return True

    async def _expire_now(self, key: str) -> None:
        timer = self._handlers.get(key)
        if timer and timer.when() <= asyncio.get_running_loop().time():
            await self._delete(key)


class NoCache(MemoryCache):
    """Stores nothing, and grants every lease."""

    async def _set(self, *_parts: Any, **_options: Any) -> bool:
        return True

    async def _add(self, *_parts: Any, **_options: Any) -> bool:
        return True


class RedisCache(aiocache.RedisCache):  # type: ignore[misc]
    """aiocache's cache. `clear` deletes only keys of its namespace; `close` calls `aclose`."""

    async def _clear(self, *_names: Any, **_options: Any) -> bool:
        # aiocache lists all keys in one command and, without a namespace, empties the database.
        if not self.namespace:
            raise ValueError("the cache has no namespace: its keys can't be told from others")
        prefix = self.build_key("", namespace=self.namespace)
        pattern = re.sub(r"([\\*?\[\]])", r"\\\1", prefix) + "*"
        cursor = None
        while cursor != 0:
            cursor, keys = await self.client.scan(cursor or 0, match=pattern, count=BATCH)
            if keys:
                await self.client.unlink(*keys)
        return True

    async def _close(self, **_options: Any) -> None:
        await self.client.aclose()


class JsonSerializer(BaseSerializer):  # type: ignore[misc]
    """JSON, by the standard library. aiocache uses ujson if that is installed."""

    # Redis returns bytes.
    DEFAULT_ENCODING = None

    def dumps(self, value: Any) -> bytes:
        """Return the bytes to store. Raise TypeError if JSON can't represent the value."""
        return json.dumps(value).encode()

    def loads(self, value: bytes | None) -> Any:
        """Return the value. Raise ValueError if the bytes aren't JSON."""
        return None if value is None else json.loads(value)
