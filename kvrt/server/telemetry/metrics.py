"""``/metrics``: what the engine tells its observers, and where its memory stands, as Prometheus'
text. No label has a value that a client chose."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from kvrt.engine.events import Event, RequestFinished, RequestPreempted, StepDone
from kvrt.engine.stats import RuntimeStats
from kvrt.outputs import Result
from kvrt.runtime import Runtime
from kvrt.server.kept.exact import KeptAnswers
from kvrt.server.kept.similar import SimilarAnswers
from kvrt.server.telemetry.audit import Audit
from kvrt.server.telemetry.compat import AsVLLM

LATENCY_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
PACE_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
STEP_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class Metrics:
    """Of one runtime, in a registry of its own.

    Args:
        runtime: asked where it stands, at each scrape.
        compat: ``vllm``: the names of vLLM, too.
        model: the name of the model, for those.
        audit: the audit log, if there is one.
        kept: answers that are kept, if any are.
        similar: those that are told for nearly the same, likewise.
    """

    def __init__(
        self,
        runtime: Runtime,
        compat: str | None = None,
        model: str = "",
        audit: Audit | None = None,
        kept: KeptAnswers | None = None,
        similar: SimilarAnswers | None = None,
    ) -> None:
        registry = CollectorRegistry()
        self._runtime = runtime
        self._registries = [registry]
        if compat == "vllm":
            self._registries.append(CollectorRegistry())
            self._registries[-1].register(AsVLLM(registry, model))
        registry.register(_Standing(runtime, self, audit, kept, similar))
        self.load = (0, 0)
        self._http = Counter(
            "kvrt_http_requests", "Answers to requests that ask the model, by route and status"
            " (499: the client left).", ["route", "status"], registry=registry,
        )  # fmt: skip
        self._lines = Counter(
            "kvrt_batch_lines", "Lines of batches that were answered, by status.", ["status"],
            registry=registry,
        )  # fmt: skip
        self._lines.labels("200")  # so that a rate has a beginning
        self._requests = Counter(
            "kvrt_requests", "Requests that have ended, by how.", ["outcome"], registry=registry
        )
        self._prompt = Counter("kvrt_prompt_tokens", "Of their prompts.", registry=registry)
        self._cached = Counter(
            "kvrt_cached_prompt_tokens", "Of these, not computed: their pages were there.",
            registry=registry,
        )  # fmt: skip
        self._said = Counter("kvrt_generated_tokens", "Of their answers.", registry=registry)
        self._preempted = Counter(
            "kvrt_preemptions", "Sequences that gave their pages to others.", registry=registry
        )
        self._queued = Histogram(
            "kvrt_queue_seconds", "From submission to the first step.", buckets=LATENCY_S,
            registry=registry,
        )  # fmt: skip
        self._first = Histogram(
            "kvrt_time_to_first_token_seconds", "From submission to the first token.",
            buckets=LATENCY_S, registry=registry,
        )  # fmt: skip
        self._whole = Histogram(
            "kvrt_request_seconds", "From submission to the end.", buckets=LATENCY_S,
            registry=registry,
        )  # fmt: skip
        self._pace = Histogram(
            "kvrt_time_per_output_token_seconds", "From the first token of an answer to its end,"
            " for each token after the first.", buckets=PACE_S, registry=registry,
        )  # fmt: skip
        self._steps = Histogram(
            "kvrt_step_seconds", "Of the engine's steps.", buckets=STEP_S, registry=registry
        )
        self._computed = Counter(
            "kvrt_computed_tokens", "In all steps, guessed ones included.", registry=registry
        )

    @property
    def sequences(self) -> tuple[int, int]:
        """That run and that wait, as of the last step."""
        return self.load if self._runtime.busy else (0, 0)

    def observe(self, event: Event) -> None:
        """On the engine's thread."""
        match event:
            case StepDone():
                self._steps.observe(event.seconds)
                self._computed.inc(event.tokens)
                self.load = event.running, event.waiting
            case RequestPreempted():
                self._preempted.inc()
            case RequestFinished():
                self._ended(event.result)

    def _ended(self, result: Result) -> None:
        error = result.error is not None
        self._requests.labels("error" if error else result.finish_reason).inc()
        self._prompt.inc(result.usage.prompt_tokens)
        self._cached.inc(result.usage.cached_tokens)
        self._said.inc(result.usage.completion_tokens)
        self._queued.observe(result.timings.queued)
        self._whole.observe(result.timings.total)
        if result.usage.completion_tokens:
            self._first.observe(result.timings.first_token)
        longest = max((len(each.token_ids) for each in result.completions), default=0)
        if longest > 1:
            said = result.timings.total - result.timings.first_token
            self._pace.observe(said / (longest - 1))

    def answered(self, route: str, status: int) -> None:
        """A route that asks the model has answered."""
        self._http.labels(route, str(int(status))).inc()

    def line_answered(self, status: int) -> None:
        """A line of a batch was."""
        self._lines.labels(str(status)).inc()

    def collect(self) -> Iterator[Metric]:
        """All families."""
        for registry in self._registries:
            yield from registry.collect()

    def text(self) -> bytes:
        """All of it."""
        return b"".join(map(generate_latest, self._registries))


