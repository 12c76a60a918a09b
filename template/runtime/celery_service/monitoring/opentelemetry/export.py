"""Exports spans: each process its own, from a thread that starts with its first span.

A thread doesn't survive a fork, so the processes of the pool, which are forked and replaced, and
those of a web server each start one. When a process ends, it waits a moment for the collector.
"""

import atexit
import logging
import mmap
import os
import struct
import threading
import time
from collections.abc import Callable, Iterable, Sequence

import structlog
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from celery_service.monitoring.opentelemetry.settings import LIMIT

#: Seconds from one line about a collector that is away to the next, of all processes of a worker.
#: For as long, processes that end don't wait for it.
SILENCE = 60.0

#: What the packages of OpenTelemetry say of exports, once for each attempt in each process.
LOGGERS = ("opentelemetry.exporter", "opentelemetry.sdk._shared_internal")

logger = structlog.get_logger(__name__)


class Collector(logging.Handler):
    """What a process and those that it forks know of the collector.

    It is the handler of the loggers of OpenTelemetry, because exporters tell their errors only
    there.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        # Two times: of the last error, and of the last line. Forks share this memory.
        self._memory = mmap.mmap(-1, 16)

    def emit(self, record: logging.LogRecord) -> None:
        """Take an error of an exporter."""
        self.failed(record.getMessage())

    def failed(self, reason: str) -> None:
        """Note an error, and log it unless one was logged in the last minute."""
        now = time.monotonic()
        _, said = self._times()
        is_new = not said or now - said > SILENCE
        struct.pack_into("dd", self._memory, 0, now, now if is_new else said)
        if is_new:
            logger.warning("spans_not_exported", reason=reason)

    def works(self) -> None:
        """Note a success."""
        _, said = self._times()
        struct.pack_into("dd", self._memory, 0, 0.0, said)

    @property
    def is_away(self) -> bool:
        """Whether the last export has failed, a short time ago."""
        failed, _ = self._times()
        return bool(failed) and time.monotonic() - failed < SILENCE

    def listen(self) -> None:
        """Handle what OpenTelemetry logs of exports, instead of the handlers of the process."""
        for name in LOGGERS:
            its_logger = logging.getLogger(name)
            its_logger.addHandler(self)
            its_logger.propagate = False

    def _times(self) -> tuple[float, float]:
        failed, said = struct.unpack_from("dd", self._memory)
        return failed, said


class _Exporters(SpanExporter):
    """Exports to each of the exporters, and notes how it went."""

    def __init__(self, exporters: Iterable[SpanExporter], collector: Collector) -> None:
        self._exporters = tuple(exporters)
        self._collector = collector

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        results = {exporter.export(spans) for exporter in self._exporters}
        if results == {SpanExportResult.SUCCESS}:
            self._collector.works()
            return SpanExportResult.SUCCESS
        return SpanExportResult.FAILURE

    def shutdown(self) -> None:
        for exporter in self._exporters:
            exporter.shutdown()


class Export(SpanProcessor):
    """Exports the spans that end in this process."""

    def __init__(
        self,
        exporters: Iterable[Callable[[], SpanExporter]],
        collector: Collector,
        *,
        delay_milliseconds: int,
    ) -> None:
        self._exporters = exporters
        self._collector = collector
        self._delay = delay_milliseconds
        self._forget()
        os.register_at_fork(after_in_child=self._forget)
        # Not called in the processes of a pool.
        atexit.register(self.close)

    def _forget(self) -> None:
        """Begin without a thread, and without spans of the parent."""
        self._batches: BatchSpanProcessor | None = None
        self._is_closed = False
        self._lock = threading.Lock()

    def on_end(self, span: ReadableSpan) -> None:
        """Take a span."""
        if span.context and span.context.trace_flags.sampled and not self._is_closed:
            (self._batches or self._start()).on_end(span)

    def _start(self) -> BatchSpanProcessor:
        with self._lock:
            if self._batches is None:
                exporters = _Exporters((make() for make in self._exporters), self._collector)
                self._batches = BatchSpanProcessor(exporters, schedule_delay_millis=self._delay)
            return self._batches

    def force_flush(self, timeout_millis: int = int(LIMIT * 1000)) -> bool:
        """Export what is there. OpenTelemetry doesn't keep to the limit: `close` does."""
        return self._batches is None or self._batches.force_flush(timeout_millis)

    def shutdown(self) -> None:
        """Export what is there, and end."""
        self.close()

    def close(self, seconds: float = LIMIT) -> None:
        """Export what is there within so many seconds, and nothing from then on."""
        self._is_closed = True
        if self._batches is None:
            return
        # `BatchSpanProcessor.shutdown` takes up to 30 seconds, and what it calls takes a limit:
        # https://github.com/open-telemetry/opentelemetry-python/issues/4568
        batches = self._batches._batch_processor
        begin = time.monotonic()
        batches.shutdown(timeout_millis=0 if self._collector.is_away else int(seconds * 1000))
        if time.monotonic() - begin >= seconds:
            self._collector.failed(f"the collector has not answered within {seconds:g} s")
        self._batches = None
