"""What torch sees of an emulated GPU: tensors in host memory, and no streams."""

from typing import cast

from kvrt_kernels import reference
from kvrt_kernels.dlpack import CPU, bytes_at
from kvrt_kernels.gpu import Kernels, Software
from torch import Tensor

from kvrt.spi import AttentionBatch, AttentionParams


class ReferenceAttention:
    """The definition of the operator, in plain torch."""

    def plan(self, batch: AttentionBatch) -> AttentionBatch:
        return reference.plan(batch)

    def append(self, plan: object, layer: int, k: Tensor, v: Tensor) -> None:
        reference.append(cast(AttentionBatch, plan), layer, k, v)

    def run(
        self, plan: object, layer: int, q: Tensor, out: Tensor, params: AttentionParams
    ) -> None:
        reference.run(cast(AttentionBatch, plan), layer, q, out, params)


class HostPlace:
    """A `kvrt_kernels.gpu.Place` whose device memory is the host's."""

    def software(self) -> Software:
        return Software("emulated: device memory is host memory, attention is plain torch")

    def enter(self, index: int) -> None:
        """torch is ready."""

    def torch_device(self, index: int) -> str:
        return "cpu"

    def wrap(self, address: int, nbytes: int, index: int) -> Tensor:
        return bytes_at(address, nbytes, CPU, 0)

    def stream(self, index: int) -> int:
        return 0

    def kernels(self, index: int, arch: str, multiprocessors: int) -> Kernels:
        return Kernels(ReferenceAttention(), compute_dtypes=("float32",))
