"""What layers have in place of attention, and what they keep of a text: values, with no torch."""

import math
from dataclasses import dataclass
from typing import Literal

GateActivation = Literal["silu", "sigmoid"]
Gating = Literal["normed", "before", "only"]
"""What is gated is then normed; or it is normed before; or gated only."""

Kept = Literal["window", "page", "border"]
"""What of the text before a token it needs: so many tokens, its own included; those of its page
before it; what the page before its own ended with."""


@dataclass(frozen=True, slots=True)
class MemoryGroup:
    """Layers that keep memory alike, in pages of their own.

    Args:
        layers: their numbers.
        window: a token needs what is kept of the last `window` positions, its own included; 0: of
            all.
        width: numbers that a recurrence keeps of a token, or with ``border`` of a page; 0: it is
            keys and values that are kept.
        kept: what is needed; `window` is for the first of them.
        exact: numbers are float32 whatever the model computes in.
    """

    layers: tuple[int, ...]
    window: int = 0
    width: int = 0
    kept: Kept = "window"
    exact: bool = False

    def reach(self, page_size: int) -> int:
        """The window, in pages of so many tokens."""
        if self.kept == "window":
            return self.window
        return page_size + (self.kept == "border")


@dataclass(frozen=True, slots=True)
class ShortConvolution:
    """What a layer has in place of attention (Liquid AI 2025, LFM2):

        b, c, x = in @ x
        x += out @ (c * convolved(b * x))

    where channels are convolved each with its own weights, over a token and those before it.

    Args:
        channels: as wide as the residual stream.
        kernel: how many tokens a token's convolution takes in, itself included; two or more.
        bias: the two products and the convolution have biases.
    """

    channels: int
    kernel: int
    bias: bool = False

    @property
    def made(self) -> int:
        """Numbers that are made of what a layer reads, for each token."""
        return 3 * self.channels

    @property
    def out(self) -> int:
        """Width of what its last product is of."""
        return self.channels

    @property
    def gates(self) -> int:
        """Numbers that say what is kept and taken in."""
        return 0

    @property
    def biases(self) -> tuple[bool, bool, bool]:
        """Whether its first product, its convolution and its last product have one."""
        return self.bias, self.bias, self.bias

    def memory(self, layers: tuple[int, ...]) -> tuple[MemoryGroup, ...]:
        """What such layers keep: of each token, ``b * x``."""
        return (MemoryGroup(layers, self.kernel, self.channels),)


@dataclass(frozen=True, slots=True)
class GatedDelta:
    """What a layer has in place of attention (Yang et al. 2024, arXiv 2412.06464):

        q, k, v, z = in @ x                 q, k and v are convolved, and silu is taken of them
        b, a = gates @ x
        s = exp(-exp(decay_log) * softplus(a + decay_bias)) * s
        s += outer(k, sigmoid(b) * (v - s.T @ k))
        x += out @ (norm(s.T @ q) * silu(z))

    with a state s of each value head. Queries and keys are of length 1, queries then multiplied by
    key_dim ** -0.5.

    In others (Moonshot AI 2025, arXiv 2510.26692) each of a key's numbers has an a of its own, and
    a and z are made of vectors: ``z, a = z_up @ z_down @ x, a_up @ a_down @ x``.

    Args:
        key_heads: of queries and keys.
        value_heads: a multiple; head h has the key of head ``h // (value_heads // key_heads)``.
        key_dim: width of a query or key.
        value_dim: width of a value.
        kernel: how many tokens a token's convolution takes in, itself included; two or more.
        by_number: each of a key's numbers decays by itself, and not each head.
        rank: width of those vectors; 0: there are none.
        tiled: head h has the key of head ``h % key_heads`` instead.
        strength: multiplies what is put in: ``strength * sigmoid(b)``.
        gate: what is taken of z.
        eps: added to the mean square in its norm; 0: as in others.
    """

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    kernel: int
    by_number: bool = False
    rank: int = 0
    strength: float = 1.0
    gate: GateActivation = "silu"
    eps: float = 0.0
    tiled: bool = False

    @property
    def decays(self) -> int:
        """How many a value head has."""
        return self.key_dim if self.by_number else 1

    @property
    def keys(self) -> int:
        """Numbers of a token's keys."""
        return self.key_heads * self.key_dim

    @property
    def out(self) -> int:
        """Numbers of a token's values; its last product is of as many."""
        return self.value_heads * self.value_dim

    @property
    def channels(self) -> int:
        """What is convolved."""
        return 2 * self.keys + self.out

    @property
    def made(self) -> int:
        """Numbers that are made of what a layer reads, for each token."""
        return self.channels + (2 * self.rank or self.out)

    @property
    def gates(self) -> int:
        """Numbers that say what is kept and taken in."""
        return self.value_heads * (1 + self.decays)

    @property
    def biases(self) -> tuple[bool, bool, bool]:
        """As with `ShortConvolution`."""
        return False, False, False

    def memory(self, layers: tuple[int, ...]) -> tuple[MemoryGroup, ...]:
        """What such layers keep: of each token what is convolved; then its keys, what it puts into
        the state, and how much it leaves there; and the state at a page's end."""
        token = self.keys + self.out + self.value_heads * self.decays
        state = self.value_heads * self.key_dim * self.value_dim
        return _of_states(layers, self.kernel, self.channels, token, state)


