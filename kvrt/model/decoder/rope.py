"""Tables of the rotary position embedding (Su et al. 2021, arXiv 2104.09864).

At position p, the pair (x_i, x_{i + dims/2}) of a head is rotated by the angle p * f_i, where dims
is how many of its dimensions are rotated:

    f_i = theta ^ (-2 i / dims)
"""

import math
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kvrt.model.decoder.pieces import pieces
from kvrt.model.spec import RopeSpec
from kvrt.spi import AttentionBatch, Rotation


def for_context(rope: RopeSpec, head_dim: int, positions: int) -> RopeSpec:
    """The rotation of a runtime whose longest context has `positions` tokens.

    Dynamic scaling (NTK) makes the base larger as soon as a text outgrows the length of training.
    transformers computes it anew for each length, and leaves the keys of earlier tokens as they
    were rotated; then what a token sees depends on how its text was cut into steps. Here one base,
    that of the longest context, serves all texts, so that keys can be cached and shared. It is as
    trained as long as `positions` does not exceed the length of training. LongRoPE has two lists of
    divisors, and one is chosen likewise.
    """
    long = positions > rope.original_positions
    if rope.kind == "longrope":
        divisors = rope.long_divisors if long else rope.divisors
        return replace(rope, kind="listed", divisors=divisors, long_divisors=())
    if rope.kind != "dynamic" or not long:
        return rope
    stretch = rope.factor * positions / rope.original_positions - (rope.factor - 1)
    dims = rope.width(head_dim)
    return RopeSpec(rope.theta * stretch ** (dims / (dims - 2)), dims=rope.dims)


BLOCK = 8192
"""Positions that a table grows by at least. It is at most 8 MiB for so many, and few texts are
longer; a model's own limit may be 2^28."""


def rotation_bytes(dims: int, positions: int) -> int:
    """What the table of so many positions takes, of which each rotates `dims` dimensions."""
    return 4 * dims * positions


