"""What a device that has these kernels offers besides attention."""

from kvrt.spi import BranchOps, DenseOps, ExpertOps, LatentOps, PackedMatrices, Recurrence
from kvrt_kernels.triton.branches import TritonBranches
from kvrt_kernels.triton.experts import TritonExperts
from kvrt_kernels.triton.latent import TritonLatents
from kvrt_kernels.triton.matrices import TritonMatrices
from kvrt_kernels.triton.ops import TritonOps
from kvrt_kernels.triton.recurrence import TritonRecurrence


def extensions_on(arch: str, torch_device: str) -> dict[type, object]:
    """Optional protocols of `kvrt.spi`, by their types, and what implements them.

    Args:
        arch: such as ``sm_90`` or ``gfx942``.
        torch_device: where the tensors are. On ``cpu`` Triton must be interpreting.
    """
    return {
        BranchOps: TritonBranches(),
        DenseOps: TritonOps(),
        ExpertOps: TritonExperts(arch),
        LatentOps: TritonLatents(),
        PackedMatrices: TritonMatrices(arch),
        Recurrence: TritonRecurrence(torch_device),
    }
