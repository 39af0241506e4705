"""How a tensor's rows lie in its file, where that is not as the decoder has them."""

from typing import NamedTuple

from torch import Tensor

from kvrt.model.names import RowOrder
from kvrt.model.spec import ModelSpec
from kvrt.model.weights import Part


class Rows(NamedTuple):
    """Rows that are to be put in order.

    Args:
        order: as `names.RowOrder` has it.
        heads: how many there are (pairs, heads).
        dims: how many of each head's rows, the first ones, are in pairs.
    """

    order: RowOrder
    heads: int = 0
    dims: int = 0

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
        for head in rows.view(self.heads, -1, *rows.shape[1:]):
            first = head[: self.dims]
            pairs = first.view(-1, 2, *rows.shape[1:])
            first.copy_(pairs.transpose(0, 1).reshape(first.shape))


def rows_of(part: Part, order: RowOrder, spec: ModelSpec) -> Rows | None:
    """How the rows of a tensor lie; None: in their order."""
    if order == "pairs":
        heads = {"q": spec.heads, "k": spec.kv_heads}[part.kind]
        return Rows(order, heads, spec.rope.width(spec.head_dim))
    if order == "heads":
        return Rows(order, spec.heads)
    if order == "turns" or (order == "less_one" and part.name.endswith(".weight")):
        return Rows(order)
    return None
