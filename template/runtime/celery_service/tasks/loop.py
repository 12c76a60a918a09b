"""One event loop for each thread that executes tasks, kept from task to task: engines, pools and
clients that are opened in one task serve the next. A loop for each task, as `asyncio.run` makes it,
would open them anew every time; a loop in a thread of its own would hide `self.request` from tasks.
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

# By the identifier of the thread. A new thread may get that of one that has ended, and its runner.
_runners: dict[int, asyncio.Runner] = {}
_of_the_parent: dict[int, asyncio.Runner] = {}


def run(coroutine: Coroutine[Any, Any, T], soft_time_limit: float | None = None) -> T:
    """Run a coroutine on the loop of this thread, and leave no trace of it there.

    Args:
        coroutine: What to run.
        soft_time_limit: Seconds after which it is cancelled, where the pool can't say so by signal.

    Raises:
        SoftTimeLimitExceeded: The soft time limit has passed: the coroutine was cancelled, and its
            `finally` blocks ran.
        RuntimeError: This thread has a running loop already, or is green, or the coroutine was
            cancelled.
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
        # A CancelledError is no Exception: it would end the process instead of the task.
        raise RuntimeError("the coroutine was cancelled") from error
    finally:
        _cancel_all(loop)


@worker_process_shutdown.connect
@worker_shutdown.connect
def close_loops(**kwargs: object) -> None:
    """Close the loops of this process and what belongs to them. Not called when a process dies."""
    while _runners:
        _, runner = _runners.popitem()
        if not runner.get_loop().is_running():
            runner.close()


# For publishers and tests. The processes of a worker end without it.
atexit.register(close_loops)


def _leave_to_the_parent() -> None:
    # What was opened before a fork belongs to the parent. A loop that nobody refers to is closed,
    # and closing it here would take the parent's own pipe out of the epoll that both share.
    _of_the_parent.update(_runners)
    _runners.clear()


os.register_at_fork(after_in_child=_leave_to_the_parent)


def _refuse_in_green_threads(coroutine: Coroutine[Any, Any, object]) -> None:
    # They all run in one thread of the system, which has one running loop.
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
    """Cancel what still runs, and wait until it has ended: the next task must not meet it."""
    while tasks := asyncio.all_tasks(loop):
        for task in tasks:
            task.cancel()
        loop.run_until_complete(asyncio.wait(tasks))


@contextmanager
def _cancelled_by_soft_limit(
    loop: asyncio.AbstractEventLoop, task: asyncio.Task[Any], seconds: float | None
) -> Iterator[list[bool]]:
    """Cancel `task` at its soft time limit; the yielded list is then no longer empty."""
    exceeded: list[bool] = []

    def cancel(signum: int = 0, frame: FrameType | None = None) -> None:
        exceeded.append(True)
        if asyncio.current_task(loop) is task:
            # It computes or blocks. An exception between two steps would break the loop itself.
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
    """Tell whether this is a process of the prefork pool, which hears of soft limits by SIGUSR1."""
    if threading.current_thread() is not threading.main_thread():
        return False
    handler = signal.getsignal(signal.SIGUSR1)
    return getattr(handler, "__name__", "") == "soft_timeout_sighandler"
