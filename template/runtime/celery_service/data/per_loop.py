"""Objects that belong to an event loop, such as a connection pool."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary

T = TypeVar("T")


class PerLoop(Generic[T]):
    """An object for each event loop.

    `manage` is an async generator function that opens the object, yields it once, and closes it. It
    must not await anything before it yields, because two tasks may call `get` at the same time. The
    object is closed when its loop is closed, by `asyncio.run` or by `celery_service.tasks.loop`.
    """

    def __init__(self, manage: Callable[[], AsyncGenerator[T, None]]) -> None:
        self._manage = manage
        self._opened: WeakKeyDictionary[
            asyncio.AbstractEventLoop, tuple[AsyncGenerator[T, None], T]
        ] = WeakKeyDictionary()

    async def get(self) -> T:
        """Return the object of the running loop. Open it first if necessary."""
        loop = asyncio.get_running_loop()
        if loop not in self._opened:
            # `shutdown_asyncgens` of the loop closes suspended generators:
            # https://docs.python.org/3/library/asyncio-eventloop.html#asyncio.loop.shutdown_asyncgens
            generator = self._manage()
            self._opened[loop] = generator, await anext(generator)
        return self._opened[loop][1]
