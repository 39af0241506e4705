"""The launches that every architecture's kernels are compiled for."""

from dataclasses import dataclass

from kvrt_kernels.triton.configs import formats_on

from kvrt.spi import QUANTIZATIONS, DType, KVFormat


@dataclass(frozen=True, slots=True)
class Case:
    """One launch, or one and the launches that belong to it.

    Args:
        what: ``decode``, ``prefill``, ``append``; a product of ``few tokens`` or ``many tokens``
            with packed weights; a mixture of experts of either; ``delta``, ``scan`` or
            ``convolve``; ``dense``, which is the rest.
        head_dim: size of a head.
        dtype: of activations, pages and weights.
        special: with a window, sinks and, without branches, a soft-cap; with every option there
            is; with a decay for each of a key's numbers.
        branches: of a step with branches.
        kv: of pages, if it is not `dtype`.
        causal: a token sees those before it only.
        value_dim: size of a value; 0: as of a key.
        shared: values are the beginning of the keys.
        weights: their format.
    """

    what: str
    head_dim: int = 128
    dtype: DType = "bfloat16"
    special: bool = False
    branches: bool = False
    kv: KVFormat | None = None
    causal: bool = True
    value_dim: int = 0
    shared: bool = False
    weights: str = ""

    def __str__(self) -> str:
        options = " special" * self.special + " branches" * self.branches
        options += " whole" * (not self.causal) + f" values {self.value_dim}" * bool(self.value_dim)
        return f"{self.what} {self.numbers} {self.head_dim}{options}{' shared' * self.shared}"

    @property
    def numbers(self) -> str:
        kept = self.kv or self.weights
        return f"{self.dtype} on {kept}" if kept else self.dtype

    def runs_on(self, arch: str) -> bool:
        """Whether a device of that architecture keeps such pages."""
        return self.kv is None or self.kv in formats_on(arch, ())


CODES = tuple(QUANTIZATIONS)
PACKED = ("q4_1", "q8_0", "q5_k", "q6_k", "int4 by 64", "fp8 by 128", "mxfp4")
"""All kinds of codes, scales and offsets, and each number of pieces that share a scale."""

COMMON = [
    Case("decode"),
    Case("prefill"),
    Case("append", special=True),
    Case("decode", branches=True),
    Case("dense"),
    Case("decode", kv="int8"),
    Case("prefill", kv="fp8"),
    Case("append", special=True, kv="int4"),
    Case("few tokens", weights="q4_1"),
    Case("many tokens", weights="q8_0"),
    Case("experts, many tokens"),
    Case("delta"),
]
"""What most models need."""

LATENT: tuple[tuple[DType, KVFormat | None], ...] = (
    ("bfloat16", None),
    ("bfloat16", "int8"),
    ("float32", None),
)

ATTENTION = [
    Case(what, head_dim, dtype, special, branches)
    for what in ("decode", "prefill")
    for head_dim in (64, 80, 128, 256)
    for dtype in ("bfloat16", "float32")
    for special in (False, True)
    for branches in (False, True)
] + [
    *(Case("decode", dtype="float16", special=special) for special in (False, True)),
    *(Case("prefill", dtype="float16", special=special) for special in (False, True)),
    *(Case("append", dim, special=special) for dim in (64, 80, 128, 256) for special in (0, 1)),
    Case("append", dtype="float32", special=True),
    *(
        Case(what, head_dim, kv=kv)
        for what in ("decode", "prefill", "append")
        for head_dim in (64, 80, 128, 256)
        for kv in CODES
    ),
    *(Case(what, dtype="float32", kv=kv) for what in ("decode", "prefill") for kv in CODES),
    *(Case(what, special=True, kv=kv) for what in ("decode", "prefill", "append") for kv in CODES),
    *(Case(what, causal=False) for what in ("decode", "prefill")),
    *(
        Case(what, value_dim=64, shared=shared)
        for what in ("decode", "prefill")
        for shared in (False, True)
    ),
    *(Case("prefill", 64, kv=kv, value_dim=32) for kv in ("int8", "fp8")),
    Case("append", value_dim=64),
    Case("append", value_dim=64, shared=True),
    *(
        Case(what, 576, dtype, kv=kv, value_dim=512, shared=True)
        for what in ("decode", "prefill")
        for dtype, kv in LATENT
    ),
    Case("append", 576, value_dim=512, shared=True),
]
"""Every entry of every table of tiles, with and without masks for sizes that are no power of 2."""

OF_EXPERTS: tuple[tuple[DType, str], ...] = (
    ("bfloat16", ""),
    ("float32", ""),
    ("bfloat16", "mxfp4"),
    ("bfloat16", "q6_k"),
)

DENSE = [Case("dense"), Case("dense", dtype="float32")]
PRODUCTS = [
    *(Case(what, weights=weights) for what in ("few tokens", "many tokens") for weights in PACKED),
    *(Case(what, dtype="float32", weights="q4_1") for what in ("few tokens", "many tokens")),
]
EXPERTS = [
    *(
        Case(f"experts, {what}", dtype=dtype, weights=weights)
        for what in ("few tokens", "many tokens")
        for dtype, weights in OF_EXPERTS
    ),
]
RECURRENT = [
    Case("delta"),
    *(Case("delta", dim, special=True) for dim in (128, 256)),
    *(Case("scan", dim) for dim in (128, 256)),
    Case("convolve"),
]
ALL = [*ATTENTION, *DENSE, *PRODUCTS, *EXPERTS, *RECURRENT]
