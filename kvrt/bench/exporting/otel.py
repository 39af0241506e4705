"""A run as metrics of OpenTelemetry, by OTLP over HTTP.

Requests are histograms with the names and the buckets of the conventions for generative AI
(OpenTelemetry's semantic conventions, "Generative AI client metrics"); figures are gauges
whose names begin with kvrt.bench. All that they are told apart by is the model and the run's name.
"""

from typing import Any

from kvrt.bench.exporting.flat import figures
from kvrt.bench.words import Record, Run
from kvrt.errors import KvrtError

DURATION = "gen_ai.client.operation.duration"
TOKENS = "gen_ai.client.token.usage"
FIRST = "gen_ai.client.operation.time_to_first_chunk"
NEXT = "gen_ai.client.operation.time_per_output_chunk"

SECONDS = [0.01 * 2**each for each in range(14)]
"""Buckets of times: from 10 ms to 82 s."""
CHUNKS = [0.001 * 2**each for each in range(14)]
"""Of times between pieces: from 1 ms to 8 s."""
COUNTS = [4**each for each in range(14)]
"""Of tokens."""

OPERATIONS = {"chat": "chat", "completions": "text_completion"}


def export(run: Run, project: str, at: str | None = None) -> str:
    """Send a run's metrics, once.

    Args:
        project: the name of the service, unless ``OTEL_SERVICE_NAME`` says another.
        at: the endpoint, such as ``http://127.0.0.1:4318``; None: ``OTEL_EXPORTER_OTLP_ENDPOINT``
            and the like, else that.

    Returns:
        Where they went, for people.

    Raises:
        KvrtError: nobody takes them there.
    """
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    from opentelemetry.sdk.metrics.export import MetricExportResult

    where = at or "the endpoint that OTEL_EXPORTER_OTLP_ENDPOINT names"
    exporter = OTLPMetricExporter(None if at is None else f"{at.removesuffix('/')}/v1/metrics")
    try:
        done = exporter.export(collected(run, project))
    except (OSError, ValueError) as error:
        raise KvrtError(f"{where} has not taken {run.name}: {error}") from None
    finally:
        exporter.shutdown()
    if done is not MetricExportResult.SUCCESS:
        raise KvrtError(
            f"{where} has not taken {run.name}",
            fix="name a collector of OTLP over HTTP with --at, or OTEL_EXPORTER_OTLP_ENDPOINT",
        )
    return where


def collected(run: Run, project: str) -> Any:
    """Its metrics, as OpenTelemetry collects them."""
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader
    from opentelemetry.sdk.resources import Resource

    resource = Resource.create()
    if str(resource.attributes["service.name"]).startswith("unknown_service"):
        resource = resource.merge(Resource({"service.name": project}))
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], resource, shutdown_on_exit=False)
    try:
        meter = provider.get_meter("kvrt.bench")
        about = {"kvrt.bench.run": run.name, "kvrt.bench.date": run.date}
        for name, value in figures(run).items():
            meter.create_gauge(f"kvrt.bench.{name}").set(value, about)
        _requests(run, meter)
        return reader.get_metrics_data()
    finally:
        provider.shutdown()


def _requests(run: Run, meter: Any) -> None:
    times = (DURATION, FIRST)
    whole, first = (
        meter.create_histogram(name, "s", explicit_bucket_boundaries_advisory=SECONDS)
        for name in times
    )
    following = meter.create_histogram(NEXT, "s", explicit_bucket_boundaries_advisory=CHUNKS)
    tokens = meter.create_histogram(TOKENS, "{token}", explicit_bucket_boundaries_advisory=COUNTS)
    usual = {
        "gen_ai.operation.name": OPERATIONS.get(str(run.target.get("endpoint")), "chat"),
        "gen_ai.provider.name": "kvrt" if run.target.get("kind") == "inside" else "_OTHER",
        "gen_ai.request.model": str(run.target.get("model", "")),
        "kvrt.bench.run": run.name,
    }
    for each in run.records:
        failed = {} if each.good else {"error.type": "_OTHER"}
        whole.record(each.e2e, {**usual, **failed})
        if not each.good:
            continue
        if each.ttft is not None:
            first.record(each.ttft, usual)
        for gap in each.gaps:
            following.record(gap, usual)
        for kind, count in _usage(each):
            tokens.record(count, {**usual, "gen_ai.token.type": kind})


def _usage(record: Record) -> list[tuple[str, int]]:
    known = [("output", record.tokens)]
    return known if record.prompt_tokens is None else [("input", record.prompt_tokens), *known]
