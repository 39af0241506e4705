"""What torch sees of an emulated GPU: tensors in host memory, and no streams."""

from typing import cast

from kvrt_kernels import TRITON_HEAD_DIMS, reference
from kvrt_kernels.dlpack import CPU, bytes_at
from kvrt_kernels.gpu import DTYPES, Kernels, Software, TorchLimits
from kvrt_kernels.tree import Lines
from kvrt_kernels.triton.configs import formats_on
from torch import Tensor

from kvrt.spi import AttentionBatch, AttentionParams, Measurable


class ReferenceAttention:
    """The definition of the operator, in plain torch."""

    def plan(self, batch: AttentionBatch) -> Lines:
        return reference.plan(batch)

    def append(self, plan: object, layer: int, k: Tensor, v: Tensor) -> None:
        reference.append(cast(Lines, plan), layer, k, v)

    def run(
        self, plan: object, layer: int, q: Tensor, out: Tensor, params: AttentionParams
    ) -> None:
        reference.run(cast(Lines, plan), layer, q, out, params)


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

    def give_back(self, index: int) -> bool:
        return False

    def kernels(self, index: int, arch: str, multiprocessors: int) -> Kernels:
        limits = TorchLimits("cpu", lambda: None, nbytes=64 << 20, side=512)
        return Kernels(
            ReferenceAttention(),
            {Measurable: limits},
            compute_dtypes=("float32",),
            kv_formats=formats_on(arch, DTYPES),
        )


class InterpreterPlace(HostPlace):
    """The same, computing with the Triton kernels in Triton's interpreter.

    The process must have been started with TRITON_INTERPRET=1.
    """

    def software(self) -> Software:
        return Software("emulated: device memory is host memory, Triton interprets its kernels")

    def kernels(self, index: int, arch: str, multiprocessors: int) -> Kernels:
        from kvrt_interpreted import narrow
        from kvrt_kernels.triton import TritonAttention, extensions_on

        narrow.mend()
        return Kernels(
            # As if it had two compute units: each program takes 20 ms.
            TritonAttention(arch, "cpu", multiprocessors=2),
            extensions_on(arch, "cpu"),
            compute_dtypes=("float32",),
            kv_formats=formats_on(arch, DTYPES),
            head_dims=TRITON_HEAD_DIMS,
        )