def usage(stats: RuntimeStats) -> float:
    """The part of the KV limit that sequences hold, from 0 to 1."""
    cache = stats.cache
    held = cache.mapped_bytes + cache.pooled_bytes - cache.spare_bytes - cache.cached_bytes
    return min(1.0, max(0, held) / max(1, cache.limit_bytes))


class _Standing(Collector):
    """What is asked at each scrape. It waits for nothing, not even for a device that hangs."""

    def __init__(
        self,
        runtime: Runtime,
        metrics: Metrics,
        audit: Audit | None,
        kept: KeptAnswers | None,
        similar: SimilarAnswers | None,
    ) -> None:
        self._similar = similar
        self._kept = kept
        self._runtime = runtime
        self._metrics = metrics
        self._audit = audit

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        running, waiting = self._metrics.sequences
        load = GaugeMetricFamily("kvrt_sequences", "As of the last step.", labels=["state"])
        load.add_metric(["running"], running)
        load.add_metric(["waiting"], waiting)
        yield load
        stats = self._runtime.stats()
        cache = stats.cache
        pages = GaugeMetricFamily("kvrt_kv_pages", "Of the KV memory.", labels=["state"])
        for state in ("used", "cached", "free", "retired"):
            pages.add_metric([state], getattr(cache, f"{state}_pages"))
        yield pages
        held = GaugeMetricFamily("kvrt_kv_bytes", "Of the KV memory.", labels=["state"])
        for state in ("mapped", "pooled", "cached", "limit"):
            held.add_metric([state], getattr(cache, f"{state}_bytes"))
        yield held
        yield GaugeMetricFamily(
            "kvrt_kv_usage_ratio", "What sequences hold, of the limit.", value=usage(stats)
        )
        yield CounterMetricFamily(
            "kvrt_kv_page_copies", "Shared pages that were copied.", value=cache.copies
        )
        if stats.offload is not None:
            moved = CounterMetricFamily(
                "kvrt_tier_pages", "Pages that left the device or came back.", labels=["event"]
            )
            for event in ("saved", "fetched", "missed", "dropped"):
                moved.add_metric([event], getattr(stats.offload, f"{event}_pages"))
            yield moved
        if stats.experts is not None:
            needed = CounterMetricFamily(
                "kvrt_experts", "That a layer needed in a step: in memory, or read.",
                labels=["result"],
            )  # fmt: skip
            needed.add_metric(["hit"], stats.experts.hits)
            needed.add_metric(["miss"], stats.experts.misses)
            yield needed
            yield CounterMetricFamily(
                "kvrt_expert_read_bytes", "Of experts that were read.",
                value=stats.experts.read_bytes,
            )  # fmt: skip
            yield CounterMetricFamily(
                "kvrt_expert_read_seconds", "That steps have waited for them.",
                value=stats.experts.read_seconds,
            )  # fmt: skip
        yield GaugeMetricFamily(
            "kvrt_engine_up", "1: there is an engine; 0: it has stopped for good.",
            value=float(self._runtime.ended is None),
        )  # fmt: skip
        if self._kept is not None:
            asked = CounterMetricFamily(
                "kvrt_response_cache_requests", "That might have been told an answer of before.",
                labels=["result"],
            )  # fmt: skip
            asked.add_metric(["hit"], self._kept.hits)
            asked.add_metric(["miss"], self._kept.misses)
            yield asked
            yield GaugeMetricFamily(
                "kvrt_response_cache_bytes", "Of answers that are kept, about.",
                value=self._kept.nbytes,
            )  # fmt: skip
        if self._similar is not None:
            asked = CounterMetricFamily(
                "kvrt_similar_answer_requests", "That would have been told an answer to nearly the"
                " same.", labels=["result"],
            )  # fmt: skip
            asked.add_metric(["hit"], self._similar.hits)
            asked.add_metric(["miss"], self._similar.misses)
            yield asked
            yield GaugeMetricFamily(
                "kvrt_similar_answer_bytes", "Of these answers, about.",
                value=self._similar.nbytes,
            )  # fmt: skip
        if self._audit is not None:
            yield CounterMetricFamily(
                "kvrt_audit_lost_lines", "Of the audit log, not written.", value=self._audit.lost
            )

    def describe(self) -> list[GaugeMetricFamily]:
        """Nothing: registering asks the runtime nothing."""
        return []
