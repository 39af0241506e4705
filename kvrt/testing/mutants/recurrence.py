"""Faults of recurrent layers."""

import math
from dataclasses import replace

from torch import Tensor

from kvrt.spi import DeltaRule, StateBatch, StateSpaceRule
from kvrt.testing.mutants.mutant import Mutant
from kvrt.wrappers.operators import WrappedRecurrence


class ForgetsWhatIsBeforeAStep(WrappedRecurrence):
    """Sequences begin with their new tokens."""

    def plan(self, batch: StateBatch) -> object:
        brought = batch.query_start.diff()
        return super().plan(replace(batch, context_len=brought))


class PutsInNoMoreThanAll(WrappedRecurrence):
    def delta(
        self,
        tokens: object,
        borders: object,
        layer: int,
        qkv: Tensor,
        gates: Tensor,
        rule: DeltaRule,
        out: Tensor,
    ) -> None:
        weaker = replace(rule, strength=min(rule.strength, 1.0))
        super().delta(tokens, borders, layer, qkv, gates, weaker, out)


class TakesNoKeysInTurns(WrappedRecurrence):
    """Value heads that follow each other have the same key, whatever the rule says."""

    def delta(
        self,
        tokens: object,
        borders: object,
        layer: int,
        qkv: Tensor,
        gates: Tensor,
        rule: DeltaRule,
        out: Tensor,
    ) -> None:
        super().delta(tokens, borders, layer, qkv, gates, replace(rule, tiled=False), out)


class LimitsNoTime(WrappedRecurrence):
    def scan(
        self,
        tokens: object,
        borders: object,
        layer: int,
        xbc: Tensor,
        times: Tensor,
        rule: StateSpaceRule,
        out: Tensor,
    ) -> None:
        without = replace(rule, limits=(0.0, math.inf))
        super().scan(tokens, borders, layer, xbc, times, without, out)


class SkipsNothing(WrappedRecurrence):
    def scan(
        self,
        tokens: object,
        borders: object,
        layer: int,
        xbc: Tensor,
        times: Tensor,
        rule: StateSpaceRule,
        out: Tensor,
    ) -> None:
        without = replace(rule, skip=rule.skip * 0.0)
        super().scan(tokens, borders, layer, xbc, times, without, out)


class LeavesTheStateOfTheFirstLayer(WrappedRecurrence):
    """Where that of each layer goes."""

    def scan(
        self,
        tokens: object,
        borders: object,
        layer: int,
        xbc: Tensor,
        times: Tensor,
        rule: StateSpaceRule,
        out: Tensor,
    ) -> None:
        super().scan(tokens, borders, 0, xbc, times, rule, out)


MUTANTS = {
    "forgets_what_is_before_a_step": Mutant(
        "recurrence::test_convolution", recurrence=ForgetsWhatIsBeforeAStep
    ),
    "puts_in_no_more_than_all": Mutant(
        "recurrence::test_the_gated_delta_rule", recurrence=PutsInNoMoreThanAll
    ),
    "takes_no_keys_in_turns": Mutant(
        "recurrence::test_the_gated_delta_rule", recurrence=TakesNoKeysInTurns
    ),
    "limits_no_time": Mutant("recurrence::test_state_spaces", recurrence=LimitsNoTime),
    "skips_nothing": Mutant("recurrence::test_state_spaces", recurrence=SkipsNothing),
    "leaves_the_state_of_the_first_layer": Mutant(
        "recurrence::test_state_spaces", recurrence=LeavesTheStateOfTheFirstLayer
    ),
}
