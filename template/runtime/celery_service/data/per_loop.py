"""What belongs to an event loop, such as a connection pool: one for each loop."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary

T = TypeVar("T")


class PerLoop(Generic[T]):
    """Something of which each event loop has one.

    `manage` is an async generator function that opens it, yields it once, and closes it. It must
    not await anything before it yields: two tasks may ask at the same time. It closes when the loop
    does, whoever made the loop: `asyncio.run` as well as `celery_service.tasks.loop`.
    """

    def __init__(self, manage: Callable[[], AsyncGenerator[T, None]]) -> None:
        self._manage = manage
        self._opened: WeakKeyDictionary[
            asyncio.AbstractEventLoop, tuple[AsyncGenerator[T, None], T]
        ] = WeakKeyDictionary()

    async def get(self) -> T:
        """Return the one that belongs to the running loop; open it first if need be."""
        loop = asyncio.get_running_loop()
        if loop not in self._opened:
            # A loop that is closed in order ends the generators that are suspended in it:
            # https://docs.python.org/3/library/asyncio-eventloop.html#asyncio.loop.shutdown_asyncgens
            generator = self._manage()
            self._opened[loop] = generator, await anext(generator)
        return self._opened[loop][1]
