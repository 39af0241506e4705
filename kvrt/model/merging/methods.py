"""How the tensors of one name become one. All is float32, and element by element but for SLERP's
angle and TIES' threshold, which are those of a whole tensor."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kvrt.errors import ConfigError
from kvrt.model.merging import Method

WITH_BASE = ("ties", "dare")
"""They merge what each model adds to the one that all were made from."""

PARALLEL = 0.9995
"""Cosine of an angle so small that SLERP is linear."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How models are merged.

    Args:
        method: ``linear``, the weighted mean; ``slerp``, of two models, along the arc between them
            (Shoemake 1985); ``ties`` (Yadav et al. 2023, arXiv 2306.01708), of what each adds to
            the base, the largest, where most agree on the sign; ``dare`` (Yu et al. 2023, arXiv
            2311.03099), a random part of that, made larger by as much as was left out.
        weights: of the models; they are divided by their sum.
        density: how much is kept of what a model adds (ties, dare).
        scale: multiplies what is added to the base (ties, dare).
        seed: of what is left out (dare).
    """

    method: Method
    weights: tuple[float, ...]
    density: float = 0.5
    scale: float = 1.0
    seed: int = 0

    def check(self, models: int, *, base: bool) -> None:
        """Raise `ConfigError` unless so many models, with a base or not, can be merged so."""
        if len(self.weights) != models:
            raise ConfigError(f"{models} models, but {len(self.weights)} weights")
        if self.method == "slerp" and models != 2:
            raise ConfigError(f"slerp is of two models, and these are {models}")
        if base != (self.method in WITH_BASE):
            needs = "needs the model that all were made from" if not base else "takes no base"
            raise ConfigError(f"{self.method} {needs}", fix="see --base")
        if models < 2 and not base:
            raise ConfigError("there is one model, and nothing to merge it with")
        if not sum(self.weights) > 0 or min(self.weights) < 0:
            raise ConfigError("weights must be 0 or more, and not all 0")
        if not 0 < self.density <= 1:
            raise ConfigError(f"density is {self.density:g}; it must be above 0 and at most 1")

    def merge(self, name: str, tensors: Sequence[Tensor], base: Tensor | None) -> Tensor:
        """One tensor of several.

        Args:
            name: what all are called.
            tensors: float32, of one shape.
            base: likewise, of the model that all were made from.
        """
        total = sum(self.weights)
        shares = [weight / total for weight in self.weights]
        if base is None:
            return _OF_MODELS[self.method](tensors, shares)
        added = [tensor - base for tensor in tensors]
        if self.method == "ties":
            merged = _ties([_largest(each, self.density) for each in added], shares)
        else:
            left = (self._left(name, number, each.shape) for number, each in enumerate(added))
            merged = _linear([each * mask for each, mask in zip(added, left, strict=True)], shares)
        return base + self.scale * merged

    def _left(self, name: str, number: int, shape: Sequence[int]) -> Tensor:
        """What is left of a model's tensor: 0, or what makes up for what is not."""
        said = f"{self.seed} {number} {name}".encode()
        seed = int.from_bytes(hashlib.sha256(said).digest()[:8], "little") >> 1
        drawn = torch.rand(*shape, generator=torch.Generator().manual_seed(seed))
        return (drawn < self.density).float() / self.density


def _linear(tensors: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    merged = torch.zeros_like(tensors[0])
    for tensor, share in zip(tensors, shares, strict=True):
        merged.add_(tensor, alpha=share)
    return merged


def _slerp(tensors: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    one, other = (tensor.double().flatten() for tensor in tensors)
    lengths = one.norm() * other.norm()
    cosine = float(one @ other / lengths) if lengths > 0 else 1.0
    if abs(cosine) > PARALLEL:
        return _linear(tensors, shares)
    angle = torch.arccos(torch.tensor(cosine, dtype=torch.float64))
    parts = [torch.sin(angle * share) / torch.sin(angle) for share in shares]
    return (parts[0] * one + parts[1] * other).float().view_as(tensors[0])


_OF_MODELS: Mapping[Method, Callable[[Sequence[Tensor], Sequence[float]], Tensor]] = {
    "linear": _linear,
    "slerp": _slerp,
}


def _largest(tensor: Tensor, density: float) -> Tensor:
    """A part of the numbers, those of the largest magnitudes; others are 0."""
    keep = max(1, round(density * tensor.numel()))
    if keep == tensor.numel():
        return tensor
    sizes = tensor.abs().flatten()
    least = sizes.kthvalue(tensor.numel() - keep + 1).values
    return tensor * (tensor.abs() >= least)


def _ties(added: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    """The mean of those that have the sign of their sum, where they have any."""
    sign = _linear(added, shares).sign()
    agreed = [(each.sign() == sign) & (each != 0) for each in added]
    summed = _linear([each * own for each, own in zip(added, agreed, strict=True)], shares)
    weight = _linear([own.float() for own in agreed], shares)
    return summed / weight.clamp_min(1e-12)
