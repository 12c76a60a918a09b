"""What aiocache 0.12.3 needs mended, which is its newest release: https://aiocache.aio-libs.org"""

import asyncio
import json
import re
from typing import Any

import aiocache  # type: ignore[import-untyped]
from aiocache.serializers import BaseSerializer  # type: ignore[import-untyped]

#: How many keys of Redis are looked at in one step of `clear`.
BATCH = 1000


class MemoryCache(aiocache.SimpleMemoryCache):  # type: ignore[misc]
    """The memory of one event loop. What has expired is gone, also where the loop was at rest.

    aiocache deletes by a timer of the loop, which comes too late between two tasks.
    """

    async def _get(self, key: str, **kwargs: Any) -> Any:
        await self._expire_now(key)
        return await super()._get(key, **kwargs)

    async def _add(self, key: str, value: Any, **kwargs: Any) -> Any:
        await self._expire_now(key)
        return await super()._add(key, value, **kwargs)

    async def _clear(self, *_names: Any, **_options: Any) -> bool:
        # aiocache would forget the timers and let them run: they would delete later values.
        for key in tuple(self._cache):
            await self._delete(key)
        return True

    async def _expire_now(self, key: str) -> None:
        timer = self._handlers.get(key)
        if timer and timer.when() <= asyncio.get_running_loop().time():
            await self._delete(key)


class NoCache(MemoryCache):
    """Keeps nothing. Everybody may compute a value."""

    async def _set(self, *_parts: Any, **_options: Any) -> bool:
        return True

    async def _add(self, *_parts: Any, **_options: Any) -> bool:
        return True


class RedisCache(aiocache.RedisCache):  # type: ignore[misc]
    """aiocache's, closed as redis-py wants it today, and cleared without harm to others."""

    async def _clear(self, *_names: Any, **_options: Any) -> bool:
        # aiocache would ask for all keys at once and, without a namespace, empty the database.
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
    """JSON, by the standard library; aiocache would take another one where it is installed."""

    # Redis hands over bytes as they are.
    DEFAULT_ENCODING = None

    def dumps(self, value: Any) -> bytes:
        """Return the bytes to store; raises TypeError for what JSON can't hold."""
        return json.dumps(value).encode()

    def loads(self, value: bytes | None) -> Any:
        """Return the value; raises ValueError for what isn't JSON."""
        return None if value is None else json.loads(value)
