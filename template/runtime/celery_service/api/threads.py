"""Calls to brokers and stores, in threads, so that the event loop never waits for them."""

import asyncio
import contextvars
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from celery_service.api.problems import Unavailable

T = TypeVar("T")

#: Seconds that a request waits for a server: clients get an answer within three seconds.
LIMIT = 2.0


class Threads:
    """Threads that call a server.

    During an outage, a call waits for a thread no longer than for the server, and then never runs.

    Args:
        server: The name of the server, for clients.
        count: How many calls run at the same time.
    """

    def __init__(self, server: str, count: int) -> None:
        self._server = server
        self._executor = ThreadPoolExecutor(count, thread_name_prefix=server.replace(" ", "-"))

    async def run(
        self, function: Callable[..., T], *args: Any, limit: float = LIMIT, **kwargs: Any
    ) -> T:
        """Call a function.

        Raises:
            Unavailable: The server can't be reached, or doesn't answer in time. The call may still
                succeed after that.
        """
        context = contextvars.copy_context()
        call = partial(context.run, partial(function, *args, **kwargs))
        future = asyncio.get_running_loop().run_in_executor(self._executor, call)
        try:
            async with asyncio.timeout(limit):
                return await future
        except TimeoutError:
            raise self.no_answer() from None
        except (OperationalError, RedisError, OSError) as error:
            raise Unavailable(f"The {self._server} can't be reached.") from error

    def no_answer(self) -> Unavailable:
        """Return the error of a call that takes too long."""
        return Unavailable(f"The {self._server} doesn't answer.")

    def close(self) -> None:
        """Take no more calls. Those that run come to their end."""
        self._executor.shutdown(wait=False, cancel_futures=True)


class Batches:
    """Calls a function with a list of items: all that requests bring while it runs.

    With many requests at a time, a call for each would cost more than the rest of the request.
    """

    def __init__(self, threads: Threads, function: Callable[[Sequence[str]], object]) -> None:
        self._threads = threads
        self._function = function
        self._items: list[str] = []
        self._next: asyncio.Task[None] | None = None
        self._one_at_a_time = asyncio.Lock()

    async def add(self, item: str) -> None:
        """Have the function called with this item, and wait for it.

        Raises:
            Unavailable: As `Threads.run` does.
        """
        self._items.append(item)
        if self._next is None:
            self._next = asyncio.create_task(self._call())
        try:
            async with asyncio.timeout(LIMIT):
                # Others wait for the same call.
                await asyncio.shield(self._next)
        except TimeoutError:
            raise self._threads.no_answer() from None

    async def _call(self) -> None:
        async with self._one_at_a_time:
            items, self._items, self._next = self._items, [], None
            await self._threads.run(self._function, items)
