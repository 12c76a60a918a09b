"""Traces: one of them leads over a request or a publisher, its tasks, and what these do.

It is off unless `OTEL_EXPORTER_OTLP_ENDPOINT` (or `OTEL_TRACES_EXPORTER=console`) is set. Then:

- Publishing a task and running it are spans (spans.py), and so is what the instrumentations that
  are installed know of: SQL, Redis, HTTP.
- Each process exports its own spans (export.py), whatever forks it and however it ends.
- Log lines have `trace_id` and `span_id`.

A process that has a `TracerProvider` of its own keeps it, for example a web process that
`opentelemetry-instrument` has started.
"""

from celery import Celery

from celery_service.config.settings import read
from celery_service.monitoring.opentelemetry import spans
from celery_service.monitoring.opentelemetry.provider import Provider
from celery_service.monitoring.opentelemetry.settings import Settings
from celery_service.observability.logging import add_processor


def install(app: Celery) -> None:
    """Trace what `app` publishes and runs.

    Raises:
        ConfigurationError: An `OTEL_*` variable can't be used.
    """
    settings = read(Settings)
    if settings.sdk_disabled:
        return
    provider = Provider(app, settings)
    if settings.is_exporting:
        provider.prepare()
    spans.install(app, provider.start)
    provider.install()
    add_processor(spans.add_ids)