class RotationTable:
    """Cosines and sines of positions, of as many as a text has had so far.

    Frequencies and angles are float32, as in the implementations that the supported models were
    trained with: rounding in the same places agrees with them at any position.

    Args:
        most: positions that there can ever be.
        device: where the table is to be.
    """

    def __init__(self, rope: RopeSpec, head_dim: int, most: int, device: str) -> None:
        self._rope = rope
        self._frequencies = inverse_frequencies(rope, head_dim)
        self._most = most
        self._device = device
        self.rotation = self._of(0, min(most, BLOCK))
        """float32 [positions, dims / 2]"""

    @property
    def positions(self) -> int:
        """How many it has."""
        return self.rotation.cos.shape[0]

    def select(self, positions: NDArray[np.int64], into: Rotation) -> None:
        """Write the rows of some positions, [tokens], to `into`, which has as many rows."""
        most = int(positions.max(initial=0)) + 1
        if most > self.positions:
            self._grow(most)
        rows = torch.from_numpy(positions).to(self._device)
        for piece in pieces(len(rows), into.cos.shape[1], self._device):
            torch.index_select(self.rotation.cos, 0, rows[piece], out=into.cos[piece])
            torch.index_select(self.rotation.sin, 0, rows[piece], out=into.sin[piece])

    def select_each(
        self, positions: NDArray[np.int64], channels: NDArray[np.int64], into: Rotation
    ) -> None:
        """Likewise where pairs of a head are rotated by different positions.

        Args:
            positions: [kinds, tokens].
            channels: [dims / 2]; of which kind those of each pair are.
        """
        most = int(positions.max(initial=0)) + 1
        if most > self.positions:
            self._grow(most)
        for kind, own in enumerate(torch.from_numpy(positions).to(self._device)):
            pairs = torch.from_numpy(np.flatnonzero(channels == kind)).to(self._device)
            into.cos[:, pairs] = self.rotation.cos[own[:, None], pairs]
            into.sin[:, pairs] = self.rotation.sin[own[:, None], pairs]

    def _grow(self, positions: int) -> None:
        """Have so many at least: twice as many as before, so that it is seldom done."""
        blocks = -(-max(positions, 2 * self.positions) // BLOCK)
        more = self._of(self.positions, min(blocks * BLOCK, self._most))
        self.rotation = Rotation(
            cos=torch.cat((self.rotation.cos, more.cos)),
            sin=torch.cat((self.rotation.sin, more.sin)),
        )

    def _of(self, start: int, stop: int) -> Rotation:
        angles = torch.outer(torch.arange(start, stop, dtype=torch.float32), self._frequencies)
        return Rotation(
            cos=angles.cos().mul_(self._rope.attention_factor).to(self._device),
            sin=angles.sin_().mul_(self._rope.attention_factor).to(self._device),
        )


def positions_of(batch: AttentionBatch) -> NDArray[np.int64]:
    """The position of each of a batch's tokens in its text, [tokens].

    A token stands at the position after that of the token it follows. In line that is the one
    before it; with `parents`, its parent, so that rows of different branches share positions.
    """
    start = batch.query_start.numpy()
    counts = start[1:] - start[:-1]
    past = batch.context_len.numpy() - counts
    if batch.parents is None:
        positions = np.arange(start[-1], dtype=np.int64)
        positions += (past - start[:-1]).repeat(counts)
        return positions
    of_rows: list[int] = []
    parents = batch.parents.tolist()
    for before, row, stop in zip(past.tolist(), start.tolist(), start[1:].tolist(), strict=False):
        for parent in parents[row:stop]:
            of_rows.append(before if parent < 0 else of_rows[row + parent] + 1)
    return np.array(of_rows, np.int64)


def inverse_frequencies(rope: RopeSpec, head_dim: int) -> Tensor:
    """The inverse frequencies, stretched as the spec says: float32 [dims / 2]."""
    dims = rope.width(head_dim)
    wavelengths = _wavelengths(rope, dims)
    frequencies = 1.0 / wavelengths
    if rope.kind == "linear":
        return frequencies / rope.factor
    if rope.kind == "listed":
        return 1.0 / (torch.tensor(rope.divisors) * wavelengths)
    if rope.kind == "proportional":
        return torch.where(torch.arange(dims // 2) < rope.turned, frequencies, 0.0)
    if rope.kind == "llama3":
        return _llama3(rope, frequencies)
    if rope.kind == "yarn":
        return _yarn(rope, dims)
    return frequencies


def _wavelengths(rope: RopeSpec, dims: int) -> Tensor:
    """Wavelengths divided by 2 pi."""
    exponents = torch.arange(0, dims, 2, dtype=torch.float32) / dims
    return torch.pow(rope.theta, exponents)


def _llama3(rope: RopeSpec, frequencies: Tensor) -> Tensor:
    """Llama 3.1: short waves stay, long ones are divided, those between are blended."""
    rotations = rope.original_positions * frequencies / (2 * math.pi)
    span = rope.high_freq_factor - rope.low_freq_factor
    kept = ((rotations - rope.low_freq_factor) / span).clamp(0.0, 1.0)
    return (1 - kept) * frequencies / rope.factor + kept * frequencies


def _yarn(rope: RopeSpec, dims: int) -> Tensor:
    """YaRN, section 3.2 of arXiv 2309.00071: a ramp over dimensions between two rotation counts."""

    def dimension(rotations: float) -> float:
        """The pair that turns this often within the original context."""
        ratio = rope.original_positions / (rotations * 2 * math.pi)
        return dims * math.log(ratio) / (2 * math.log(rope.theta))

    low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dims - 1)
    ramp = (torch.arange(dims // 2, dtype=torch.float32) - low) / max(high - low, 0.001)
    kept = 1 - ramp.clamp(0.0, 1.0)
    wavelengths = _wavelengths(rope, dims)
    return (1 - kept) / (rope.factor * wavelengths) + kept / wavelengths
