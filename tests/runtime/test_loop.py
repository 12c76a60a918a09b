"""Each thread has one event loop. A task leaves nothing on it for the next task."""

import asyncio
import contextvars
import os
import threading
from collections.abc import AsyncGenerator, Iterator
from typing import Any

import pytest
from celery import Celery
from celery.exceptions import SoftTimeLimitExceeded
from celery_service.data.per_loop import PerLoop
from celery_service.tasks import loop

VARIABLE = contextvars.ContextVar("VARIABLE", default="unset")


@pytest.fixture(autouse=True)
def _closed_at_the_end() -> Iterator[None]:
    yield
    loop.close_loops()


async def answer() -> int:
    await asyncio.sleep(0)
    return 42


async def hang() -> None:
    await asyncio.sleep(60)


def test_a_coroutine_returns_and_raises() -> None:
    async def fail() -> None:
        raise LookupError("in vain")

    assert loop.run(answer()) == 42
    with pytest.raises(LookupError, match="in vain"):
        loop.run(fail())


def test_a_thread_keeps_its_loop() -> None:
    async def which() -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    others: list[asyncio.AbstractEventLoop] = []
    thread = threading.Thread(target=lambda: others.append(loop.run(which())))
    thread.start()
    thread.join()
    mine = loop.run(which())
    assert loop.run(which()) is mine
    assert others[0] is not mine


def test_tasks_that_a_coroutine_leaves_running_are_cancelled() -> None:
    seen: list[str] = []

    async def background() -> None:
        try:
            await hang()
        finally:
            await asyncio.sleep(0)  # it may take its time
            seen.append("ended")

    async def leave() -> None:
        VARIABLE.set("left over")
        asyncio.create_task(background())  # noqa: RUF006
        await asyncio.sleep(0)

    async def look() -> tuple[int, str]:
        return len(asyncio.all_tasks()), VARIABLE.get()

    loop.run(leave())
    assert seen == ["ended"]
    assert loop.run(look()) == (1, "unset")


def test_a_coroutine_that_cancels_itself_fails() -> None:
    async def cancel() -> None:
        current = asyncio.current_task()
        assert current
        current.cancel()
        await asyncio.sleep(0)

    with pytest.raises(RuntimeError, match="the coroutine was cancelled"):
        loop.run(cancel())
    assert loop.run(answer()) == 42


def test_a_soft_limit_cancels_the_coroutine_and_runs_its_cleanup() -> None:
    seen: list[str] = []

    async def clean_up() -> None:
        try:
            await hang()
        finally:
            await asyncio.sleep(0)
            seen.append("cleaned up")

    with pytest.raises(SoftTimeLimitExceeded):
        loop.run(clean_up(), soft_time_limit=0.05)
    assert seen == ["cleaned up"]
    assert loop.run(answer(), soft_time_limit=0.05) == 42


def test_running_a_coroutine_inside_a_running_loop_is_refused() -> None:
    async def wrong() -> None:
        loop.run(answer())

    with pytest.raises(RuntimeError, match="an event loop runs here already: await the coroutine"):
        asyncio.run(wrong())


def test_a_child_process_creates_its_own_loop() -> None:
    loop.run(answer())
    child = os.fork()
    if not child:
        os._exit(loop.run(answer()))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 42
    assert loop.run(answer()) == 42


# --- what belongs to a loop -------------------------------------------------------------------------------------------


def test_each_loop_has_its_own_object_and_closes_it() -> None:
    opened: list[str] = []

    async def manage() -> AsyncGenerator[list[int], None]:
        opened.append("open")
        try:
            yield []
        finally:
            opened.append("close")

    thing = PerLoop(manage)

    async def both() -> bool:
        return await thing.get() is await thing.get()

    assert asyncio.run(both())
    assert opened == ["open", "close"]
    assert loop.run(both())
    assert loop.run(both())
    assert opened == ["open", "close", "open"]
    loop.close_loops()
    assert opened == ["open", "close", "open", "close"]


# --- tasks ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def add(app: Celery) -> Iterator[Any]:
    @app.task(name="tests.add", bind=True)
    async def add(self: Any, x: int, y: int) -> list[object]:
        await asyncio.sleep(0)
        return [x + y, self.request.id]

    yield add
    del app.tasks["tests.add"]


def test_an_async_task_can_be_called(add: Any) -> None:
    assert add(1, 2) == [3, None]
    assert add.apply((1, 2), task_id="a").get() == [3, "a"]


def test_an_async_task_can_be_awaited_in_a_running_loop(add: Any) -> None:
    async def main() -> object:
        with pytest.raises(RuntimeError, match=r"of an async task, await \.call_async\(…\), or send it with"):
            add(1, 2)
        return await add.call_async(1, 2)

    assert asyncio.run(main()) == [3, None]


def test_a_plain_task_can_not_be_awaited(app: Celery) -> None:
    def body() -> None:
        """Do nothing."""

    plain: Any = app.task(name="tests.plain")(body)

    with pytest.raises(TypeError, match=r"^tests\.plain is no async task; call it$"):
        asyncio.run(plain.call_async())
    del app.tasks["tests.plain"]


def test_an_async_generator_is_refused(app: Celery) -> None:
    async def several() -> AsyncGenerator[int, None]:
        yield 1

    with pytest.raises(TypeError, match="several yields; a task is a coroutine that returns"):
        app.task(lazy=False)(several)
