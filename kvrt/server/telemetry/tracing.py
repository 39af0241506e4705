"""A span of OpenTelemetry for each request that asked the model, by OTLP over HTTP.

Where they go, and under whose name, is in the usual variables: ``OTEL_EXPORTER_OTLP_ENDPOINT``,
``OTEL_SERVICE_NAME`` and so on. Names are those of the conventions for generative AI; nothing that
was said is among them. Needs the extra ``otel``.
"""

import threading
from typing import Any

from kvrt.errors import ConfigError
from kvrt.server.entry import Entry

OPERATIONS = {"/v1/completions": "text_completion", "/api/generate": "text_completion"}
"""By route; all others are a ``chat``."""

FLUSH_S = 3.0
NANOSECONDS = 10**9


class Tracing:
    """Tells a collector of requests that have ended; a thread sends them.

    Raises:
        ConfigError: the extra is not installed.
    """

    def __init__(self) -> None:
        try:
            from opentelemetry import trace
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError:
            raise ConfigError(
                "traces need what is not installed: opentelemetry", fix="pip install 'kvrt[otel]'"
            ) from None
        resource = Resource.create()
        if str(resource.attributes["service.name"]).startswith("unknown_service"):
            resource = resource.merge(Resource({"service.name": "kvrt"}))
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("kvrt")
        self._contexts = TraceContextTextMapPropagator()
        self._trace = trace

    def add(self, entry: Entry) -> None:
        """A request has ended. Does not wait."""
        progress = entry.progress
        if progress is None:
            return
        operation = OPERATIONS.get(entry.route, "chat")
        begun = int(entry.at * NANOSECONDS)
        attributes: dict[str, Any] = {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": "kvrt",
            "gen_ai.request.model": entry.model,
            "gen_ai.usage.input_tokens": progress.prompt_tokens,
            "gen_ai.usage.output_tokens": progress.generated_tokens,
            "http.request.method": "POST",
            "http.route": entry.route,
            "http.response.status_code": int(entry.status),
            "kvrt.request_id": entry.id,
        }
        span = self._tracer.start_span(
            f"{operation} {entry.model}",
            context=self._contexts.extract({"traceparent": entry.parent}),
            kind=self._trace.SpanKind.SERVER,
            attributes=attributes,
            start_time=begun,
        )
        if progress.first is not None:
            after = int((progress.first - entry.begun) * NANOSECONDS)
            span.add_event("first token", timestamp=begun + after)
        if entry.status >= 500:
            span.set_status(self._trace.StatusCode.ERROR)
        span.end(begun + int(entry.seconds * NANOSECONDS))

    def close(self) -> None:
        """Once what is there was sent, or could not be in time."""
        ending = threading.Thread(target=self._provider.shutdown, daemon=True)
        ending.start()
        ending.join(FLUSH_S)
