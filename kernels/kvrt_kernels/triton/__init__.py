"""Kernels for NVIDIA and AMD GPUs, one source for both, in Triton.

    decode    attention of sequences that bring a few tokens       append   rotate, norm and store
    prefill   attention of those that bring many                   norm     RMS norm
    tile      what both do with a block of rows                    gate     gated activation
    plan      a batch, as the kernels take it                      copy     whole pages
    product   of tokens and packed weights                         weights  reading these
    packing   how packed weights are kept                          configs  block sizes

`TritonAttention`, `TritonOps` and `TritonMatrices` put them behind the interfaces of `kvrt.spi`.
Importing this package is cheap and needs neither Triton nor a GPU; the classes are loaded when
asked for.
"""

from typing import TYPE_CHECKING

from kvrt_kernels.triton._require import require_triton

if TYPE_CHECKING:
    from kvrt_kernels.triton.attention import TritonAttention
    from kvrt_kernels.triton.matrices import TritonMatrices
    from kvrt_kernels.triton.ops import TritonOps

__all__ = ["TritonAttention", "TritonMatrices", "TritonOps", "require_triton"]


def __getattr__(name: str) -> object:
    if name == "TritonAttention":
        from kvrt_kernels.triton.attention import TritonAttention

        return TritonAttention
    if name == "TritonMatrices":
        from kvrt_kernels.triton.matrices import TritonMatrices

        return TritonMatrices
    if name == "TritonOps":
        from kvrt_kernels.triton.ops import TritonOps

        return TritonOps
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
