"""The variables of OpenTelemetry that are checked here. Its SDK reads these, and others, itself.

https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/
"""

from importlib.metadata import entry_points
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    Field,
    PositiveFloat,
    PositiveInt,
    SecretStr,
    ValidationInfo,
    field_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

#: How long a process that ends waits for the collector, in seconds.
LIMIT = 2.0

Protocol = Literal["http/protobuf", "grpc"]

SAMPLERS = {
    f"{prefix}{name}"
    for prefix in ("", "parentbased_")
    for name in ("always_on", "always_off", "traceidratio")
}


def _is_url(value: str) -> str:
    url = urlsplit(value)
    if url.scheme not in {"http", "https"} or not url.hostname:
        raise ValueError("must be a URL such as http://localhost:4318")
    return value


def _is_sampler(value: str) -> str:
    allowed = SAMPLERS | _installed("opentelemetry_traces_sampler")
    if value not in allowed:
        raise ValueError(f"is {value!r}; it must be one of {', '.join(sorted(allowed))}")
    return value


def _has_pairs(value: str) -> str:
    if not all("=" in pair for pair in value.split(",") if pair.strip()):
        raise ValueError("must be pairs such as name=value,other=value")
    return value


def _has_secret_pairs(value: SecretStr) -> SecretStr:
    _has_pairs(value.get_secret_value())
    return value


Url = Annotated[str, AfterValidator(_is_url)]


class Settings(BaseSettings):
    """The `OTEL_*` variables."""

    model_config = SettingsConfigDict(env_prefix="OTEL_", env_ignore_empty=True, extra="ignore")

    #: Nothing is traced at all.
    sdk_disabled: bool = False
    #: The name of the service; the package's, unless this or `service.name` below is set.
    service_name: str | None = None
    #: Attributes of all spans, such as `deployment.environment.name=production`.
    resource_attributes: Annotated[str, AfterValidator(_has_pairs)] = ""

    #: Where the collector is. The path of the second one is complete, that of the first isn't.
    exporter_otlp_endpoint: Url | None = None
    exporter_otlp_traces_endpoint: Url | None = None
    #: Such as `authorization=Bearer%20…`.
    exporter_otlp_headers: Annotated[SecretStr, AfterValidator(_has_secret_pairs)] = SecretStr("")
    #: `grpc` needs the package opentelemetry-exporter-otlp-proto-grpc.
    exporter_otlp_protocol: Protocol = "http/protobuf"
    exporter_otlp_traces_protocol: Protocol | None = None
    #: Seconds for one batch of spans, with all retries.
    exporter_otlp_timeout: PositiveFloat = 10
    exporter_otlp_compression: Literal["none", "gzip", "deflate"] = "none"

    #: `otlp`, `console`, `none`, or a name that an installed package brings; several with commas.
    traces_exporter: str | None = None
    traces_sampler: Annotated[str, AfterValidator(_is_sampler)] = "parentbased_always_on"
    #: The share of traces that the samplers `traceidratio` take, from 0 to 1.
    traces_sampler_arg: str | None = None

    #: Milliseconds until ended spans are exported. OpenTelemetry has 5000. What a process that is
    #: killed has not exported is lost, so it is less here.
    bsp_schedule_delay: PositiveInt = 1000
    bsp_max_export_batch_size: PositiveInt = 512
    #: Spans that wait. When there are more, the oldest are lost.
    bsp_max_queue_size: PositiveInt = Field(default=2048, validate_default=True)

    @field_validator("traces_sampler_arg")
    @classmethod
    def _is_share(cls, value: str, info: ValidationInfo) -> str:
        if info.data.get("traces_sampler", "").endswith("traceidratio"):
            try:
                fits = 0 <= float(value) <= 1
            except ValueError:
                fits = False
            if not fits:
                raise ValueError(f"is {value!r}; it must be a number from 0 to 1")
        return value

    @field_validator("bsp_max_queue_size")
    @classmethod
    def _holds_a_batch(cls, value: int, info: ValidationInfo) -> int:
        if value < (batch := info.data.get("bsp_max_export_batch_size", 0)):
            raise ValueError(
                f"is {value}; it must be at least OTEL_BSP_MAX_EXPORT_BATCH_SIZE, {batch}"
            )
        return value

    @property
    def is_exporting(self) -> bool:
        """Whether anything is exported: a collector is named, or another exporter is chosen."""
        return bool(self.exporters)

    @property
    def exporters(self) -> tuple[str, ...]:
        """The names of exporters, as their packages register them."""
        has_endpoint = self.exporter_otlp_traces_endpoint or self.exporter_otlp_endpoint
        # OpenTelemetry would try localhost:4318.
        names = self.traces_exporter or ("otlp" if has_endpoint else "none")
        protocol = self.exporter_otlp_traces_protocol or self.exporter_otlp_protocol
        otlp = {"http/protobuf": "otlp_proto_http", "grpc": "otlp_proto_grpc"}[protocol]
        found = (otlp if name == "otlp" else name for name in map(str.strip, names.split(",")))
        return tuple(
            name
            for name in found
            if name not in {"", "none"} and (has_endpoint or not name.startswith("otlp"))
        )


def _installed(group: str) -> set[str]:
    return {entry_point.name for entry_point in entry_points(group=group)}
