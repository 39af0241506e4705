"""Where a runtime stands, as one frozen value."""

from dataclasses import dataclass

from kvrt.engine.engine import Engine
from kvrt.kv.index.reuse import ReuseStats
from kvrt.kv.offload import OffloadStats
from kvrt.kv.stats import CacheStats
from kvrt.model.offload.pool import ExpertStats
from kvrt.sched.speculation import SpeculationStats


@dataclass(frozen=True, slots=True)
class RuntimeStats:
    """Where a runtime stands.

    Args:
        load_seconds: opening the device and loading the model.
        weight_bytes: of the loaded model.
        steps: of the engine, so far.
        cache: the KV memory; see `kvrt.kv.stats.CacheStats`.
        reuse: prefixes found in it; see `kvrt.kv.index.reuse.ReuseStats`.
        speculation: guesses, and what came of them; see `kvrt.sched.speculation.SpeculationStats`.
        offload: pages moved off the device and back; None: there is nowhere to go.
        experts: those that are brought as needed; see `kvrt.model.offload.pool.ExpertStats`. None:
            all are in memory, or there are none.
    """

    load_seconds: float
    weight_bytes: int
    steps: int
    cache: CacheStats
    reuse: ReuseStats
    speculation: SpeculationStats
    offload: OffloadStats | None = None
    experts: ExpertStats | None = None


def stats_of(engine: Engine, load_seconds: float) -> RuntimeStats:
    memory = engine.memory
    return RuntimeStats(
        load_seconds,
        engine.model.weight_bytes,
        engine.steps,
        memory.cache.stats(),
        ReuseStats() if memory.reuse is None else memory.reuse.stats,
        engine.speculation.stats,
        None if memory.offload is None else memory.offload.stats(),
        None if engine.model.pool is None else engine.model.pool.stats(),
    )
