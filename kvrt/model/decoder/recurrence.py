"""`kvrt.spi.Recurrence` in torch's own operators, on any device."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kvrt.model.decoder.branches import PLAIN, sigmoid
from kvrt.spi import DeltaRule, StateActivation, StateBatch


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
        for token in range(len(qkv)):
            made = _step(tokens, borders, layer, token, qkv[token].float(), gates[token], rule)
            out[token] = made.flatten()


def _step(
    tokens: TorchPlan,
    borders: TorchPlan,
    layer: int,
    token: int,
    qkv: Tensor,
    gates: Tensor,
    rule: DeltaRule,
) -> Tensor:
    """What a token is given: [value_heads, value_dim]. Its operators are of shapes that its
    position alone says; sums of products are no products of matrices, whose bits depend on where
    these lie."""
    heads, (keys, values) = rule.value_heads, (rule.key_dim, rule.value_dim)
    wide = rule.key_heads * keys
    q, k = (_unit(part.view(rule.key_heads, keys)) for part in qkv[: 2 * wide].chunk(2))
    own = heads // rule.key_heads
    k_heads = k.repeat_interleave(own, 0)
    q_heads = q.repeat_interleave(own, 0) * keys**-0.5
    beta, a = sigmoid(gates[:heads].float()), gates[heads:].float()
    gone = -rule.decay_log.exp() * torch.nn.functional.softplus(a + rule.decay_bias)
    position, size = int(tokens.position[token]), tokens.layout.page_size
    slot = position % size
    page = tokens.page(token, layer)
    before = page[:slot].split_with_sizes((wide, heads * values, heads), 1)
    k_before = before[0].view(slot, rule.key_heads, keys).repeat_interleave(own, 1)
    u_before = before[1].view(slot, heads, values)
    if slot:
        gone = gone + before[2][-1]
    left = (gone - before[2]).exp()
    state = torch.zeros(heads, keys, values, device=qkv.device)
    if position >= size:
        state = borders.page(token, layer, back=1).view(heads, keys, values)

    def recalled(key: Tensor) -> Tensor:
        """What the tokens before put in under a key of each head."""
        old = (state * key.unsqueeze(2)).sum(1) * gone.exp().unsqueeze(1)
        like = (k_before * key).sum(2) * left
        return old + (u_before * like.unsqueeze(2)).sum(0)

    v = qkv[2 * wide :].view(heads, values)
    u = (v - recalled(k_heads)) * beta.unsqueeze(1)
    row = page[slot]
    row[:wide], row[wide:-heads], row[-heads:] = k.flatten(), u.flatten(), gone
    if slot == size - 1:
        kept = state * gone.exp().view(-1, 1, 1)
        for key, new, share in zip(k_before, u_before, left, strict=True):
            kept += key.unsqueeze(2) * (new * share.unsqueeze(1)).unsqueeze(1)
        kept += k_heads.unsqueeze(2) * u.unsqueeze(1)
        borders.page(token, layer)[0] = kept.flatten()
    found: Tensor = recalled(q_heads) + u * (k_heads * q_heads).sum(1).unsqueeze(1)
    return found


def _unit(heads: Tensor) -> Tensor:
    return torch.mul(heads, heads.square().sum(-1, keepdim=True).add_(1e-6).rsqrt_())
