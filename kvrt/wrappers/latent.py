"""Checks of the optional `LatentOps`."""

import torch

from kvrt.spi import LatentOps, Rotation
from kvrt.wrappers.dense import check_rotation
from kvrt.wrappers.rules import Facts, broken


class CheckedLatentOps:
    """`LatentOps` that refuses tensors its rules do not allow, in a few microseconds a call."""

    def __init__(self, facts: Facts, inner: LatentOps) -> None:
        self._facts = facts
        self._inner = inner

    def by_head(self, x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor) -> None:
        self._check_heads("x", x)
        self._facts.check_on_device("weight", weight)
        tokens, heads, width = x.shape
        if weight.dim() != 3 or weight.shape[::2] != (heads, width) or not weight.is_contiguous():
            rule = f"must be [{heads}, out features, {width}], contiguous"
            raise broken("weight", weight, rule)
        if weight.dtype not in self._facts.weight_dtypes:
            rule = f"must have one of the dtypes {', '.join(self._facts.info.weight_dtypes)}"
            raise broken("weight", weight, rule)
        self._check_out(out, (tokens, heads, weight.shape[1]), x)
        self._inner.by_head(x, weight, out)

    def rotate(self, x: torch.Tensor, rotation: Rotation | None, out: torch.Tensor) -> None:
        self._check_heads("x", x)
        if rotation is not None:
            check_rotation(self._facts, rotation, x.shape[0], x.shape[2])
        self._check_out(out, tuple(x.shape), x)
        self._inner.rotate(x, rotation, out)

    def _check_out(self, out: torch.Tensor, shape: tuple[int, ...], x: torch.Tensor) -> None:
        self._check_heads("out", out)
        if tuple(out.shape) != shape or out.dtype != x.dtype:
            raise broken("out", out, f"must be {list(shape)} in the dtype of x, {x.dtype}")

    def _check_heads(self, name: str, x: torch.Tensor) -> None:
        self._facts.check_open("an operator of latents")
        self._facts.check_activation(name, x)
        if x.dim() != 3 or (x.shape[2] > 1 and x.stride(2) != 1):
            raise broken(name, x, "must be [tokens, heads, elements], elements contiguous")
