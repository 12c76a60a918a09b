"""The parts of tracing that need no collector."""

import logging
import re
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from celery import Celery
from celery_service.config.settings import ConfigurationError, read
from celery_service.monitoring.opentelemetry import export
from celery_service.monitoring.opentelemetry.export import Collector
from celery_service.monitoring.opentelemetry.provider import Provider
from celery_service.monitoring.opentelemetry.sampling import Related
from celery_service.monitoring.opentelemetry.settings import Settings
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import SpanKind

ENDPOINT = "http://collector:4318"


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"OTEL_{name.upper()}", raising=False)


@pytest.mark.parametrize(
    ("variables", "exporters"),
    [
        ({}, ()),
        ({"OTEL_SERVICE_NAME": "any"}, ()),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, ()),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, ()),
        ({"OTEL_TRACES_EXPORTER": "console"}, ("console",)),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ENDPOINT}, ("otlp_proto_http",)),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{ENDPOINT}/v1/traces"}, ("otlp_proto_http",)),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ENDPOINT, "OTEL_TRACES_EXPORTER": "none"}, ()),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": ENDPOINT, "OTEL_TRACES_EXPORTER": "otlp, console"},
            ("otlp_proto_http", "console"),
        ),
    ],
)
def test_nothing_is_exported_unless_a_collector_is_named(
    variables: dict[str, str], exporters: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert read(Settings).exporters == exporters


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        (
            "OTEL_EXPORTER_OTLP_ENDPOINT",
            "collector:4318",
            "OTEL_EXPORTER_OTLP_ENDPOINT must be a URL such as http://localhost:4318.",
        ),
        (
            "OTEL_EXPORTER_OTLP_PROTOCOL",
            "http/json",
            "OTEL_EXPORTER_OTLP_PROTOCOL is 'http/json'; it must be 'http/protobuf' or 'grpc'.",
        ),
        (
            "OTEL_EXPORTER_OTLP_TIMEOUT",
            "soon",
            "OTEL_EXPORTER_OTLP_TIMEOUT is 'soon'; it must be a valid number.",
        ),
        (
            "OTEL_EXPORTER_OTLP_HEADERS",
            "Bearer 12345",
            "OTEL_EXPORTER_OTLP_HEADERS must be pairs such as name=value,other=value.",
        ),
        (
            "OTEL_TRACES_SAMPLER",
            "sometimes",
            "OTEL_TRACES_SAMPLER is 'sometimes'; it must be one of always_off, always_on, parentbased_",
        ),
        (
            "OTEL_BSP_SCHEDULE_DELAY",
            "0",
            "OTEL_BSP_SCHEDULE_DELAY is '0'; it must be greater than 0.",
        ),
    ],
)
def test_a_variable_that_is_wrong_is_one_line(
    name: str, value: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError) as error:
        read(Settings)
    assert str(error.value).startswith(told)
    assert "12345" not in str(error.value)


def test_wrong_combinations_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "2")
    with pytest.raises(
        ConfigurationError, match=r"^OTEL_TRACES_SAMPLER_ARG is '2'; it must be a number from 0 to 1\.$"
    ):
        read(Settings)
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0.1")
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "100")
    told = "OTEL_BSP_MAX_QUEUE_SIZE is 100; it must be at least OTEL_BSP_MAX_EXPORT_BATCH_SIZE, 512."
    with pytest.raises(ConfigurationError, match=f"^{re.escape(told)}$"):
        read(Settings)


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        (
            {"OTEL_TRACES_EXPORTER": "zipkin"},
            "No installed package has the exporter zipkin, which OTEL_TRACES_EXPORTER or",
        ),
        (
            {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
            "No installed package has the exporter otlp_proto_grpc, which",
        ),
    ],
)
def test_an_exporter_that_can_not_be_used_is_one_line(
    variables: dict[str, str], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in ({"OTEL_EXPORTER_OTLP_ENDPOINT": ENDPOINT} | variables).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError) as error:
        Provider(Celery("any"), read(Settings)).prepare()
    assert str(error.value).startswith(told)
    assert "\n" not in str(error.value)


def test_requests_to_servers_are_recorded_only_within_a_trace() -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider(sampler=Related(ALWAYS_ON))
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("test")
    with tracer.start_as_current_span("noise", kind=SpanKind.CLIENT), tracer.start_as_current_span("in noise"):
        pass
    with tracer.start_as_current_span("root"), tracer.start_as_current_span("query", kind=SpanKind.CLIENT):
        pass
    assert [span.name for span in exporter.get_finished_spans()] == ["query", "root"]


@pytest.fixture
def heard() -> Iterator[list[Any]]:
    with structlog.testing.capture_logs() as lines:
        yield lines


def test_a_collector_that_is_away_is_one_line_a_minute(heard: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "logger", structlog.get_logger())
    collector = Collector()
    its_logger = logging.Logger("opentelemetry.exporter.any")
    its_logger.addHandler(collector)
    assert not collector.is_away
    for _ in range(3):
        its_logger.warning("Transient error %s", "refused")
    assert collector.is_away
    assert [line["reason"] for line in heard] == ["Transient error refused"]
    collector.works()
    assert not collector.is_away
