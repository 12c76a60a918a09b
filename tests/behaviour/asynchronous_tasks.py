"""Async tasks that the behaviour tests add to a rendered project, beside those of probe_tasks.py."""

import asyncio
import contextvars
import os
import time
from pathlib import Path
from typing import Any

from celery import Task, current_app, shared_task

from .probe import note

VARIABLE = contextvars.ContextVar("VARIABLE", default="unset")


@current_app.task(name="probe.add")
async def add(x: int, y: int) -> int:
    """Wait, then return."""
    await asyncio.sleep(0.01)
    return x + y


@shared_task(name="probe.add_all")
async def add_all(numbers: list[int]) -> int:
    """The callback of a chord."""
    await asyncio.sleep(0)
    return sum(numbers)


@current_app.task(name="probe.silent", ignore_result=True)
async def silent(path: str, line: str) -> None:
    """Leave nothing but a line."""
    await asyncio.sleep(0)
    note(path, line)


@current_app.task(name="probe.who", bind=True)
async def who(self: Task[..., Any]) -> list[Any]:
    """Look at the request from inside the coroutine, before and after a wait."""
    before = self.request.id
    await asyncio.sleep(0.01)
    return [before, self.request.id, str(os.getpid())]


class Greeter(current_app.Task):
    """A task that is a class."""

    name = "probe.greet"

    async def run(self, name: str) -> str:
        """Greet."""
        await asyncio.sleep(0)
        return f"Hello {name} from {self.name}"


greet: Any = current_app.register_task(Greeter())


@current_app.task(name="probe.flaky", autoretry_for=(ConnectionError,), retry_backoff=False, default_retry_delay=0)
async def flaky(path: str, times: int) -> int:
    """Fail so many times, after a wait."""
    await asyncio.sleep(0.01)
    note(path, "tried")
    tries = len(Path(path).read_text().splitlines())
    if tries <= times:
        raise ConnectionError("away")
    return tries


@current_app.task(name="probe.retry_self", bind=True)
async def retry_self(self: Task[..., Any], path: str) -> int:
    """Ask for a retry from inside."""
    await asyncio.sleep(0)
    note(path, f"retries {self.request.retries}")
    if self.request.retries < 2:
        raise self.retry(countdown=0)
    return self.request.retries


@current_app.task(name="probe.hang")
async def hang(path: str, how: str) -> None:
    """Run into the soft time limit: while waiting, computing, or inside a child that was started."""
    note(path, "start")
    VARIABLE.set("left over")
    background = asyncio.create_task(_tick(path))
    try:
        if how == "wait":
            await asyncio.sleep(60)
        elif how == "block":
            time.sleep(60)
        else:
            async with asyncio.TaskGroup() as group:
                group.create_task(asyncio.sleep(60))
    finally:
        await asyncio.sleep(0.1)
        note(path, "cleaned up")
        background.cancel()


async def _tick(path: str) -> None:
    while True:
        await asyncio.sleep(0.2)
        note(path, "tick")


@current_app.task(name="probe.look")
async def look() -> list[object]:
    """Tell what the last task left behind on this loop."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    return [len(tasks), VARIABLE.get(), os.getpid()]


@current_app.task(name="probe.leave")
async def leave(path: str) -> None:
    """Return while something that was started still runs."""
    background = asyncio.create_task(_tick(path))
    await asyncio.sleep(0)
    note(path, f"left {background.done()}")


@current_app.task(name="probe.cancel_itself")
async def cancel_itself() -> None:
    """Be cancelled by nobody but oneself."""
    current = asyncio.current_task()
    assert current
    current.cancel()
    await asyncio.sleep(1)
