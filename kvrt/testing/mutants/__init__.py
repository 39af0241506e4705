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
    ReadsPagesByNumber,
    SeesOtherBranches,
    SeesTheFuture,
    StoresByPosition,
    SwapsGroups,
    SwapsNibbles,
    TruncatesOnAppend,
    WindowsByRow,
)
from kvrt.testing.mutants.batches import (
    CapsBeforeItScales,
    CountsOnlyThoseWithTokens,
    CutsLongContexts,
    CutsPageNumbers,
    GivesTokensToThoseWithout,
    HasEightHeadsOfAGroup,
    IgnoresTheWindowInPrompts,
    KeepsFullPages,
    LosesLateRows,
    ReadsTheBatchLate,
    ScalesHeadsOf32Wrongly,
    SharesAPageFromThe33rdOn,
    SumsInBfloat16,
    WrapsElementIndices,
)
from kvrt.testing.mutants.copier import (
    CopiesBeforeTheFence,
    DropsTheLastByte,
    HasOneStagingBuffer,
    LargeTicketsComeTrueTooEarly,
    LateCopier,
    LosesWhatIsBeyond,
    LosesWhatIsBeyondAMebibyte,
    RoundsAddressesDown,
    TakesNoPatienceForDone,
    TicketsComeTrueTooEarly,
)
from kvrt.testing.mutants.dense import (
    ForgetsEpsilon,
    ForgetsOut,
    ForgetsTheBias,
    NormsKeysLikeQueries,
    RotatesTheOtherWay,
    SwapsGateAndUp,
)
from kvrt.testing.mutants.experts import (
    AddsInTheOrderOfExperts,
    ChoosesTheWorstFirst,
    CutsNothing,
    DividesByWhateverTheSumIs,
    ForgetsTheBiasOfDown,
    ForgetsTheLastExpert,
    ForgetsToRenormalise,
    ForgetsWhatIsAddedTo,
    IgnoresGroups,
    IgnoresTheCorrection,
    MixesManyOtherwise,
    ScalesNoWeights,
    SharesTheFirstBias,
    SwapsWeights,
    TakesGroupsByTheirBest,
    TakesTheLastOfEquals,
    WeighsWithTheCorrection,
)
from kvrt.testing.mutants.graphs import (
    ComputesWhileRecording,
    RecordsTooFew,
    ReplaysTheRecordedBatch,
    TakesAllForTheFirst,
)
from kvrt.testing.mutants.latent import (
    LeavesWhatIsNotRotated,
    MultipliesManyTokensOtherwise,
    MultipliesWithTheFirstHeads,
    RotatesBackwards,
    RotatesTheWholeHead,
    RotatesWhatItWasGiven,
    TakesTheNextHeadsMatrix,
)
from kvrt.testing.mutants.low_rank import (
    AddsAllPartsToTheFirstRows,
    ForgetsTheLastSegment,
    GatesByAnother,
    GatesByUp,
)
from kvrt.testing.mutants.memory import (
    CutsOffsets,
    ForgetsToUnmap,
    IsAlwaysFree,
    KeepsDestroyedChunks,
    KeepsOneChunkInAThousand,
    LosesTheLastChunks,
    MapsOneChunkTooFar,
    MapsWideSpansBackwards,
    MapsZeroes,
    RemembersTensors,
    ReservesMemory,
)
from kvrt.testing.mutants.packed import (
    ForgetsOffsets,
    ForgetsTheHighBits,
    ForgetsTheLastBlock,
    GathersTheNextRow,
    HidesWhatIsNotFinite,
    PacksLate,
    RoundsGatheredRows,
    RoundsWhatItSaysItDoesNot,
    RoundsWholeRows,
    SharesScalesOf16,
    SharesTheFirstFactor,
    SharesTheFirstScale,
    SwapsPackedGateAndUp,
    SwapsTheNibblesOfCodes,
    SwapsThePackedRows,
    TakesTheFirstForAll,
    TakesTheMiddleForZeros,
    TakesTwiceTheMemory,
)
from kvrt.testing.mutants.seen import (
    GivesValuesTheWidthOfKeys,
    IgnoresSinkLogits,
    IgnoresSinks,
    IsAlwaysCausal,
    KeepsASinkTooMany,
    ReadsPagesBeforeTheWindow,
    ScalesSinkLogits,
    StoresValuesThatAreKeys,
    TakesTheEndOfKeysForValues,
    UsesEntriesBeforeTheWindow,
)
from kvrt.wrappers.wrapper import (
    WrappedAttention,
    WrappedCopier,
    WrappedDenseOps,
    WrappedExpertOps,
    WrappedGraphs,
    WrappedLatentOps,
    WrappedLowRankOps,
    WrappedMemory,
    WrappedPackedMatrices,
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
        self._dense = mutant.dense
        self._experts = mutant.experts
        self._graphs = mutant.graphs
        self._latents = mutant.latents
        self._low_rank = mutant.low_rank
        self._packed = mutant.packed
        claimed = inner.info.capabilities | mutant.claims
        self._info = replace(inner.info, backend=backend.name, capabilities=claimed)

    @property
    def info(self) -> DeviceInfo:
        return self._info

    def extension(self, kind: type[Extension]) -> Extension | None:
        found = super().extension(kind)
        if isinstance(found, WrappedDenseOps):
            return self._dense(self, found.inner)  # type: ignore[return-value]
        if isinstance(found, WrappedExpertOps):
            return self._experts(self, found.inner)  # type: ignore[return-value]
        if isinstance(found, WrappedGraphs):
            return self._graphs(self, found.inner)  # type: ignore[return-value]
        if isinstance(found, WrappedLatentOps):
            return self._latents(self, found.inner)  # type: ignore[return-value]
        if isinstance(found, WrappedLowRankOps):
            return self._low_rank(self, found.inner)  # type: ignore[return-value]
        if isinstance(found, WrappedPackedMatrices):
            return self._packed(self, found.inner)  # type: ignore[return-value]
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


class SaysTwiceItsGranularity(MutantDevice):
    @property
    def info(self) -> DeviceInfo:
        return replace(self._info, granularity=2 * self._info.granularity)


class SaysHalfItsGranularity(MutantDevice):
    @property
    def info(self) -> DeviceInfo:
        return replace(self._info, granularity=self._info.granularity // 2)


class SaysItHasMore(MutantDevice):
    @property
    def info(self) -> DeviceInfo:
        return replace(self._info, total_bytes=1024 * self._info.total_bytes)


@dataclass(frozen=True, slots=True)
class Mutant:
    """A fault.

    Args:
        caught_by: the file of the kit that must notice it, e.g. ``memory`` for test_memory.py, or
            the test in it, e.g. ``memory::test_memory_info_adds_up``.
        dense: replaces `DenseOps`; needs a device that offers them.
        experts: replaces `ExpertOps`, likewise.
        graphs: replaces `GraphCapture`, likewise.
        latents: replaces `LatentOps`, likewise.
        low_rank: replaces `LowRankOps`, likewise.
        packed: replaces `PackedMatrices`, likewise.
        claims: capabilities it declares though the device may not have them.
        any_index: open() takes any index.
        codes: needs a device that keeps int8 and int4.
    """

    caught_by: str
    memory: type[WrappedMemory] = WrappedMemory
    copier: type[WrappedCopier] = WrappedCopier
    attention: type[WrappedAttention] = WrappedAttention
    dense: type[WrappedDenseOps] = WrappedDenseOps
    experts: type[WrappedExpertOps] = WrappedExpertOps
    graphs: type[WrappedGraphs] = WrappedGraphs
    latents: type[WrappedLatentOps] = WrappedLatentOps
    low_rank: type[WrappedLowRankOps] = WrappedLowRankOps
    packed: type[WrappedPackedMatrices] = WrappedPackedMatrices
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
    "says_twice_its_granularity": Mutant(
        "memory::test_a_chunk_is_mapped_where_it_was_asked_to_be", device=SaysTwiceItsGranularity
    ),
    "says_half_its_granularity": Mutant(
        "memory::test_a_chunk_is_mapped_where_it_was_asked_to_be", device=SaysHalfItsGranularity
    ),
    "maps_wide_spans_backwards": Mutant(
        "memory::test_a_chunk_is_mapped_where_it_was_asked_to_be", memory=MapsWideSpansBackwards
    ),
    "cuts_offsets": Mutant(
        "memory::test_a_chunk_is_mapped_where_it_was_asked_to_be", memory=CutsOffsets
    ),
    "remembers_tensors": Mutant(
        "memory::test_a_tensor_covers_its_span_also_where_another_one_was", memory=RemembersTensors
    ),
    "keeps_one_chunk_in_a_thousand": Mutant(
        "memory::test_no_chunk_of_a_thousand_is_kept", memory=KeepsOneChunkInAThousand
    ),
    "is_always_free": Mutant(
        "memory::test_free_memory_falls_by_what_is_taken_and_rises_again", memory=IsAlwaysFree
    ),
    "says_it_has_more": Mutant("memory::test_memory_info_adds_up", device=SaysItHasMore),
    "loses_the_last_chunks": Mutant("errors", memory=LosesTheLastChunks),
    "opens_any_index": Mutant("errors", any_index=True),
    "copies_before_the_fence": Mutant("copier", copier=CopiesBeforeTheFence),
    "tickets_come_true_too_early": Mutant("copier", copier=TicketsComeTrueTooEarly),
    "large_tickets_come_true_too_early": Mutant(
        "copier::test_what_a_ticket_promised_is_there", copier=LargeTicketsComeTrueTooEarly
    ),
    "takes_no_patience_for_done": Mutant(
        "copier::test_a_ticket_does_not_come_true_before_the_copy", copier=TakesNoPatienceForDone
    ),
    "has_one_staging_buffer": Mutant(
        "copier::test_copies_in_flight_at_once_keep_their_own_bytes", copier=HasOneStagingBuffer
    ),
    "synchronizes_without_copies": Mutant(
        "copier::test_synchronize_waits_for_copies", copier=LateCopier
    ),
    "drops_the_last_byte": Mutant("copier", copier=DropsTheLastByte),
    "loses_what_is_beyond_64_kib": Mutant(
        "copier::test_bytes_go_to_the_device_and_come_back", copier=LosesWhatIsBeyond
    ),
    "loses_what_is_beyond_a_mebibyte": Mutant(
        "copier::test_bytes_go_to_the_device_and_come_back", copier=LosesWhatIsBeyondAMebibyte
    ),
    "rounds_addresses_down": Mutant(
        "copier::test_addresses_may_be_odd", copier=RoundsAddressesDown
    ),
    "ignores_the_scale": Mutant("attention", attention=IgnoresTheScale),
    "ignores_the_window": Mutant("attention", attention=IgnoresTheWindow),
    "ignores_the_softcap": Mutant("attention", attention=IgnoresTheSoftcap),
    "ignores_the_layer": Mutant("attention", attention=IgnoresTheLayer),
    "reads_pages_backwards": Mutant("attention", attention=ReadsPagesBackwards),
    "reads_pages_by_number": Mutant("attention", attention=ReadsPagesByNumber),
    "misses_the_last_page": Mutant("attention", attention=MissesTheLastPage),
    "interleaves_heads": Mutant("attention", attention=InterleavesHeads),
    "sees_the_future": Mutant("attention", attention=SeesTheFuture),
    "multiplies_the_unused_by_zero": Mutant("attention", attention=MultipliesTheUnusedByZero),
    "ignores_row_strides": Mutant("attention", attention=IgnoresRowStrides),
    "truncates_on_append": Mutant("attention", attention=TruncatesOnAppend),
    "drops_the_last_token": Mutant("attention", attention=DropsTheLastToken),
    "ignores_the_window_in_prompts": Mutant(
        "attention::test_a_token_sees_only_its_window", attention=IgnoresTheWindowInPrompts
    ),
    "caps_before_it_scales": Mutant(
        "attention::test_scores_are_capped_softly", attention=CapsBeforeItScales
    ),
    "cuts_page_numbers": Mutant(
        "attention::test_every_declared_dtype_agrees", attention=CutsPageNumbers
    ),
    "wraps_element_indices": Mutant(
        "attention::test_every_declared_dtype_agrees", attention=WrapsElementIndices
    ),
    "scales_heads_of_32_wrongly": Mutant(
        "batches::test_every_size_of_a_head_agrees", attention=ScalesHeadsOf32Wrongly
    ),
    "has_eight_heads_of_a_group": Mutant(
        "batches::test_each_query_head_reads_its_own_kv_head", attention=HasEightHeadsOfAGroup
    ),
    "cuts_long_contexts": Mutant("batches::test_a_very_long_context", attention=CutsLongContexts),
    "loses_late_rows": Mutant("batches::test_a_long_prompt", attention=LosesLateRows),
    "shares_a_page_from_the_33rd_on": Mutant(
        "batches::test_seventy_sequences_at_once", attention=SharesAPageFromThe33rdOn
    ),
    "counts_only_those_with_tokens": Mutant(
        "batches::test_sequences_may_bring_nothing", attention=CountsOnlyThoseWithTokens
    ),
    "gives_tokens_to_those_without": Mutant(
        "batches::test_sequences_may_bring_nothing", attention=GivesTokensToThoseWithout
    ),
    "reads_the_batch_late": Mutant(
        "batches::test_the_batch_is_the_callers_again_after_plan", attention=ReadsTheBatchLate
    ),
    "keeps_full_pages": Mutant(
        "batches::test_a_page_that_holds_something_else_is_read_anew", attention=KeepsFullPages
    ),
    "sums_in_bfloat16": Mutant("batches::test_sums_are_taken_in_float32", attention=SumsInBfloat16),
    "uses_entries_before_the_window": Mutant(
        "seen::test_nothing_before_a_window_is_read", attention=UsesEntriesBeforeTheWindow
    ),
    "reads_pages_before_the_window": Mutant(
        "seen::test_nothing_before_a_window_is_read", attention=ReadsPagesBeforeTheWindow
    ),
    "ignores_sinks": Mutant("seen", attention=IgnoresSinks),
    "keeps_a_sink_too_many": Mutant("seen", attention=KeepsASinkTooMany),
    "ignores_sink_logits": Mutant(
        "seen::test_a_sinks_logit_is_in_the_denominator", attention=IgnoresSinkLogits
    ),
    "scales_sink_logits": Mutant(
        "seen::test_a_sinks_logit_is_in_the_denominator", attention=ScalesSinkLogits
    ),
    "is_always_causal": Mutant(
        "seen::test_without_causality_a_token_sees_all_of_its_context", attention=IsAlwaysCausal
    ),
    "takes_the_end_of_keys_for_values": Mutant("values", attention=TakesTheEndOfKeysForValues),
    "stores_values_that_are_keys": Mutant("values", attention=StoresValuesThatAreKeys),
    "gives_values_the_width_of_keys": Mutant("values", attention=GivesValuesTheWidthOfKeys),
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
    "forgets_the_bias": Mutant("dense", dense=ForgetsTheBias),
    "swaps_gate_and_up": Mutant("dense", dense=SwapsGateAndUp),
    "forgets_epsilon": Mutant("dense", dense=ForgetsEpsilon),
    "forgets_out": Mutant("dense", dense=ForgetsOut),
    "norms_keys_like_queries": Mutant("dense", dense=NormsKeysLikeQueries),
    "rotates_the_other_way": Mutant("dense", dense=RotatesTheOtherWay),
    "replays_the_recorded_batch": Mutant("graphs", graphs=ReplaysTheRecordedBatch),
    "computes_while_recording": Mutant("graphs", graphs=ComputesWhileRecording),
    "takes_all_for_the_first": Mutant(
        "graphs::test_a_step_may_have_several_batches", graphs=TakesAllForTheFirst
    ),
    "records_too_few": Mutant("graphs", graphs=RecordsTooFew),
    "swaps_the_nibbles_of_codes": Mutant("packed::test_linear", packed=SwapsTheNibblesOfCodes),
    "forgets_the_high_bits": Mutant("packed::test_linear", packed=ForgetsTheHighBits),
    "forgets_offsets": Mutant("packed::test_linear", packed=ForgetsOffsets),
    "shares_the_first_scale": Mutant("packed::test_linear", packed=SharesTheFirstScale),
    "shares_scales_of_16": Mutant("packed::test_linear", packed=SharesScalesOf16),
    "shares_the_first_factor": Mutant("packed::test_linear", packed=SharesTheFirstFactor),
    "takes_the_middle_for_zeros": Mutant("packed::test_linear", packed=TakesTheMiddleForZeros),
    "rounds_what_it_says_it_does_not": Mutant(
        "packed::test_linear", packed=RoundsWhatItSaysItDoesNot
    ),
    "swaps_the_packed_rows": Mutant("packed::test_linear", packed=SwapsThePackedRows),
    "packs_late": Mutant("packed::test_linear", packed=PacksLate),
    "takes_the_first_for_all": Mutant(
        "packed::test_a_weight_may_be_of_several_formats", packed=TakesTheFirstForAll
    ),
    "rounds_whole_rows": Mutant(
        "packed::test_scales_may_be_of_any_sign_and_size", packed=RoundsWholeRows
    ),
    "hides_what_is_not_finite": Mutant(
        "packed::test_what_is_not_finite_stays_in_its_row", packed=HidesWhatIsNotFinite
    ),
    "forgets_the_last_block": Mutant("packed::test_linear", packed=ForgetsTheLastBlock),
    "swaps_packed_gate_and_up": Mutant("packed::test_gated_linear", packed=SwapsPackedGateAndUp),
    "gathers_the_next_row": Mutant("packed::test_rows_are_exact", packed=GathersTheNextRow),
    "rounds_gathered_rows": Mutant("packed::test_rows_are_exact", packed=RoundsGatheredRows),
    "takes_twice_the_memory": Mutant(
        "packed::test_a_packed_matrix_is_about_as_large_as_before", packed=TakesTwiceTheMemory
    ),
    "takes_the_next_heads_matrix": Mutant(
        "latent::test_a_head_is_multiplied_with_a_matrix_of_its_own",
        latents=TakesTheNextHeadsMatrix,
    ),
    "multiplies_with_the_first_heads": Mutant(
        "latent::test_a_head_is_multiplied_with_a_matrix_of_its_own",
        latents=MultipliesWithTheFirstHeads,
    ),
    "multiplies_many_tokens_otherwise": Mutant(
        "latent::test_a_head_has_the_bits_of_a_product_alone_beside_any_others",
        latents=MultipliesManyTokensOtherwise,
    ),
    "rotates_what_it_was_given": Mutant(
        "latent::test_heads_are_rotated_where_they_are_or_to_another_place",
        latents=RotatesWhatItWasGiven,
    ),
    "rotates_the_whole_head": Mutant(
        "latent::test_heads_are_rotated_where_they_are_or_to_another_place",
        latents=RotatesTheWholeHead,
    ),
    "rotates_backwards": Mutant(
        "latent::test_around_attention_they_read_what_keys_and_values_of_their_own_would_say",
        latents=RotatesBackwards,
    ),
    "leaves_what_is_not_rotated": Mutant(
        "latent::test_heads_are_rotated_where_they_are_or_to_another_place",
        latents=LeavesWhatIsNotRotated,
    ),
    "forgets_to_renormalise": Mutant(
        "experts::test_the_best_are_chosen_in_order_and_weighed", experts=ForgetsToRenormalise
    ),
    "ignores_groups": Mutant(
        "experts::test_the_best_are_chosen_in_order_and_weighed", experts=IgnoresGroups
    ),
    "takes_groups_by_their_best": Mutant(
        "experts::test_the_best_are_chosen_in_order_and_weighed", experts=TakesGroupsByTheirBest
    ),
    "scales_no_weights": Mutant(
        "experts::test_the_best_are_chosen_in_order_and_weighed", experts=ScalesNoWeights
    ),
    "divides_by_whatever_the_sum_is": Mutant(
        "experts::test_the_best_are_chosen_in_order_and_weighed", experts=DividesByWhateverTheSumIs
    ),
    "ignores_the_correction": Mutant(
        "experts::test_the_best_are_chosen_in_order_and_weighed", experts=IgnoresTheCorrection
    ),
    "weighs_with_the_correction": Mutant(
        "experts::test_the_best_are_chosen_in_order_and_weighed", experts=WeighsWithTheCorrection
    ),
    "takes_the_last_of_equals": Mutant(
        "experts::test_the_best_are_chosen_in_order_and_weighed", experts=TakesTheLastOfEquals
    ),
    "chooses_the_worst_first": Mutant(
        "experts::test_the_best_are_chosen_in_order_and_weighed", experts=ChoosesTheWorstFirst
    ),
    "swaps_weights": Mutant(
        "experts::test_a_token_has_the_sum_of_its_experts", experts=SwapsWeights
    ),
    "forgets_the_last_expert": Mutant(
        "experts::test_a_token_has_the_sum_of_its_experts", experts=ForgetsTheLastExpert
    ),
    "forgets_the_bias_of_down": Mutant(
        "experts::test_a_token_has_the_sum_of_its_experts", experts=ForgetsTheBiasOfDown
    ),
    "shares_the_first_bias": Mutant(
        "experts::test_a_token_has_the_sum_of_its_experts", experts=SharesTheFirstBias
    ),
    "cuts_nothing": Mutant("experts::test_a_token_has_the_sum_of_its_experts", experts=CutsNothing),
    "forgets_what_is_added_to": Mutant(
        "experts::test_a_token_has_the_sum_of_its_experts", experts=ForgetsWhatIsAddedTo
    ),
    "adds_in_the_order_of_experts": Mutant(
        "experts::test_results_are_added_in_the_order_of_the_choice",
        experts=AddsInTheOrderOfExperts,
    ),
    "mixes_many_otherwise": Mutant(
        "experts::test_a_token_has_the_same_bits_beside_any_others", experts=MixesManyOtherwise
    ),
    "forgets_the_last_segment": Mutant(
        "low_rank::test_each_token_has_its_own_added", low_rank=ForgetsTheLastSegment
    ),
    "adds_all_parts_to_the_first_rows": Mutant(
        "low_rank::test_each_token_has_its_own_added", low_rank=AddsAllPartsToTheFirstRows
    ),
    "gates_by_up": Mutant("low_rank::test_gates_follow", low_rank=GatesByUp),
    "gates_by_another": Mutant("low_rank::test_gates_follow", low_rank=GatesByAnother),
    "never_closes": Mutant("lifecycle", device=NeverCloses),
    "closes_once": Mutant("lifecycle", device=ClosesOnce),
}


@dataclass(frozen=True, slots=True)
class MutantBackend:
    """A backend whose devices are another backend's with one fault."""

    name: str
    inner: Backend
    mutant: Mutant
    spi: int = 2

    def probe(self) -> Probe:
        return self.inner.probe()

    def open(self, index: int = 0, options: DeviceOptions = DeviceOptions()) -> Device:
        index = 0 if self.mutant.any_index else index
        return self.mutant.device(self.inner.open(index, options), self)
