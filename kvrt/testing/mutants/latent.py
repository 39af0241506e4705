"""Faults of what multi-head latent attention puts around attention."""

import torch
from torch import Tensor

from kvrt.spi import Rotation
from kvrt.wrappers.wrapper import WrappedLatentOps


class TakesTheNextHeadsMatrix(WrappedLatentOps):
    def by_head(self, x: Tensor, weight: Tensor, out: Tensor) -> None:
        super().by_head(x, weight.roll(1, 0), out)


class MultipliesWithTheFirstHeads(WrappedLatentOps):
    """Heads of x one after the other, wherever they are."""

    def by_head(self, x: Tensor, weight: Tensor, out: Tensor) -> None:
        tokens, heads, width = x.shape
        near = x.as_strided((tokens, heads, width), (x.stride(0), width, 1))
        super().by_head(near, weight, out)


class MultipliesManyTokensOtherwise(WrappedLatentOps):
    def by_head(self, x: Tensor, weight: Tensor, out: Tensor) -> None:
        super().by_head(x, weight, out)
        if len(x) > 100:
            out.copy_(torch.einsum("thi,hoi->tho", x.double(), weight.double()))


class RotatesWhatItWasGiven(WrappedLatentOps):
    def rotate(self, x: Tensor, rotation: Rotation | None, out: Tensor) -> None:
        super().rotate(x, rotation, x)
        out.copy_(x)


class RotatesTheWholeHead(WrappedLatentOps):
    """Elements beyond those that have angles are dropped, which is what a whole head would say."""

    def rotate(self, x: Tensor, rotation: Rotation | None, out: Tensor) -> None:
        super().rotate(x, rotation, out)
        if rotation is not None:
            out[..., 2 * rotation.cos.shape[1] :].zero_()


class RotatesBackwards(WrappedLatentOps):
    def rotate(self, x: Tensor, rotation: Rotation | None, out: Tensor) -> None:
        turned = rotation and Rotation(rotation.cos, rotation.sin.neg())
        super().rotate(x, turned, out)


class LeavesWhatIsNotRotated(WrappedLatentOps):
    def rotate(self, x: Tensor, rotation: Rotation | None, out: Tensor) -> None:
        if rotation is not None:
            super().rotate(x, rotation, out)
