"""Which spans are recorded."""

from typing import Any

from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult
from opentelemetry.trace import SpanKind, get_current_span


class Related(Sampler):
    """Drops requests to servers that belong to nothing, and leaves the rest to another sampler.

    Workers and clients ask Redis all the time, to renew leases for example. Each request would be
    a trace of its own. What happens within such a request is dropped as well.
    """

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler

    def should_sample(
        self,
        parent_context: Any,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        *rest: Any,
        **options: Any,
    ) -> SamplingResult:
        """Decide on a span."""
        parent = get_current_span(parent_context).get_span_context()
        in_dropped = parent.is_valid and not parent.is_remote and not parent.trace_flags.sampled
        if in_dropped or (kind is SpanKind.CLIENT and not parent.is_valid):
            return SamplingResult(Decision.DROP)
        return self._sampler.should_sample(parent_context, trace_id, name, kind, *rest, **options)

    def get_description(self) -> str:
        """Return its name."""
        return f"Related({self._sampler.get_description()})"
