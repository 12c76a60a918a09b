"""Tasks that use the cache, which the behaviour tests add to a rendered project, beside those of probe_tasks.py."""

import asyncio
import os
import time
from pathlib import Path
from typing import Any

from celery import current_app

from ..services.cache import cache  # noqa: TID252  # the name of the package differs
from .probe import note


@current_app.task(name="probe.put")
def put(key: str, value: Any, ttl: float | None = None) -> None:
    """Set a value in a sync task."""
    cache.sync.set(key, value, ttl=ttl)


@current_app.task(name="probe.take")
def take(key: str) -> Any:
    """Get a value in a sync task."""
    return cache.sync.get(key)


@current_app.task(name="probe.put_async")
async def put_async(key: str, value: Any, ttl: float | None = None) -> None:
    """Set a value in an async task."""
    await cache.set(key, value, ttl=ttl)


@current_app.task(name="probe.take_async")
async def take_async(key: str) -> Any:
    """Get a value in an async task."""
    return await cache.get(key)


@current_app.task(name="probe.clear_async")
async def clear_async() -> bool:
    """Clear the cache in an async task."""
    return await cache.clear()


@current_app.task(name="probe.dear")
def dear(path: str, seconds: float, lease: float = 30) -> int:
    """Compute something in a sync task, unless it is known."""

    def compute() -> int:
        note(path, f"computed by {os.getpid()}")
        time.sleep(seconds)
        return 42

    return cache.sync.get_or_set("dear", compute, lease=lease)


@current_app.task(name="probe.dear_async")
async def dear_async(path: str, seconds: float, lease: float = 30) -> int:
    """Compute something in an async task, unless it is known."""

    async def compute() -> int:
        note(path, f"computed by {os.getpid()}")
        await asyncio.sleep(seconds)
        return 42

    return await cache.get_or_set("dear", compute, lease=lease)


@current_app.task(name="probe.many")
def many(count: int) -> dict[str, Any]:
    """Set and get so many values; tell how long it took, what was missing, and what is open now."""
    start = time.monotonic()
    missing = 0
    for number in range(count):
        cache.sync.set("number", number)
        missing += cache.sync.get("number") is None
    return {
        "seconds": time.monotonic() - start,
        "missing": missing,
        "files": len(list(Path("/proc/self/fd").iterdir())),
    }


@current_app.task(name="probe.many_async")
async def many_async(count: int) -> int:
    """Set and get so many values at the same time; tell how many are there."""
    await asyncio.gather(*(cache.set(f"many {number}", number) for number in range(count)))
    found = await asyncio.gather(*(cache.get(f"many {number}") for number in range(count)))
    return sum(value is not None for value in found)
