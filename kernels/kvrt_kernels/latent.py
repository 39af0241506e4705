"""What multi-head latent attention puts around attention: see `kvrt.spi.LatentOps`. Nothing is
checked here."""

from torch import Tensor

from kvrt.spi import Rotation
from kvrt_kernels._args import DTYPE_CODE, address, threads_or_default
from kvrt_kernels._load import native


def by_head(x: Tensor, weight: Tensor, out: Tensor, threads: int | None = None) -> None:
    heads, out_features, in_features = weight.shape
    native().by_head(
        DTYPE_CODE[weight.dtype],
        address(x),
        x.stride(0),
        x.stride(1),
        address(weight),
        address(out),
        out.stride(0),
        out.stride(1),
        x.shape[0],
        heads,
        out_features,
        in_features,
        threads_or_default(threads),
    )


def rotate(x: Tensor, rotation: Rotation | None, out: Tensor, threads: int | None = None) -> None:
    native().rotate(
        address(x),
        x.stride(0),
        x.stride(1),
        address(out),
        out.stride(0),
        out.stride(1),
        address(None if rotation is None else rotation.cos),
        address(None if rotation is None else rotation.sin),
        *x.shape,
        0 if rotation is None else 2 * rotation.cos.shape[1],
        threads_or_default(threads),
    )
