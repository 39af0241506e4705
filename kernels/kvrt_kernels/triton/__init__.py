"""Kernels for NVIDIA and AMD GPUs, one source for both, in Triton.

    decode    attention of sequences that bring a few tokens       append   rotate, norm and store
    prefill   attention of those that bring many                   norm     norms, and what is added
    tile      what both do with a block of rows                    gate     gated activation
    plan      a batch, as the kernels take it                      copy     whole pages
    work      which rows a program computes                        state_plan  of recurrent layers
    product   of tokens and packed weights                         weights  reading these
    packing   how packed weights are kept                          configs  block sizes
    router    which experts tokens choose                          routed   products of experts
    convolve  short convolutions over pages                        states   recurrences over pages

`TritonAttention` puts the first behind `kvrt.spi.PagedAttention`, `ops`, `matrices`, `branches`,
`experts`, `latent` and `recurrence` the others behind its optional protocols: `extensions` has all
of these.
Importing this package is cheap and needs neither Triton nor a GPU; the classes are loaded when
asked for.
"""

from typing import TYPE_CHECKING

from kvrt_kernels.triton._require import require_triton

if TYPE_CHECKING:
    from kvrt_kernels.triton.attention import TritonAttention
    from kvrt_kernels.triton.extensions import extensions_on
    from kvrt_kernels.triton.matrices import TritonMatrices
    from kvrt_kernels.triton.ops import TritonOps

__all__ = [
    "TritonAttention",
    "TritonMatrices",
    "TritonOps",
    "extensions_on",
    "require_triton",
]


def __getattr__(name: str) -> object:
    if name == "TritonAttention":
        from kvrt_kernels.triton.attention import TritonAttention

        return TritonAttention
    if name == "TritonMatrices":
        from kvrt_kernels.triton.matrices import TritonMatrices

        return TritonMatrices
    if name == "extensions_on":
        from kvrt_kernels.triton.extensions import extensions_on

        return extensions_on
    if name == "TritonOps":
        from kvrt_kernels.triton.ops import TritonOps

        return TritonOps
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
