"""Kernels of kvrt: native C++ for CPUs, and the plain torch definitions they are checked against.

    attention   paged attention over a ragged batch        append   rotate, norm and store k and v
    linear      matrix products, gated ones included       norm     RMS norm
    packed      those with weights that stay codes         panels   how these are read
    experts     mixtures of experts                        latent   around latent attention
    recurrence  layers with a recurrence, over pages       branches around other products
    low_rank    what adapters add to products              tree     new tokens that branch
    reference   all of these in plain torch: the definition of what they compute
    limits      the machine's read bandwidth and arithmetic peak
    program     calls, recorded once                       collective   how ranks talk

    triton      the operators for GPUs                     graphs   their steps, recorded
    gpu         what a GPU backend needs of torch          dlpack   tensors over given addresses
    driver      a GPU backend but for its vendor's calls

Importing this package is cheap: torch and the native module are loaded when first asked for.
"""

from kvrt_kernels._load import isa, isas, native_available, native_error, set_isa

__all__ = [
    "HEAD_DIMS",
    "TRITON_HEAD_DIMS",
    "isa",
    "isas",
    "native_available",
    "native_error",
    "set_isa",
]

TRITON_HEAD_DIMS = (*range(16, 257, 16), 320, 512, 576)
HEAD_DIMS = (*range(16, 257, 16), 320, 384, 448, 512, 576)
"""Sizes of a head that attention can do, native and in Triton; in plain torch it can do any.

The native kernels can do as many elements as their `kMostOfHead` says. In Triton those of more than
256 are what latents have: a tile of them is multiplied by chunks, for it would not fit what a
multiprocessor has of memory of its own.
"""
