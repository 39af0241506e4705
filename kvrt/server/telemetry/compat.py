"""Metrics under the names of vLLM, for the dashboards and autoscalers that look for those.

Only what means the same has another's name: what vLLM measures and kvrt does not is not there.
"""

from collections.abc import Iterable, Iterator

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

SAME = {
    "kvrt_prompt_tokens": "prompt_tokens",
    "kvrt_generated_tokens": "generation_tokens",
    "kvrt_preemptions": "num_preemptions",
    "kvrt_queue_seconds": "request_queue_time_seconds",
    "kvrt_time_to_first_token_seconds": "time_to_first_token_seconds",
    "kvrt_time_per_output_token_seconds": "request_time_per_output_token_seconds",
    "kvrt_request_seconds": "e2e_request_latency_seconds",
    "kvrt_cached_prompt_tokens": "prefix_cache_hits",
}
"""Names that stand for the same thing."""

ALSO = {"kvrt_prompt_tokens": "prefix_cache_queries"}
"""And once more: each prompt token is looked for in the prefix cache."""

REASONS = {"stop", "length", "abort"}


class AsVLLM(Collector):
    """The families of a registry, again, as far as vLLM has them.

    Args:
        own: that registry.
        model: its label ``model_name``: the name of the model.
    """

    def __init__(self, own: Collector, model: str) -> None:
        self._own = own
        self._labels = {"model_name": model, "engine": "0"}

    def collect(self) -> Iterator[Metric]:
        for family in self._own.collect():
            for names in (SAME, ALSO):
                if family.name in names:
                    yield self._renamed(family, names[family.name], family.samples)
            if family.name == "kvrt_requests":
                yield self._renamed(family, "request_success", self._successes(family))
            elif family.name == "kvrt_sequences":
                for sample in family.samples:
                    name = f"num_requests_{sample.labels['state']}"
                    yield self._gauge(name, family.documentation, sample.value)
            elif family.name == "kvrt_kv_usage_ratio":
                value = family.samples[0].value
                yield self._gauge("kv_cache_usage_perc", family.documentation, value)

    def _renamed(self, family: Metric, name: str, samples: Iterable[Sample]) -> Metric:
        made = Metric(f"vllm:{name}", family.documentation, family.type)
        for sample in samples:
            ending = sample.name.removeprefix(family.name)
            made.add_sample(f"vllm:{name}{ending}", sample.labels | self._labels, sample.value)
        return made

    def _successes(self, family: Metric) -> Iterator[Sample]:
        for sample in family.samples:
            reason = sample.labels["outcome"]
            if sample.name.endswith("_total") and reason in REASONS:
                yield sample._replace(labels={"finished_reason": reason})

    def _gauge(self, name: str, documentation: str, value: float) -> Metric:
        made = GaugeMetricFamily(f"vllm:{name}", documentation, labels=list(self._labels))
        made.add_metric(list(self._labels.values()), value)
        return made

    def describe(self) -> list[Metric]:
        """Nothing: registering asks the runtime nothing."""
        return []
