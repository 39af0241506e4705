"""Layers that go over a sequence token by token, and what a device may offer for them.

What such a layer keeps of a sequence is in pages, as keys and values are: numbers of each token,
which later tokens need for a while, and states, of which there is one for each page: what the
layer's state was after the page's last token.
"""

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from kvrt.spi.batch import AttentionBatch
from kvrt.spi.layout import ITEM_BYTES, DType, KVLayout

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class StateLayout:
    """Where the numbers of a token are: rows of `width`, ``[page][layer][slot]``, without gaps.

    Args:
        format: what they are.
        layers: that have pages together.
        width: numbers of a token in each layer.
        page_size: tokens in a page.
        of_pages: there is one row for a page, and not one for each token.
    """

    format: DType
    layers: int
    width: int
    page_size: int
    of_pages: bool = False

    @property
    def rows(self) -> int:
        """Rows of a layer in a page."""
        return 1 if self.of_pages else self.page_size

    @property
    def storage(self) -> DType:
        """The dtype of the tensor over the pages."""
        return self.format

    @property
    def layer_stride(self) -> int:
        """Items from one layer to the next."""
        return self.rows * self.width

    @property
    def page_stride(self) -> int:
        """Items from one page to the next."""
        return self.layers * self.layer_stride

    @property
    def page_bytes(self) -> int:
        return self.page_stride * ITEM_BYTES[self.format]


PageLayout = KVLayout | StateLayout
"""What is where in the pages of a group of layers."""


@dataclass(frozen=True, slots=True)
class StateBatch:
    """The sequences of one step, as in `AttentionBatch`, for layers with a recurrence.

    Each token follows the one before it. Nothing is read that lies before what a sequence's first
    new token needs, neither pages nor their entries of the page table.

    Args:
        kv: 1-D, `layout.storage`, over the whole span (`VirtualMemory.tensor`).
        layout: where in `kv` a token's numbers are.
        page_table: int32 [sequences, max pages], on the host, contiguous.
        query_start: int32 [sequences + 1], on the host, begins with 0, never decreases.
        context_len: int32 [sequences], on the host, this step's tokens included.
    """

    kv: "Tensor" = field(repr=False)  # printing it would read the holes
    layout: StateLayout
    page_table: "Tensor"
    query_start: "Tensor"
    context_len: "Tensor"


StepBatch = AttentionBatch | StateBatch
"""The sequences of a step, as layers see them whose pages are in one place."""

StateActivation = Literal["none", "silu"]


@dataclass(frozen=True, slots=True)
class DeltaRule:
    """The gated delta rule (Yang et al. 2024, arXiv 2412.06464) with its weights, in float32.

    Each value head has a state s, [key_dim, value_dim], at first 0. At each token

        s = decay * s
        s = s + outer(k, beta * (v - s.T @ k))
        out = s.T @ q

    with ``decay = exp(g)``, ``g = -exp(decay_log) * softplus(a + decay_bias)`` and
    ``beta = strength * sigmoid(b)``. Queries and keys are first divided by the root of the sum of
    their squares and 1e-6, and queries multiplied by ``key_dim ** -0.5``. A decay is of a head, or
    each of a key's numbers has its own (Moonshot AI 2025, arXiv 2510.26692).

    Args:
        key_heads: of queries and keys.
        value_heads: a multiple; head h has the key of head ``h // (value_heads // key_heads)``.
        key_dim: width of a query or key.
        value_dim: width of a value.
        decay_log: float32 [value_heads], on the device.
        decay_bias: float32 [value_heads * decays], likewise.
        decays: of a head: 1 or `key_dim`.
        strength: how much is put in at most.
        tiled: head h has the key of head ``h % key_heads`` instead.
    """

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    decay_log: "Tensor"
    decay_bias: "Tensor"
    decays: int = 1
    strength: float = 1.0
    tiled: bool = False


