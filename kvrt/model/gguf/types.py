"""The element types of GGUF tensors, by their numbers in files.

Quantised types pack the numbers of a row in blocks: scales, then codes. The format and its types:
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from collections.abc import Mapping
from typing import NamedTuple


class ElementType(NamedTuple):
    """A type: its name, numbers in a block, bytes of a block."""

    name: str
    numbers: int
    nbytes: int


TYPES: Mapping[int, ElementType] = {
    number: ElementType(*row)
    for number, row in {
        0: ("F32", 1, 4), 1: ("F16", 1, 2), 30: ("BF16", 1, 2), 28: ("F64", 1, 8),
        24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8),
        2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24),
        8: ("Q8_0", 32, 34),
        10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144),
        13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210),
        16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 22: ("IQ2_S", 256, 82),
        18: ("IQ3_XXS", 256, 98), 21: ("IQ3_S", 256, 110),
        19: ("IQ1_S", 256, 50), 29: ("IQ1_M", 256, 56),
        20: ("IQ4_NL", 32, 18), 23: ("IQ4_XS", 256, 136),
        34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66),
        41: ("Q1_0", 128, 18), 39: ("MXFP4", 32, 17), 40: ("NVFP4", 64, 36),
    }.items()
}  # fmt: skip

BY_NAME: Mapping[str, ElementType] = {kind.name: kind for kind in TYPES.values()}
