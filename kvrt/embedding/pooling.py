"""From the states of a text's tokens to one vector."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from kvrt.embedding.recipe import Pooling


def _weighted(states: Tensor) -> Tensor:
    places = torch.arange(1.0, len(states) + 1).unsqueeze(1)
    return (states * places).sum(0) / places.sum()


_FUNCTIONS: Mapping[Pooling, Callable[[Tensor], Tensor]] = {
    "cls": lambda states: states[0],
    "mean": lambda states: states.mean(0),
    "max": lambda states: states.amax(0),
    "sqrt": lambda states: states.sum(0) / len(states) ** 0.5,
    "weighted": _weighted,
    "last": lambda states: states[-1],
}


def pooled(states: Tensor, pooling: Pooling) -> Tensor:
    """The vector of a text: float32 [width].

    Args:
        states: float32 [tokens, width].
    """
    return _FUNCTIONS[pooling](states)


def finished(vector: Tensor, *, normalize: bool, dimensions: int) -> Tensor:
    """A vector as it is given.

    Args:
        normalize: to the length 1.
        dimensions: so many of them, the first ones (Kusupati et al. 2022, arXiv 2205.13147).
    """
    vector = vector[:dimensions]
    return vector / vector.norm().clamp_min(1e-12) if normalize else vector
