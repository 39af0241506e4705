"""What multi-head latent attention puts around attention, by the native kernels."""

from kvrt_kernels import latent
from torch import Tensor

from kvrt.spi import Rotation


class NativeLatents:
    """`LatentOps` over the compiled kernels, which check nothing. Activations are float32."""

    def __init__(self, threads: int) -> None:
        self._threads = threads

    def by_head(self, x: Tensor, weight: Tensor, out: Tensor) -> None:
        latent.by_head(x, weight, out, self._threads)

    def rotate(self, x: Tensor, rotation: Rotation | None, out: Tensor) -> None:
        latent.rotate(x, rotation, out, self._threads)
