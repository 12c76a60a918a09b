"""Tasks that the benchmarks add to a rendered project: no work, or nothing but waiting."""

import asyncio

from celery import current_app


@current_app.task(name="benchmark.noop")
def noop(number: int) -> None:
    """Do nothing."""


@current_app.task(name="benchmark.async_noop")
async def async_noop(number: int) -> None:
    """Do nothing, in a coroutine."""


@current_app.task(name="benchmark.wait")
async def wait(number: int) -> None:
    """Wait as for a slow server."""
    await asyncio.sleep(0.1)