@dataclass(frozen=True, slots=True)
class StateSpace:
    """What a layer has in place of attention (Dao and Gu 2024, arXiv 2405.21060):

        z, x, b, c, t = in @ x           x, b and c are convolved, and silu is taken of them
        t = softplus(t + time_bias)
        s = exp(-exp(decay_log) * t) * s + outer(b, t * x)
        x += out @ norm((s.T @ c + skip * x) * silu(z))

    with a state s of each head. Norms are of the heads that have a b and c together.

    Args:
        groups: of heads, each with a b and a c.
        heads: a multiple; head h has those of group ``h // (heads // groups)``.
        state_dim: width of a b or c.
        head_dim: width of an x.
        kernel: how many tokens a token's convolution takes in, itself included; two or more.
        bias: the first product has one.
        out_bias: the last product has one.
        conv_bias: the convolution has one.
        gating: what becomes of z.
        limits: the shortest and the longest t.
        scales: of z, x, b, c and t, before anything else; (): they are as they are.
    """

    groups: int
    heads: int
    state_dim: int
    head_dim: int
    kernel: int
    bias: bool = False
    out_bias: bool = False
    conv_bias: bool = True
    gating: Gating = "normed"
    limits: tuple[float, float] = (0.0, math.inf)
    scales: tuple[float, ...] = ()

    @property
    def keys(self) -> int:
        """Numbers of a token's b, or c."""
        return self.groups * self.state_dim

    @property
    def out(self) -> int:
        """Numbers of a token's x; its last product is of as many."""
        return self.heads * self.head_dim

    @property
    def channels(self) -> int:
        """What is convolved."""
        return self.out + 2 * self.keys

    @property
    def made(self) -> int:
        """Numbers that are made of what a layer reads, for each token."""
        return self.out + self.channels + self.heads

    @property
    def gates(self) -> int:
        """Numbers that say what is kept, and are made by themselves."""
        return 0

    @property
    def biases(self) -> tuple[bool, bool, bool]:
        """As with `ShortConvolution`."""
        return self.bias, self.conv_bias, self.out_bias

    def memory(self, layers: tuple[int, ...]) -> tuple[MemoryGroup, ...]:
        """What such layers keep: as with `GatedDelta`."""
        token, state = self.keys + self.out + self.heads, self.out * self.state_dim
        return _of_states(layers, self.kernel, self.channels, token, state)


def _of_states(
    layers: tuple[int, ...], kernel: int, channels: int, token: int, state: int
) -> tuple[MemoryGroup, ...]:
    return (
        MemoryGroup(layers, kernel, channels),
        MemoryGroup(layers, 1, token, "page", exact=True),
        MemoryGroup(layers, 1, state, "border", exact=True),
    )


Recurrent = ShortConvolution | GatedDelta | StateSpace
