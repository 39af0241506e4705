"""How a tensor's rows lie in its file, where that is not as the decoder has them."""

from typing import NamedTuple

import torch
from torch import Tensor

from kvrt.model.names import RowOrder
from kvrt.model.spec import ModelSpec
from kvrt.model.weights import Part


class Rows(NamedTuple):
    """Rows that are to be put in order.

    Args:
        order: as `names.RowOrder` has it.
        heads: how many there are (pairs, heads, absorbed).
        dims: how many of each head's rows are in pairs; or are of its key (absorbed).
        first: the first of those in pairs.
    """

    order: RowOrder
    heads: int = 0
    dims: int = 0
    first: int = 0

    def put_in_order(self, rows: Tensor) -> None:
        """Put a tensor in order, in place: its numbers, or the codes that its rows are."""
        if self.order == "less_one":
            rows.add_(1.0)
            return
        if self.order == "turns":
            turns = rows.view(-1, 2, *rows.shape[1:])
            rows.copy_(turns.transpose(0, 1).reshape(rows.shape))
            return
        if self.order == "heads":
            own = rows.view(self.heads, 3, -1, *rows.shape[1:])
            rows.copy_(own.transpose(0, 1).reshape(rows.shape))
            return
        if self.order == "absorbed":
            own = rows.view(self.heads, -1, rows.shape[1])
            keys, values = own[:, : self.dims].transpose(1, 2), own[:, self.dims :]
            rows.view(-1).copy_(torch.cat((keys.flatten(), values.flatten())))
            return
        for head in rows.view(self.heads, -1, *rows.shape[1:]):
            turned = head[self.first : self.first + self.dims]
            pairs = turned.view(-1, 2, *rows.shape[1:])
            turned.copy_(pairs.transpose(0, 1).reshape(turned.shape))


def rows_of(part: Part, order: RowOrder, spec: ModelSpec) -> Rows | None:
    """How the rows of a tensor lie; None: in their order."""
    if order == "pairs":
        heads = 1 if part.kind == "kv_down" else spec.kv_heads if part.kind == "k" else spec.heads
        dims = spec.rope.width(spec.head_dim)
        return Rows(order, heads, dims, part.shape[0] // heads - dims if spec.latent else 0)
    if order == "absorbed" and spec.latent:
        return Rows(order, spec.heads, spec.latent.plain)
    if order == "heads":
        return Rows(order, spec.heads)
    if order == "turns" or (order == "less_one" and part.name.endswith(".weight")):
        return Rows(order)
    return None
