"""The experts of a layer that are brought to memory as needed (`kvrt.model.offload`)."""

import numpy as np
import torch
from torch import Tensor

from kvrt.model.offload.pool import ExpertPool
from kvrt.spi import ExpertOps


class Offloaded:
    """One layer's. It asks the host which experts are used.

    Args:
        pool: brings them.
        layer: the layer.
    """

    def __init__(self, pool: ExpertPool, layer: int) -> None:
        self._pool = pool
        self._layer = layer

    def mix(
        self,
        ops: ExpertOps,
        x: Tensor,
        chosen: Tensor,
        weights: Tensor,
        residual: Tensor | None,
        out: Tensor,
    ) -> None:
        """As `kvrt.spi.ExpertOps.mix`, with the same bits, for any number of experts.

        Raises:
            WeightsUnreadable: one of them cannot be read.
        """
        pool, layer = self._pool, self._layer
        there = pool.experts(layer)
        wanted = chosen.cpu().numpy()
        used = np.unique(wanted).astype(np.int64)
        if len(used) <= there.count:
            at = _at(wanted, used, pool.bring(layer, used), chosen)
            ops.mix(x, there, at, weights, residual, out)
            return
        tokens, each = chosen.shape
        results = torch.empty(tokens * each, out.shape[1], dtype=x.dtype, device=x.device)
        used = pool.order(layer, used)
        for start in range(0, len(used), there.count):
            piece = np.sort(used[start : start + there.count])
            slots = np.flatnonzero(np.isin(wanted, piece))
            at = _at(wanted.reshape(-1)[slots], piece, pool.bring(layer, piece), chosen)
            rows = torch.from_numpy(slots).to(x.device)
            made = torch.empty(len(slots), out.shape[1], dtype=x.dtype, device=x.device)
            ones = torch.ones(len(slots), 1, device=x.device)
            ops.mix(x.index_select(0, rows // each), there, at.view(-1, 1), ones, None, made)
            results[rows] = made
        added(results.view(tokens, each, -1), weights, residual, out)


def _at(wanted: np.ndarray, experts: np.ndarray, places: np.ndarray, like: Tensor) -> Tensor:
    """The places of experts, in the shape of `wanted`.

    Args:
        experts: all that are wanted, in ascending order, and `places` those of each.
        like: of the dtype and on the device that they are to be.
    """
    found = places[np.searchsorted(experts, wanted)]
    return torch.from_numpy(found).to(like.device, like.dtype)


def added(results: Tensor, weights: Tensor, residual: Tensor | None, out: Tensor) -> None:
    """Each token's sum in the operator's own order; `results` is [tokens, chosen, features]."""
    total = results[:, 0].float() * weights[:, :1]
    for slot in range(1, results.shape[1]):
        total.add_(results[:, slot].float() * weights[:, slot : slot + 1])
    out.copy_(total if residual is None else total.add_(residual))
