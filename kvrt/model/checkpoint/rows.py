"""How a tensor's rows lie in its file, where that is not as the decoder has them."""

from typing import NamedTuple

import torch
from torch import Tensor

from kvrt.model.spec import ModelSpec
from kvrt.model.states import GatedDelta
from kvrt.model.weights.naming import RowOrder
from kvrt.model.weights.weights import Part


class Rows(NamedTuple):
    """Rows that are to be put in order.

    Args:
        order: as `names.RowOrder` has it.
        heads: how many there are (pairs, heads, absorbed).
        dims: how many of each head's rows are in pairs; or are of its key (absorbed).
        first: the first of those in pairs.
        sizes: how many rows each part of a head has (heads).
    """

    order: RowOrder
    heads: int = 0
    dims: int = 0
    first: int = 0
    sizes: tuple[int, ...] = ()

    def put_in_order(self, rows: Tensor) -> None:
        """Put a tensor in order, in place: its numbers, or the codes that its rows are."""
        if self.order == "less_one":
            rows.add_(1.0)
            return
        if self.order == "logged":
            rows.neg_().log_()
            return
        if self.order == "turns":
            turns = rows.view(-1, 2, *rows.shape[1:])
            rows.copy_(turns.transpose(0, 1).reshape(rows.shape))
            return
        if self.order == "heads":
            parts = rows.view(self.heads, -1, *rows.shape[1:]).split_with_sizes(self.sizes, 1)
            rows.copy_(torch.cat([part.flatten(0, 1) for part in parts]))
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
        return Rows(order, *_parts(part.kind, spec))
    if order in ("turns", "logged") or (order == "less_one" and part.name.endswith(".weight")):
        return Rows(order)
    return None


def _parts(kind: str, spec: ModelSpec) -> tuple[int, int, int, tuple[int, ...]]:
    """The fields of `Rows`: heads, and the rows of each part of one."""
    if kind in ("q", "qkv"):  # its query and its gate, or its query, key and value
        return spec.heads, 0, 0, (spec.head_dim,) * (2 if kind == "q" else 3)
    shape = spec.recurrence
    assert isinstance(shape, GatedDelta)
    each = shape.value_heads // shape.key_heads
    keys, values = (shape.key_dim,) * 2, (each * shape.value_dim,) * 2
    return shape.key_heads, 0, 0, (*keys, *values) if kind == "mixer_in" else (each, each)
