"""Makes the application of a service."""

import asyncio
import contextlib
import signal
import threading
from collections.abc import AsyncGenerator, Collection, Iterable, Iterator
from importlib.metadata import PackageNotFoundError, version
from types import FrameType
from typing import Any

from celery import Celery
from fastapi import APIRouter, FastAPI
from starlette.types import ASGIApp

from celery_service.api import problems, routes
from celery_service.api.guard import Guard, is_probe
from celery_service.api.health import Health
from celery_service.api.keys import keys_of
from celery_service.api.openapi import document
from celery_service.api.ops import router as ops
from celery_service.api.pages import PAGES, router_of
from celery_service.api.service import Service, attach
from celery_service.api.settings import Settings
from celery_service.api.streams import Streams
from celery_service.api.tasks import AlreadySent, already_sent
from celery_service.api.threads import Batches, Threads
from celery_service.brokers.times import write_times
from celery_service.config.settings import read
from celery_service.observability.signals import api_started

V1 = "/api/v1"

#: Calls at the same time. Each thread may have a connection to the broker and one to Redis.
THREADS = 16


def create_app(
    celery: Celery,
    routers: Iterable[APIRouter] = (),
    *,
    title: str = "",
    description: str = "",
    parts: Collection[str] = (),
    pages: Collection[str] = tuple(PAGES),
) -> FastAPI:
    """Return the application of a service, with its own routes under `/api/v1`.

    Args:
        celery: The Celery application.
        routers: Routes of the service, such as those that send its tasks.
        title: The name of the service; by default, that of its package, such as "My Service".
        description: What it does.
        parts: What else belongs to its health: `"database"` and `"cache"`.
        pages: The pages of the library to serve.

    Raises:
        ConfigurationError: An `API_*` variable is invalid.
    """
    settings = read(Settings)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None, None]:
        api_started.send(sender=celery)
        service = _start(celery, settings, parts)
        attach(app, service)
        with _first_at_a_signal(service.streams.stop):
            yield
        service.streams.stop()
        for threads in (service.publisher, service.control, service.reader):
            threads.close()

    app = _Api(
        celery,
        settings,
        title=title or str(celery.main).replace("_", " ").title(),
        version=_version_of(celery),
        description=description,
        lifespan=lifespan,
        max_body_size=settings.max_body_bytes,
        # Spans of requests, where the service has traces.
        telemetry={"operation_spans": False, "exclude": is_probe},
        # Their pages load scripts from other hosts, which the policy forbids.
        docs_url=None,
        redoc_url=None,
    )
    problems.install(app)
    app.add_exception_handler(AlreadySent, already_sent)
    for router in (*routers, routes.tasks, ops, routes.health):
        app.include_router(router, prefix=V1)
    app.include_router(routes.health, include_in_schema=False)
    app.include_router(router_of(pages))
    return app


class _Api(FastAPI):
    def __init__(self, celery: Celery, settings: Settings, **options: Any) -> None:
        super().__init__(**options)
        self._celery = celery
        self._settings = settings

    def build_middleware_stack(self) -> ASGIApp:
        # Around everything, so that no response goes out without its headers.
        return Guard(super().build_middleware_stack(), self._celery, self._settings)

    def openapi(self) -> dict[str, Any]:
        if not self.openapi_schema:
            self.openapi_schema = document(self, needs_key=self._settings.secret is not None)
        return self.openapi_schema


def _version_of(celery: Celery) -> str:
    try:
        return version(str(celery.main))
    except PackageNotFoundError:
        return "0"


def _start(celery: Celery, settings: Settings, parts: Collection[str]) -> Service:
    # As a worker does it: tasks are known, and receivers of `on_after_configure` are called.
    celery.loader.import_default_modules()
    celery.finalize()
    write_times()
    control, reader = Threads("broker", THREADS // 2), Threads("result store", THREADS)
    keys = keys_of(celery)
    return Service(
        celery=celery,
        settings=settings,
        keys=keys,
        sent=Batches(reader, keys.add),
        publisher=Threads("broker", THREADS),
        control=control,
        reader=reader,
        streams=Streams(celery, settings.max_streams),
        health=Health(celery, control, reader, parts),
    )


@contextlib.contextmanager
def _first_at_a_signal(call: Any) -> Iterator[None]:
    """Call something in the event loop when a signal stops the server, before the server does.

    Servers wait for open requests before they end the lifespan, and streams are such requests.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # in a test
        return
    loop = asyncio.get_running_loop()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def stop(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(call)
        handler = before[signal.Signals(number)]
        if callable(handler):
            handler(number, frame)

    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
