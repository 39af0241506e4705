"""The experts of a layer that several ranks have some of.

Every rank knows what each token has chosen, and computes its own experts for the tokens that chose
them. What an expert gives for a token is computed by one rank, as one process would compute it, and
all have all of it before it is added up in the order of the choice: so sums have the bits that they
have on one rank. Where ranks need not be exact, each adds up its own, and these sums are added.
"""

import torch
from torch import Tensor

from kvrt.model.decoder.offloaded import added
from kvrt.model.shard import Shard
from kvrt.spi import Collective, ExpertOps, Experts


class Spread:
    """One layer's. It asks the host which experts are used.

    Args:
        experts: those of this rank.
        count: of all ranks.
        others: of the stage, this one among them.
        shard: which these are.
    """

    def __init__(self, experts: Experts, count: int, others: Collective, shard: Shard) -> None:
        self._experts = experts
        self._others = others
        self._exact = shard.exact
        self._own = shard.spans(count)

    def mix(
        self,
        ops: ExpertOps,
        x: Tensor,
        chosen: Tensor,
        weights: Tensor,
        residual: Tensor | None,
        out: Tensor,
    ) -> None:
        """As `kvrt.spi.ExpertOps.mix`; if exact, with the same bits."""
        tokens, each = chosen.shape
        wanted = chosen.flatten()
        places = [
            ((wanted >= own.start) & (wanted < own.stop)).nonzero()[:, 0] for own in self._own
        ]
        rank = self._others.rank
        own = places[rank]
        made = x.new_zeros(max(map(len, places)), out.shape[1])
        if len(own):
            at = (wanted[own] - self._own[rank].start).view(-1, 1)
            ones = torch.ones(len(own), 1, device=x.device)
            read = x.index_select(0, own // each)
            ops.mix(read, self._experts, at, ones, None, made[: len(own)])
        if not self._exact:
            parts = made[: len(own)].float() * weights.flatten()[own, None]
            total = torch.zeros(out.shape, device=x.device).index_add_(0, own // each, parts)
            self._others.all_reduce(total)
            out.copy_(total if residual is None else total.add_(residual))
            return
        results = x.new_empty(tokens * each, out.shape[1])
        for place, found in zip(places, self._others.all_gather(made), strict=True):
            results[place] = found[: len(place)]
        added(results.view(tokens, each, -1), weights, residual, out)
