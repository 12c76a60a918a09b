"""One event loop for each thread that executes tasks. The loop is kept from task to task, so that
tasks share engines, pools and clients.

With a loop for each task, as `asyncio.run` creates it, each task would have to open them again.
With a loop in a separate thread, tasks could not use `self.request`.
"""

import asyncio
import atexit
import os
import signal
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

from celery.exceptions import SoftTimeLimitExceeded
from celery.signals import worker_process_shutdown, worker_shutdown

from celery_service.lifecycle import green

T = TypeVar("T")

# By thread identifier. A new thread may get the identifier of a dead thread, and uses its runner.
_runners: dict[int, asyncio.Runner] = {}
_of_the_parent: dict[int, asyncio.Runner] = {}


def run(coroutine: Coroutine[Any, Any, T], soft_time_limit: float | None = None) -> T:
    """Run a coroutine on the loop of this thread. Cancel the asyncio tasks that it leaves behind.

    Args:
        coroutine: The coroutine.
        soft_time_limit: Seconds after which to cancel it, in pools that don't send a signal.

    Raises:
        SoftTimeLimitExceeded: The soft time limit has passed. The coroutine was cancelled, and its
            `finally` blocks ran.
        RuntimeError: A loop already runs in this thread, this is a green thread, or the coroutine
            was cancelled.
    """
    _refuse_in_green_threads(coroutine)
    _refuse_in_a_running_loop(coroutine)
    loop = _runners.setdefault(threading.get_ident(), asyncio.Runner()).get_loop()
    task = loop.create_task(coroutine)
    try:
        with _cancelled_by_soft_limit(loop, task, soft_time_limit) as exceeded:
            return loop.run_until_complete(task)
    except asyncio.CancelledError as error:
        if exceeded:
            raise SoftTimeLimitExceeded from None
        # A CancelledError isn't an Exception: it would end the process instead of the task.
        raise RuntimeError("the coroutine was cancelled") from error
    finally:
        _cancel_all(loop)


@worker_process_shutdown.connect
@worker_shutdown.connect
def close_loops(**kwargs: object) -> None:
    """Close the loops of this process and their resources. Not called if the process is killed."""
    while _runners:
        _, runner = _runners.popitem()
        if not runner.get_loop().is_running():
            runner.close()


# For publishers and tests. The processes of a worker don't run exit handlers.
atexit.register(close_loops)


def _leave_to_the_parent() -> None:
    # Loops that were opened before a fork belong to the parent. Keep a reference: otherwise Python
    # closes them here, which removes the parent's pipe from the epoll that both processes share.
    _of_the_parent.update(_runners)
    _runners.clear()


os.register_at_fork(after_in_child=_leave_to_the_parent)


def _refuse_in_green_threads(coroutine: Coroutine[Any, Any, object]) -> None:
    # All green threads run in one system thread, which can have only one running loop.
    if green.is_green():
        coroutine.close()
        raise RuntimeError(
            "no event loop runs with gevent or eventlet: async code and `.sync` of a cache need "
            "--pool=prefork, threads or solo"
        )


def _refuse_in_a_running_loop(coroutine: Coroutine[Any, Any, object]) -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    coroutine.close()
    raise RuntimeError(
        "an event loop runs here already: await the coroutine; of an async task, "
        "await .call_async(…), or send it with .delay(…)"
    )


def _cancel_all(loop: asyncio.AbstractEventLoop) -> None:
    """Cancel asyncio tasks that still run, and wait until they end, before the next task starts."""
    while tasks := asyncio.all_tasks(loop):
        for task in tasks:
            task.cancel()
        loop.run_until_complete(asyncio.wait(tasks))


@contextmanager
def _cancelled_by_soft_limit(
    loop: asyncio.AbstractEventLoop, task: asyncio.Task[Any], seconds: float | None
) -> Iterator[list[bool]]:
    """Cancel `task` at its soft time limit. The yielded list then has an item."""
    exceeded: list[bool] = []

    def cancel(signum: int = 0, frame: FrameType | None = None) -> None:
        exceeded.append(True)
        if asyncio.current_task(loop) is task:
            # The task computes or blocks, so raise here. Between two steps of a task, an exception
            # would break the loop itself.
            raise asyncio.CancelledError
        loop.call_soon_threadsafe(task.cancel)

    if _has_signal():
        before = signal.signal(signal.SIGUSR1, cancel)
        try:
            yield exceeded
        finally:
            signal.signal(signal.SIGUSR1, before)
    elif seconds is not None:
        timer = loop.call_later(seconds, cancel)
        try:
            yield exceeded
        finally:
            timer.cancel()
    else:
        yield exceeded


def _has_signal() -> bool:
    """Tell whether this is a process of the prefork pool, which gets soft limits by SIGUSR1."""
    if threading.current_thread() is not threading.main_thread():
        return False
    handler = signal.getsignal(signal.SIGUSR1)
    return getattr(handler, "__name__", "") == "soft_timeout_sighandler"
