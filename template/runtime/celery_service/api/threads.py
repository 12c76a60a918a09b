"""Calls to brokers and stores, in threads, so that the event loop never waits for them."""

import asyncio
import contextvars
from collections.abc import Callable
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
            raise Unavailable(f"The {self._server} doesn't answer.") from None
        except (OperationalError, RedisError, OSError) as error:
            raise Unavailable(f"The {self._server} can't be reached.") from error

    def close(self) -> None:
        """Take no more calls. Those that run come to their end."""
        self._executor.shutdown(wait=False, cancel_futures=True)
