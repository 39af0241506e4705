"""Devices with one deliberate fault each, to show that the conformance kit finds it.

`MUTANTS` names the faults and, for each, the file of the kit that must notice. A mutant wraps any
correct device:

    MutantBackend("early", registry.load("null"), MUTANTS["tickets_come_true_too_early"])
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from kvrt.errors import DeviceError
from kvrt.spi import Backend, Capability, Device, DeviceInfo, DeviceOptions, Extension, Probe
from kvrt.testing.mutants.attention import (
    DependsOnTheBatch,
    DropsTheLastToken,
    ForgetsTheSign,
    IgnoresBranches,
    IgnoresRowStrides,
    IgnoresTheLayer,
    IgnoresTheScale,
    IgnoresTheSoftcap,
    IgnoresTheWindow,
    InterleavesHeads,
    KeepsOneScaleForAll,
    KeepsTheScaleOfTheTokenBefore,
    MissesTheLastPage,
    MultipliesTheUnusedByZero,
    ReadsPagesBackwards,
    SeesOtherBranches,
    SeesTheFuture,
    StoresByPosition,
    SwapsGroups,
    SwapsNibbles,
    TruncatesOnAppend,
    WindowsByRow,
)
from kvrt.testing.mutants.copier import (
    CopiesBeforeTheFence,
    DropsTheLastByte,
    TicketsComeTrueTooEarly,
)
from kvrt.testing.mutants.fused import (
    ForgetsEpsilon,
    ForgetsOut,
    ForgetsTheBias,
    NormsKeysLikeQueries,
    RotatesTheOtherWay,
    SwapsGateAndUp,
)
from kvrt.testing.mutants.graphs import (
    ComputesWhileRecording,
    RecordsTooFew,
    ReplaysTheRecordedBatch,
)
from kvrt.testing.mutants.memory import (
    ForgetsToUnmap,
    KeepsDestroyedChunks,
    LosesTheLastChunks,
    MapsOneChunkTooFar,
    MapsZeroes,
    ReservesMemory,
)
from kvrt.wrappers.wrapper import (
    WrappedAttention,
    WrappedCopier,
    WrappedFusedOps,
    WrappedGraphs,
    WrappedMemory,
    Wrapper,
)


class MutantDevice(Wrapper):
    """Forwards everything, but for the part that the mutant replaces."""

    def __init__(self, inner: Device, backend: "MutantBackend") -> None:
        super().__init__(inner)
        mutant = backend.mutant
        self.memory = mutant.memory(self, inner.memory)
        self.copier = mutant.copier(self, inner.copier)
        self.attention = mutant.attention(self, inner.attention)
        self._fused = mutant.fused
        self._graphs = mutant.graphs
        claimed = inner.info.capabilities | mutant.claims
        self._info = replace(inner.info, backend=backend.name, capabilities=claimed)

    @property
    def info(self) -> DeviceInfo:
        return self._info

    def extension(self, kind: type[Extension]) -> Extension | None:
        found = super().extension(kind)
        if isinstance(found, WrappedFusedOps):
            return self._fused(self, found.inner)  # type: ignore[return-value]
        if isinstance(found, WrappedGraphs):
            return self._graphs(self, found.inner)  # type: ignore[return-value]
        return found


class NeverCloses(MutantDevice):
    def close(self) -> None:
        pass


class ClosesOnce(MutantDevice):
    closed = False

    def close(self) -> None:
        if self.closed:
            raise DeviceError("already closed")
        self.closed = True
        super().close()


@dataclass(frozen=True, slots=True)
class Mutant:
    """A fault.

    Args:
        caught_by: the file of the kit that must notice it, e.g. ``memory`` for test_memory.py.
        fused: replaces `FusedOps`; needs a device that offers them.
        graphs: replaces `GraphCapture`, likewise.
        claims: capabilities it declares though the device may not have them.
        any_index: open() takes any index.
        codes: needs a device that keeps int8 and int4.
    """

    caught_by: str
    memory: type[WrappedMemory] = WrappedMemory
    copier: type[WrappedCopier] = WrappedCopier
    attention: type[WrappedAttention] = WrappedAttention
    fused: type[WrappedFusedOps] = WrappedFusedOps
    graphs: type[WrappedGraphs] = WrappedGraphs
    device: type[MutantDevice] = MutantDevice
    claims: frozenset[Capability] = frozenset()
    any_index: bool = False
    codes: bool = False


MUTANTS: Mapping[str, Mutant] = {
    "keeps_destroyed_chunks": Mutant("memory", memory=KeepsDestroyedChunks),
    "forgets_to_unmap": Mutant("memory", memory=ForgetsToUnmap),
    "maps_one_chunk_too_far": Mutant("memory", memory=MapsOneChunkTooFar),
    "maps_zeroes": Mutant("memory", memory=MapsZeroes),
    "reserves_memory": Mutant("memory", memory=ReservesMemory),
    "loses_the_last_chunks": Mutant("errors", memory=LosesTheLastChunks),
    "opens_any_index": Mutant("errors", any_index=True),
    "copies_before_the_fence": Mutant("copier", copier=CopiesBeforeTheFence),
    "tickets_come_true_too_early": Mutant("copier", copier=TicketsComeTrueTooEarly),
    "drops_the_last_byte": Mutant("copier", copier=DropsTheLastByte),
    "ignores_the_scale": Mutant("attention", attention=IgnoresTheScale),
    "ignores_the_window": Mutant("attention", attention=IgnoresTheWindow),
    "ignores_the_softcap": Mutant("attention", attention=IgnoresTheSoftcap),
    "ignores_the_layer": Mutant("attention", attention=IgnoresTheLayer),
    "reads_pages_backwards": Mutant("attention", attention=ReadsPagesBackwards),
    "misses_the_last_page": Mutant("attention", attention=MissesTheLastPage),
    "interleaves_heads": Mutant("attention", attention=InterleavesHeads),
    "sees_the_future": Mutant("attention", attention=SeesTheFuture),
    "multiplies_the_unused_by_zero": Mutant("attention", attention=MultipliesTheUnusedByZero),
    "ignores_row_strides": Mutant("attention", attention=IgnoresRowStrides),
    "truncates_on_append": Mutant("attention", attention=TruncatesOnAppend),
    "drops_the_last_token": Mutant("attention", attention=DropsTheLastToken),
    "ignores_branches": Mutant("trees", attention=IgnoresBranches),
    "stores_by_position": Mutant("trees", attention=StoresByPosition),
    "sees_other_branches": Mutant("trees", attention=SeesOtherBranches),
    "windows_by_row": Mutant("trees", attention=WindowsByRow),
    "keeps_one_scale_for_all": Mutant("attention", attention=KeepsOneScaleForAll, codes=True),
    "keeps_the_scale_of_the_token_before": Mutant(
        "attention", attention=KeepsTheScaleOfTheTokenBefore, codes=True
    ),
    "swaps_groups": Mutant("attention", attention=SwapsGroups, codes=True),
    "swaps_nibbles": Mutant("attention", attention=SwapsNibbles, codes=True),
    "forgets_the_sign": Mutant("attention", attention=ForgetsTheSign, codes=True),
    "depends_on_the_batch": Mutant(
        "attention",
        attention=DependsOnTheBatch,
        claims=frozenset({Capability.BATCH_INVARIANT}),
    ),
    "forgets_the_bias": Mutant("fused", fused=ForgetsTheBias),
    "swaps_gate_and_up": Mutant("fused", fused=SwapsGateAndUp),
    "forgets_epsilon": Mutant("fused", fused=ForgetsEpsilon),
    "forgets_out": Mutant("fused", fused=ForgetsOut),
    "norms_keys_like_queries": Mutant("fused", fused=NormsKeysLikeQueries),
    "rotates_the_other_way": Mutant("fused", fused=RotatesTheOtherWay),
    "replays_the_recorded_batch": Mutant("graphs", graphs=ReplaysTheRecordedBatch),
    "computes_while_recording": Mutant("graphs", graphs=ComputesWhileRecording),
    "records_too_few": Mutant("graphs", graphs=RecordsTooFew),
    "never_closes": Mutant("lifecycle", device=NeverCloses),
    "closes_once": Mutant("lifecycle", device=ClosesOnce),
}


@dataclass(frozen=True, slots=True)
class MutantBackend:
    """A backend whose devices are another backend's with one fault."""

    name: str
    inner: Backend
    mutant: Mutant
    spi: int = 1

    def probe(self) -> Probe:
        return self.inner.probe()

    def open(self, index: int = 0, options: DeviceOptions = DeviceOptions()) -> Device:
        index = 0 if self.mutant.any_index else index
        return self.mutant.device(self.inner.open(index, options), self)
