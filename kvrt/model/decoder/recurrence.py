"""`kvrt.spi.Recurrence` in torch's own operators, on any device."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kvrt.model.decoder.branches import PLAIN, sigmoid
from kvrt.spi import DeltaRule, StateActivation, StateBatch, StateSpaceRule


class TorchPlan:
    """Which rows of the pages a step's tokens have, and those before them.

    Args:
        batch: of the step.
    """

    def __init__(self, batch: StateBatch) -> None:
        layout = batch.layout
        self.device = batch.kv.device
        whole = batch.kv.numel() // layout.width * layout.width
        self.rows = batch.kv[:whole].view(-1, layout.width)
        self.layout = layout
        self.table = batch.page_table.numpy()
        starts, contexts = batch.query_start.numpy(), batch.context_len.numpy()
        counts = np.diff(starts)
        self.sequence = np.repeat(np.arange(len(counts)), counts)
        first = contexts - counts
        self.position = np.arange(starts[-1]) - starts[self.sequence] + first[self.sequence]
        self._known: dict[int, tuple[Tensor, Tensor]] = {}

    def before(self, back: int) -> tuple[Tensor, Tensor]:
        """The rows of the first layer that tokens so far before each token have; and where there is
        such a token: bool [tokens, 1]. Where there is none it is the token's own row."""
        if back not in self._known:
            there = self.position >= back
            rows = self._rows(np.where(there, self.position - back, self.position))
            self._known[back] = (
                torch.from_numpy(rows).to(self.device),
                torch.from_numpy(there).unsqueeze(1).to(self.device),
            )
        return self._known[back]

    def _rows(self, position: NDArray[np.int64]) -> NDArray[np.int64]:
        layout = self.layout
        pages = self.table[self.sequence, position // layout.page_size].astype(np.int64)
        return pages * (layout.layers * layout.rows) + position % layout.page_size

    def of_layer(self, layer: int) -> int:
        """What is added to a row of the first layer."""
        return layer * self.layout.rows

    def page(self, token: int, layer: int, back: int = 0) -> Tensor:
        """A layer's rows in the page of a token, or in the one before that."""
        layout = self.layout
        at = int(self.position[token]) // layout.page_size - back
        page = int(self.table[self.sequence[token], at])
        first = (page * layout.layers + layer) * layout.rows
        return self.rows[first : first + layout.rows]


class TorchRecurrence:
    """Of operators whose bits do not depend on how many tokens there are."""

    def plan(self, batch: StateBatch) -> TorchPlan:
        return TorchPlan(batch)

    def convolve(
        self,
        plan: object,
        layer: int,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        activation: StateActivation,
        out: Tensor,
    ) -> None:
        assert isinstance(plan, TorchPlan)
        first, kernel = plan.of_layer(layer), weight.shape[1]
        own, _ = plan.before(0)
        plan.rows.index_copy_(0, own + first, x)
        total = torch.zeros(x.shape, device=x.device)
        for back in range(kernel - 1, 0, -1):
            rows, there = plan.before(back)
            past = plan.rows.index_select(0, rows + first).float()
            total += torch.where(there, past, 0.0) * weight[:, kernel - 1 - back]
        total += x.float() * weight[:, kernel - 1]
        if bias is not None:
            total += bias
        out.copy_(total if activation == "none" else PLAIN[activation](total))

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
        assert isinstance(tokens, TorchPlan)
        assert isinstance(borders, TorchPlan)
        shape = _Shape(
            rule.key_heads,
            rule.value_heads,
            rule.key_dim,
            rule.value_dim,
            rule.decays,
            rule.tiled,
        )
        wide = rule.key_heads * rule.key_dim
        for token in range(len(qkv)):
            q, k, v = qkv[token].float().split_with_sizes((wide, wide, len(qkv[token]) - 2 * wide))
            k, q = (_unit(part.view(rule.key_heads, rule.key_dim)) for part in (k, q))
            b, a = (
                gates[token]
                .float()
                .split_with_sizes((rule.value_heads, rule.value_heads * rule.decays))
            )
            gone = torch.nn.functional.softplus(a + rule.decay_bias).view(shape.heads, -1)
            before = _Before(tokens, borders, layer, token, shape, -_rates(rule.decay_log) * gone)
            known = before.recall(shape.of_heads(k))
            u = (v.view(shape.heads, -1) - known) * (rule.strength * sigmoid(b)).unsqueeze(1)
            out[token] = before.put(k, u, q * rule.key_dim**-0.5).flatten()

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
        assert isinstance(tokens, TorchPlan)
        assert isinstance(borders, TorchPlan)
        shape = _Shape(rule.groups, rule.heads, rule.state_dim, rule.head_dim)
        wide = rule.groups * rule.state_dim
        for token in range(len(xbc)):
            x, b, c = xbc[token].float().split_with_sizes((len(xbc[token]) - 2 * wide, wide, wide))
            x, b, c = x.view(rule.heads, -1), b.view(rule.groups, -1), c.view(rule.groups, -1)
            time = torch.nn.functional.softplus(times[token].float() + rule.time_bias)
            time = time.clamp(*rule.limits).unsqueeze(1)
            before = _Before(tokens, borders, layer, token, shape, -_rates(rule.decay_log) * time)
            read = before.put(b, x * time, c)
            out[token] = (read + x * rule.skip.unsqueeze(1)).flatten()


class _Shape(NamedTuple):
    """Of states: heads of keys and of values, the widths of both, decays of a value head; whether
    these take the keys in turns."""

    key_heads: int
    heads: int
    keys: int
    values: int
    decays: int = 1
    tiled: bool = False

    def of_heads(self, keys: Tensor) -> Tensor:
        """Each value head's key: [..., heads, keys]."""
        each = self.heads // self.key_heads
        if self.tiled:
            return torch.cat([keys] * each, -2)
        return keys.repeat_interleave(each, -2)


class _Before:
    """What a token finds of those before it: of its page, and what the page before that left.

    Its operators are of shapes that its position alone says; sums of products are no products of
    matrices, whose bits depend on where these lie.

    Args:
        gone: the logarithm of what the token leaves of what was there: [heads, decays].
    """

    def __init__(
        self,
        tokens: TorchPlan,
        borders: TorchPlan,
        layer: int,
        token: int,
        shape: _Shape,
        gone: Tensor,
    ) -> None:
        size = tokens.layout.page_size
        position = int(tokens.position[token])
        slot = position % size
        page = tokens.page(token, layer)
        sizes = (shape.key_heads * shape.keys, shape.heads * shape.values, gone.numel())
        k, u, others = page[:slot].split_with_sizes(sizes, 1)
        self._shape, self._row, self._sizes, self._own = shape, page[slot], sizes, gone
        others = others.view(slot, shape.heads, shape.decays)
        # From the nearest one back: a sum of few numbers, and no difference of two large ones.
        since = torch.cat((gone.unsqueeze(0), others.flip(0))).cumsum(0).exp()
        self._left = since[-1]
        keys = shape.of_heads(k.view(slot, shape.key_heads, shape.keys))
        self._keys = keys * since[:-1].flip(0)
        self._u = u.view(slot, shape.heads, shape.values)
        self._state = torch.zeros(shape.heads, shape.keys, shape.values, device=gone.device)
        if position >= size:
            self._state = borders.page(token, layer, back=1).view(self._state.shape)
        self._after = borders.page(token, layer)[0] if slot == size - 1 else None

    def recall(self, key: Tensor) -> Tensor:
        """What was put in under a key of each head: [heads, values]."""
        old = (self._state * (key * self._left).unsqueeze(2)).sum(1)
        like = (self._keys * key).sum(2)
        return old + (self._u * like.unsqueeze(2)).sum(0)

    def put(self, key: Tensor, u: Tensor, query: Tensor) -> Tensor:
        """Put u in under a key; what there is then under a query: [heads, values]."""
        row, (wide, values, _) = self._row, self._sizes
        row[:wide], row[wide : wide + values] = key.flatten(), u.flatten()
        row[wide + values :] = self._own.flatten()
        key, query = self._shape.of_heads(key), self._shape.of_heads(query)
        if self._after is not None:
            kept = self._state * self._left.unsqueeze(2)
            for other, new in zip(self._keys, self._u, strict=True):
                kept += other.unsqueeze(2) * new.unsqueeze(1)
            kept += key.unsqueeze(2) * u.unsqueeze(1)
            self._after.copy_(kept.flatten())
        return self.recall(query) + u * (key * query).sum(1).unsqueeze(1)


def _rates(decay_log: Tensor) -> Tensor:
    return decay_log.exp().unsqueeze(1)


def _unit(heads: Tensor) -> Tensor:
    return torch.mul(heads, heads.square().sum(-1, keepdim=True).add_(1e-6).rsqrt_())
