"""Faults of mixtures of experts."""

from dataclasses import replace

import torch
from torch import Tensor

from kvrt.spi import Experts, Router
from kvrt.wrappers.wrapper import WrappedExpertOps


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
