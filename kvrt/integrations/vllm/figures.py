"""What the elastic connector tells vLLM's log and its ``/metrics``."""

from dataclasses import asdict
from typing import Any

from prometheus_client import Counter, Gauge
from vllm.distributed.kv_transfer.kv_connector.v1.metrics import (
    KVConnectorPromMetrics,
    KVConnectorStats,
)

from kvrt.integrations.vllm.balloon import BalloonFigures

GAUGES = {
    "held": "Bytes of KV memory that the engine holds.",
    "limit": "Bytes of KV memory that it may hold now.",
    "used": "Bytes of blocks that requests use.",
    "cached": "Bytes of blocks that have memory, and that nobody uses.",
}
COUNTERS = {
    "mapped": "Blocks that were given memory.",
    "unmapped": "Blocks that lost their memory.",
    "refused": "Times that a block was wanted and there was no memory for it.",
}


class ElasticStats(KVConnectorStats):
    """`BalloonFigures` as a dictionary: they count from the start, so the newest says it all."""

    @classmethod
    def of(cls, figures: BalloonFigures) -> "ElasticStats":
        return cls(data=asdict(figures))

    def reset(self) -> None:
        self.data.clear()

    def aggregate(self, other: KVConnectorStats) -> KVConnectorStats:
        return self if other.is_empty() else other

    def reduce(self) -> dict[str, int | float]:
        return {f"kv_{name}": value for name, value in self.data.items()}

    def is_empty(self) -> bool:
        return not self.data


class ElasticMetrics(KVConnectorPromMetrics):
    """The same for Prometheus, for each engine."""

    def __init__(
        self, vllm_config: Any, metric_types: Any, labelnames: list[str], per_engine: dict[int, Any]
    ) -> None:
        super().__init__(vllm_config, metric_types, labelnames, per_engine)
        made: list[tuple[type, str, str, str]] = []
        made += [(Gauge, name, f"kvrt:kv_{name}_bytes", text) for name, text in GAUGES.items()]
        made += [(Counter, name, f"kvrt:kv_{name}_blocks", text) for name, text in COUNTERS.items()]
        self._metrics = {
            name: metric_types[kind](called, text, labelnames=labelnames)
            for kind, name, called, text in made
        }
        self._last: dict[tuple[int, str], int] = {}

    def observe(self, transfer_stats_data: dict[str, Any], engine_idx: int = 0) -> None:
        labels = self.per_engine_labelvalues[engine_idx]
        for name, value in transfer_stats_data.items():
            metric = self._metrics[name].labels(*labels)
            if name in GAUGES:
                metric.set(value)
            else:
                metric.inc(value - self._last.get((engine_idx, name), 0))
                self._last[engine_idx, name] = value
