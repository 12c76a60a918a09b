"""Whether the servers of the service answer, and which workers run. Answers are kept a while."""

import asyncio
import time
from collections.abc import Awaitable, Collection
from typing import Any, Literal

from celery import Celery
from pydantic import BaseModel, Field

from celery_service.api.checks import CHECKS, OPTIONAL
from celery_service.api.problems import Unavailable
from celery_service.api.threads import LIMIT, Threads
from celery_service.dead_letters.store import redis_of

#: Seconds that an answer is kept, so that requests can't load the broker and the workers.
KEEP = 5.0
#: Seconds that workers get to answer.
WAIT = 1.0
#: Seconds until their answers are given up. The broker of `make dev` is slow.
PATIENCE = 2.7

Status = Literal["healthy", "degraded", "unhealthy"]


class Component(BaseModel):
    """A server."""

    status: Status
    error: str | None = None


class Workers(Component):
    """The workers that answer, and how many tasks they run."""

    workers_count: int = 0
    active_tasks: int = 0
    workers: list[str] = []
    #: Tasks of each worker, for `/ops`.
    active: dict[str, int] = Field(default_factory=dict, exclude=True)


class Components(BaseModel):
    """The parts of the service."""

    celery: Workers
    broker: Component
    results: Component
    database: Component | None = None
    cache: Component | None = None


class Report(BaseModel):
    """The health of the service."""

    status: Status
    components: Components


class Health:
    """Asks, and keeps the answers."""

    def __init__(
        self, app: Celery, control: Threads, reader: Threads, parts: Collection[str]
    ) -> None:
        self._app = app
        self._control = control
        self._reader = reader
        self._checks = {name: CHECKS[name] for name in parts}
        self._lock = asyncio.Lock()
        self._until = 0.0
        self._report: Report | None = None

    async def report(self) -> Report:
        """Return the health. One of several callers at the same time asks."""
        async with self._lock:
            if self._report is None or time.monotonic() > self._until:
                self._report = await self._ask()
                self._until = time.monotonic() + KEEP
            return self._report

    async def _ask(self) -> Report:
        names = ("celery", "broker", "results", *self._checks)
        checks = [
            self._workers(),
            _component(self._control.run(self._ask_broker)),
            _component(self._reader.run(self._ask_results)),
            *(
                _component(_limited(check()), optional=name in OPTIONAL)
                for name, check in self._checks.items()
            ),
        ]
        found: dict[str, Any] = dict(zip(names, await asyncio.gather(*checks), strict=True))
        if found["celery"].status == "unhealthy" and found["broker"].status == "healthy":
            found["celery"].status = "degraded"  # the workers are slow, or there are none
        states = {each.status for each in found.values()}
        worst: Status = "healthy"
        if "unhealthy" in states:
            worst = "unhealthy"
        elif "degraded" in states:
            worst = "degraded"
        return Report(status=worst, components=Components(**found))

    async def _workers(self) -> Component:
        try:
            answers = await self._control.run(self._ask_workers, limit=PATIENCE)
        except Unavailable as error:
            return Workers(status="unhealthy", error=str(error))
        found = Workers(
            status="healthy" if answers else "degraded",
            workers_count=len(answers),
            active_tasks=sum(map(len, answers.values())),
            workers=sorted(answers),
            active={name: len(answers[name]) for name in sorted(answers)},
        )
        if not answers:
            found.error = "No worker answers."
        return found

    # --- in threads ---

    def _ask_workers(self) -> dict[str, list[Any]]:
        return self._app.control.inspect(timeout=WAIT).active() or {}

    def _ask_broker(self) -> None:
        with self._app.connection_for_read() as connection:
            connection.ensure_connection(max_retries=1, interval_start=0, timeout=2)
            connection.default_channel  # noqa: B018

    def _ask_results(self) -> None:
        client = redis_of(self._app)
        if client is not None:
            client.ping()


async def _component(check: Awaitable[object], *, optional: bool = False) -> Component:
    status: Status = "degraded" if optional else "unhealthy"
    try:
        await check
    except Unavailable as error:
        return Component(status=status, error=str(error))
    except Exception as error:
        # The text of an error may name hosts and users.
        return Component(status=status, error=type(error).__name__)
    return Component(status="healthy")


async def _limited(check: Awaitable[object]) -> None:
    try:
        async with asyncio.timeout(LIMIT):
            await check
    except TimeoutError:
        raise Unavailable("It doesn't answer.") from None
