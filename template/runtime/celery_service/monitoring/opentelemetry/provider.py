"""The tracer provider of a process, and the instrumentations of libraries.

The provider is set as late as possible: when a worker or beat starts, or before the first publish
of any other process. Until then the process can set one of its own.
"""

import contextlib
import os
import threading
from collections.abc import Iterator
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points, version
from typing import Any

import structlog
from celery import Celery
from celery.signals import beat_init, worker_init, worker_process_shutdown, worker_shutdown
from opentelemetry import trace

from celery_service.config.settings import ConfigurationError
from celery_service.monitoring.opentelemetry.settings import LIMIT, Settings

#: Instrumentations that aren't loaded: spans.py does what this one does.
NOT_LOADED = {"celery"}
#: It names SQLAlchemy 2.0 as the newest one that it can; our tests run it on 2.1.
NOT_CHECKED = {"sqlalchemy"}

logger = structlog.get_logger(__name__)


def is_set() -> bool:
    """Tell whether this process has a provider, ours or another."""
    return not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)


class Provider:
    """Sets the provider, once."""

    def __init__(self, app: Celery, settings: Settings) -> None:
        self._app = app
        self._settings = settings
        self._lock = threading.Lock()
        self._is_started = not settings.is_exporting
        self._export: Any = None

    def prepare(self) -> None:
        """Import the exporters and instrument libraries, before processes are forked.

        Raises:
            ConfigurationError: An exporter can't be made.
        """
        for exporter in self._exporters():
            exporter.shutdown()
        if not is_set():
            # A process with another provider has chosen what it instruments.
            _instrument()

    def install(self) -> None:
        """Start when a worker or beat starts, and export what is left when processes end."""

        def start(sender: Any, **kwargs: object) -> None:
            if sender.app is self._app:
                self.start()

        worker_init.connect(start, weak=False)
        beat_init.connect(start, weak=False)
        worker_process_shutdown.connect(self._close, weak=False)
        worker_shutdown.connect(self._close, weak=False)

    def start(self) -> None:
        """Set the provider, unless there is one."""
        if self._is_started:
            return
        with self._lock:
            if not self._is_started:
                self._is_started = True
                if not is_set():
                    self._set()

    def _set(self) -> None:
        # Imported here: a process without a collector doesn't need the SDK.
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider

        from celery_service.monitoring.opentelemetry.export import Collector, Export
        from celery_service.monitoring.opentelemetry.sampling import Related

        collector = Collector()
        collector.listen()
        self._export = Export(
            self._exporters, collector, delay_milliseconds=self._settings.bsp_schedule_delay
        )
        # `shutdown_on_exit` has no limit: Export closes itself.
        provider = TracerProvider(
            resource=Resource.create(self._attributes()), shutdown_on_exit=False
        )
        provider.sampler = Related(provider.sampler)
        provider.add_span_processor(self._export)
        trace.set_tracer_provider(provider)

    def _attributes(self) -> dict[str, str]:
        """Return the attributes of the service that the variables don't have."""
        pairs = self._settings.resource_attributes.split(",")
        given = {pair.partition("=")[0].strip() for pair in pairs}
        if self._settings.service_name:
            given.add("service.name")
        name = str(self._app.main or "celery")
        found = {"service.name": name}
        with contextlib.suppress(PackageNotFoundError):
            found["service.version"] = version(name)
        return {name: value for name, value in found.items() if name not in given}

    def _exporters(self) -> Iterator[Any]:
        for name in self._settings.exporters:
            (entry_point,) = list(entry_points(group="opentelemetry_traces_exporter", name=name))[
                :1
            ]
            try:
                yield entry_point.load()()
            except Exception as error:  # whatever a variable makes of it
                raise ConfigurationError(
                    f"OTEL_ variables: the exporter {name} can't be used: {error}."
                ) from None

    def _close(self, **_: object) -> None:
        if self._export:
            self._export.close()
            return
        flush = getattr(trace.get_tracer_provider(), "force_flush", None)
        if flush:
            # In a thread, since it may take longer than told.
            thread = threading.Thread(target=flush, daemon=True)
            thread.start()
            thread.join(LIMIT)


def _instrument() -> None:
    """Load the instrumentations that are installed, as `opentelemetry-instrument` does."""
    disabled = os.environ.get("OTEL_PYTHON_DISABLED_INSTRUMENTATIONS", "").split(",")
    without = NOT_LOADED | set(map(str.strip, disabled))
    if "*" in without:
        return
    for entry_point in entry_points(group="opentelemetry_instrumentor"):
        if entry_point.name not in without:
            _load(entry_point)


def _load(entry_point: EntryPoint) -> None:
    from opentelemetry.instrumentation.dependencies import get_dist_dependency_conflicts

    conflict = entry_point.dist and get_dist_dependency_conflicts(entry_point.dist)
    if conflict and not (conflict.found or conflict.found_any):
        return  # what it instruments isn't installed
    if conflict and entry_point.name not in NOT_CHECKED:
        logger.warning("not_instrumented", library=entry_point.name, reason=str(conflict))
        return
    try:
        instrumentor = entry_point.load()()
        if not instrumentor.is_instrumented_by_opentelemetry:
            instrumentor.instrument(skip_dep_check=True)
    except Exception as error:  # the service runs without it
        logger.warning("not_instrumented", library=entry_point.name, reason=str(error))
