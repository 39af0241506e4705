"""Faults of mixtures of experts."""

from dataclasses import replace

import torch
from torch import Tensor

from kvrt.spi import Experts, Router
from kvrt.testing.mutants.mutant import Mutant
from kvrt.wrappers.operators import WrappedExpertOps


class _RoutesByAnother(WrappedExpertOps):
    def route(
        self,
        logits: Tensor,
        router: Router,
        correction: Tensor | None,
        chosen: Tensor,
        weights: Tensor,
    ) -> None:
        super().route(logits, self.changed(router), correction, chosen, weights)

    def changed(self, router: Router) -> Router:
        raise NotImplementedError


class ForgetsToRenormalise(_RoutesByAnother):
    def changed(self, router: Router) -> Router:
        return replace(router, renormalise=False)


class IgnoresGroups(_RoutesByAnother):
    def changed(self, router: Router) -> Router:
        return replace(router, groups=1, groups_chosen=1)


class TakesGroupsByTheirBest(_RoutesByAnother):
    def changed(self, router: Router) -> Router:
        return replace(router, group_score="best")


class ScalesNoWeights(_RoutesByAnother):
    def changed(self, router: Router) -> Router:
        return replace(router, scale=1.0)


class DividesByWhateverTheSumIs(_RoutesByAnother):
    def changed(self, router: Router) -> Router:
        return replace(router, least=0.0)


class IgnoresTheCorrection(WrappedExpertOps):
    def route(
        self,
        logits: Tensor,
        router: Router,
        correction: Tensor | None,
        chosen: Tensor,
        weights: Tensor,
    ) -> None:
        super().route(logits, router, None, chosen, weights)


class WeighsWithTheCorrection(WrappedExpertOps):
    def route(
        self,
        logits: Tensor,
        router: Router,
        correction: Tensor | None,
        chosen: Tensor,
        weights: Tensor,
    ) -> None:
        super().route(logits, router, correction, chosen, weights)
        if correction is not None:
            weights.add_(correction[chosen.long()])


class TakesTheLastOfEquals(WrappedExpertOps):
    def route(
        self,
        logits: Tensor,
        router: Router,
        correction: Tensor | None,
        chosen: Tensor,
        weights: Tensor,
    ) -> None:
        later = torch.arange(logits.shape[1], device=logits.device) * 2.0**-20
        super().route(logits + later, router, correction, chosen, weights)


class ChoosesTheWorstFirst(WrappedExpertOps):
    def route(
        self,
        logits: Tensor,
        router: Router,
        correction: Tensor | None,
        chosen: Tensor,
        weights: Tensor,
    ) -> None:
        super().route(logits, router, correction, chosen, weights)
        chosen.copy_(chosen.flip(1))
        weights.copy_(weights.flip(1))


class _MixesOthers(WrappedExpertOps):
    def mix(
        self,
        x: Tensor,
        experts: Experts,
        chosen: Tensor,
        weights: Tensor,
        residual: Tensor | None,
        out: Tensor,
    ) -> None:
        super().mix(x, self.experts(experts), *self.choice(chosen, weights), residual, out)

    def experts(self, experts: Experts) -> Experts:
        return experts

    def choice(self, chosen: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        return chosen, weights


class AddsInTheOrderOfExperts(_MixesOthers):
    def choice(self, chosen: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        order = chosen.argsort(1)
        return chosen.gather(1, order), weights.gather(1, order)


class SwapsWeights(_MixesOthers):
    def choice(self, chosen: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        return chosen, weights.flip(1).contiguous()


class ForgetsTheLastExpert(_MixesOthers):
    def choice(self, chosen: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        return chosen[:, :-1].contiguous(), weights[:, :-1].contiguous()


class ForgetsTheBiasOfDown(_MixesOthers):
    def experts(self, experts: Experts) -> Experts:
        return replace(experts, down_bias=None)


class SharesTheFirstBias(_MixesOthers):
    def experts(self, experts: Experts) -> Experts:
        bias = experts.gate_up_bias
        if bias is None:
            return experts
        return replace(experts, gate_up_bias=bias[:1].expand_as(bias).contiguous())


class CutsNothing(_MixesOthers):
    def experts(self, experts: Experts) -> Experts:
        return replace(experts, limit=1e30)


class ForgetsWhatIsAddedTo(WrappedExpertOps):
    def mix(
        self,
        x: Tensor,
        experts: Experts,
        chosen: Tensor,
        weights: Tensor,
        residual: Tensor | None,
        out: Tensor,
    ) -> None:
        super().mix(x, experts, chosen, weights, None, out)


class MixesManyOtherwise(WrappedExpertOps):
    """With other bits, where there are many tokens."""

    def mix(
        self,
        x: Tensor,
        experts: Experts,
        chosen: Tensor,
        weights: Tensor,
        residual: Tensor | None,
        out: Tensor,
    ) -> None:
        super().mix(x, experts, chosen, weights, residual, out)
        if len(x) > 100:
            out.mul_(1 + 2.0**-20)


MUTANTS = {
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
}
