"""The tracer provider of a process.

The provider is set as late as possible: when a worker, beat or the API starts, or before the first
publish of any other process. Until then the process can set one of its own.
"""

import contextlib
import threading
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, entry_points, version
from typing import TYPE_CHECKING, Any

from celery import Celery
from celery.signals import beat_init, worker_init, worker_process_shutdown, worker_shutdown
from opentelemetry import trace

from celery_service.config.settings import ConfigurationError
from celery_service.monitoring.opentelemetry import libraries
from celery_service.monitoring.opentelemetry.settings import LIMIT, Settings
from celery_service.observability.signals import api_started

if TYPE_CHECKING:
    # Imported late: a process without a collector doesn't need the SDK.
    from opentelemetry.sdk.trace.export import SpanExporter

    from celery_service.monitoring.opentelemetry.export import Export


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
        self._exporters: list[Callable[[], SpanExporter]] = []
        self._export: Export | None = None

    def prepare(self) -> None:
        """Import the exporters and instrument libraries, before processes are forked.

        Raises:
            ConfigurationError: An exporter can't be made.
        """
        known = {each.name: each for each in entry_points(group="opentelemetry_traces_exporter")}
        for name in self._settings.exporters:
            if name not in known:
                raise ConfigurationError(
                    f"No installed package has the exporter {name}, which OTEL_TRACES_EXPORTER or "
                    f"OTEL_EXPORTER_OTLP_PROTOCOL chooses; there are {', '.join(sorted(known))}."
                )
            try:
                exporter = known[name].load()
                exporter().shutdown()
            except Exception as error:  # whatever another variable makes of it
                raise ConfigurationError(
                    f"The exporter {name} can't be used with these OTEL_* variables: {error}."
                ) from None
            self._exporters.append(exporter)
        if not is_set():
            # A process with another provider has chosen what it instruments.
            libraries.instrument()

    def install(self) -> None:
        """Start when a worker, beat or the API starts, and export what is left when they end."""

        def start(sender: Any, **kwargs: object) -> None:
            if getattr(sender, "app", sender) is self._app:
                self.start()

        worker_init.connect(start, weak=False)
        beat_init.connect(start, weak=False)
        api_started.connect(start, weak=False)
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
