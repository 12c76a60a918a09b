"""A collector: what a service exports its spans to, by OTLP over HTTP."""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from support.http import QuietHandler
from support.servers import HOST, wait_until

KINDS = {1: "internal", 2: "server", 3: "client", 4: "producer", 5: "consumer"}


@dataclass(frozen=True, kw_only=True)
class Span:
    """A span that has arrived."""

    name: str
    kind: str
    trace: str
    id: str
    parent: str
    error: str | None
    attributes: Mapping[str, Any]
    #: Of the exporting process.
    resource: Mapping[str, Any]
    events: tuple[Mapping[str, Any], ...]


class Collector:
    """Keeps the spans. For any GET, it answers, too, and keeps the headers."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.spans: list[Span] = []
        self.asked: list[dict[str, str]] = []

    @property
    def variables(self) -> dict[str, str]:
        """The environment of a service that exports to it."""
        return {"OTEL_EXPORTER_OTLP_ENDPOINT": self.url}

    def named(self, name: str) -> list[Span]:
        """Give the spans of a name."""
        return [span for span in self.spans if span.name == name]

    def wait_for(self, name: str, wanted: Callable[[Span], bool] = lambda _: True, seconds: float = 60) -> Span:
        """Wait for a span of a name."""
        try:
            found: Span = wait_until(
                lambda: next((span for span in self.named(name) if wanted(span)), None), seconds, f"a span {name}"
            )
        except TimeoutError as error:
            raise TimeoutError(f"{error}, among {[span.name for span in self.spans]}") from None
        return found

    def parent_of(self, span: Span) -> Span | None:
        """Give the span that it is a part of, if it has arrived."""
        return next((each for each in self.spans if each.id == span.parent), None)

    def path_of(self, span: Span) -> list[str]:
        """Give the names from the root of its trace to it."""
        parent = self.parent_of(span)
        return [*(self.path_of(parent) if parent else []), span.name]

    def take(self, body: bytes) -> None:
        """Keep the spans of a request."""
        for of_a_process in ExportTraceServiceRequest.FromString(body).resource_spans:
            resource = _plain(of_a_process.resource.attributes)
            for scope in of_a_process.scope_spans:
                self.spans += [
                    Span(
                        name=span.name,
                        kind=KINDS[span.kind],
                        trace=span.trace_id.hex(),
                        id=span.span_id.hex(),
                        parent=span.parent_span_id.hex(),
                        error=span.status.message if span.status.code == 2 else None,
                        attributes=_plain(span.attributes),
                        resource=resource,
                        events=tuple(_plain(event.attributes) for event in span.events),
                    )
                    for span in scope.spans
                ]


def _plain(attributes: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}


@contextmanager
def start_collector() -> Iterator[Collector]:
    """Start a collector on a free port."""

    class Handler(QuietHandler):
        def do_POST(self) -> None:
            collector.take(self.body())
            self.answer()

        def do_GET(self) -> None:
            collector.asked.append({name.lower(): value for name, value in self.headers.items()})
            self.answer()

    with ThreadingHTTPServer((HOST, 0), Handler) as server:
        server.daemon_threads = True
        collector = Collector(f"http://{HOST}:{server.server_port}")
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield collector
        finally:
            server.shutdown()
