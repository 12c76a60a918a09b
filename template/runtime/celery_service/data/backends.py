"""What aiocache 0.12.3 needs mended, which is its newest release: https://aiocache.aio-libs.org"""

import asyncio
import json
from typing import Any

import aiocache  # type: ignore[import-untyped]
from aiocache.serializers import BaseSerializer  # type: ignore[import-untyped]


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

    async def _expire_now(self, key: str) -> None:
        timer = self._handlers.get(key)
        if timer and timer.when() <= asyncio.get_running_loop().time():
            await self._delete(key)


class RedisCache(aiocache.RedisCache):  # type: ignore[misc]
    """aiocache's, closed as redis-py wants it today."""

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