@dataclass(frozen=True, slots=True)
class StateSpaceRule:
    """A selective state space (Dao and Gu 2024, arXiv 2405.21060) with its weights, in float32.

    Each head has a state s, [state_dim, head_dim], at first 0. At each token

        s = exp(-exp(decay_log) * t) * s + outer(b, t * x)
        out = s.T @ c + skip * x

    with a time ``t = softplus(time + time_bias)``, within `limits`.

    Args:
        groups: of heads, each with a b and a c.
        heads: a multiple; head h has those of group ``h // (heads // groups)``.
        state_dim: width of a b or c.
        head_dim: width of an x.
        decay_log: float32 [heads], on the device.
        time_bias: likewise.
        skip: likewise.
        limits: the shortest and the longest time.
    """

    groups: int
    heads: int
    state_dim: int
    head_dim: int
    decay_log: "Tensor"
    time_bias: "Tensor"
    skip: "Tensor"
    limits: tuple[float, float] = (0.0, math.inf)


@runtime_checkable
class Recurrence(Protocol):
    """Recurrent layers over pages. Its calls are compute.

    In a step: `plan` once for all layers whose pages are in one place, then its calls for each
    layer. Tensors are [tokens, ...] in a compute dtype; a token's numbers are contiguous, rows may
    have any stride. Weights are float32 and contiguous.
    """

    def plan(self, batch: StateBatch) -> object:
        """Prepare what all layers share, e.g. copy the page table to the device. The caller uses
        it until the next step."""

    def convolve(
        self,
        plan: object,
        layer: int,
        x: "Tensor",
        weight: "Tensor",
        bias: "Tensor | None",
        activation: StateActivation,
        out: "Tensor",
    ) -> None:
        """Convolve each channel along its sequence, causally:

            out[t, c] = act(bias[c] + sum over j of weight[c, j] * x[t - kernel + 1 + j, c])

        in float32, in the order of j, product by product, each operation rounded; the bias comes
        last. What is before a sequence is 0.

        Stores x in the tokens' slots, rounded to the pages' format as x is, which it has. Tokens of
        earlier steps are read from theirs: the last ``kernel - 1`` before each of its new ones.

        Args:
            x: [tokens, layout.width].
            weight: [layout.width, kernel].
            bias: [layout.width].
            out: [tokens, layout.width], not x.
        """

    def delta(
        self,
        tokens: object,
        borders: object,
        layer: int,
        qkv: "Tensor",
        gates: "Tensor",
        rule: DeltaRule,
        out: "Tensor",
    ) -> None:
        """Go on with the gated delta rule, in float32.

        Within a page that begins with the state s, token t of it is computed from the tokens before
        it there. With ``d_tj = g_t + g_(t-1) + ... + g_(j+1)``, added up from the nearest one back,
        and d_t that of all:

            u_t = beta_t * (v_t - exp(d_t) * s.T @ k_t - sum of exp(d_tj) * (k_j . k_t) * u_j)
            out_t = exp(d_t) * s.T @ q_t + sum of exp(d_tj) * (k_j . q_t) * u_j, and its own

        and the page's last one leaves ``exp(d_t) * s + sum of exp(d_tj) * outer(k_j, u_j)``.
        So nothing is written twice, and a token's bits depend on its position alone.

        Args:
            tokens: the plan of pages with a row for each token: its keys, u and g of each head.
                Where each of a key's numbers decays by itself, g has as many, and exp(d_tj)
                multiplies those of k_j.
            borders: the plan of pages with a row for each: the states of all heads. It is read of
                the page before each token's own, and written by a page's last token.
            qkv: [tokens, 2 * key_heads * key_dim + value_heads * value_dim]: queries, keys, values.
            gates: [tokens, value_heads * (1 + decays)]: b, then a.
            out: [tokens, value_heads * value_dim].
        """

    def scan(
        self,
        tokens: object,
        borders: object,
        layer: int,
        xbc: "Tensor",
        times: "Tensor",
        rule: StateSpaceRule,
        out: "Tensor",
    ) -> None:
        """Go on with a state space, in float32: as `delta`, with b in place of keys and c of
        queries, as they are, and ``u = t * x``. Last ``skip * x`` is added.

        Args:
            tokens: the plan of pages with a row for each token: its b, u and -exp(decay_log) * t of
                each head.
            borders: the plan of pages with a row for each: the states of all heads.
            xbc: [tokens, heads * head_dim + 2 * groups * state_dim]: x, b, c.
            times: [tokens, heads].
            out: [tokens, heads * head_dim].
        """
