"""Matrices of 4 bits as ``bitsandbytes`` keeps them: QLoRA's NF4, and FP4.

    X.weight                  uint8 [out * in / 2, 1], codes along in, high bits first
    X.weight.quant_map        float32 [16], what each code means
    X.weight.absmax           float32 [out * in / 64], a scale for each 64 of a row
    X.weight.quant_state.bitsandbytes__nf4   uint8, JSON: how all this is meant

With double quantisation, scales are codes of 8 bits themselves, and

    X.weight.absmax           uint8
    X.weight.nested_quant_map float32 [256], what each of these codes means
    X.weight.nested_absmax    float32, a factor for each 256 of them

An element is ``quant_map[code] * scale``, where a scale may be ``nested_quant_map[code] * factor +
nested_offset``, each operation in float32 (Dettmers et al. 2023, arXiv 2305.14314). Its numbers are
no whole ones, so no format of `kvrt.spi` holds it: it is always unpacked.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from kvrt.model.packed.method import Held, Unreadable, Wanted
from kvrt.spi import WeightFormat

GROUP = 64
"""Elements that share a scale."""
NESTED = 256
"""Scales that share a factor."""
SCALES = "weight.absmax"
STATE = "weight.quant_state.bitsandbytes__"


@dataclass(frozen=True, slots=True)
class FourBit:
    """See the module.

    Args:
        kind: ``nf4`` or ``fp4``.
        nested: scales are codes.
    """

    kind: str
    nested: bool
    group: int = GROUP
    stays: bool = False
    ordered: bool = False
    first: str = "weight"
    scales: str = SCALES

    def wanted(self, out: int, width: int) -> Mapping[str, Wanted]:
        groups = out * width // GROUP
        wanted = {
            "weight": Wanted(("U8",), ((out * width // 2, 1),)),
            SCALES: Wanted(("U8" if self.nested else "F32",), ((groups,),)),
            "weight.quant_map": Wanted(("F32",), ((16,),)),
            STATE + self.kind: Wanted(("U8",), ()),
        }
        if self.nested:
            factors = -(-groups // NESTED)
            wanted["weight.nested_absmax"] = Wanted(("F32",), ((factors,),))
            wanted["weight.nested_quant_map"] = Wanted(("F32",), ((256,),))
        return wanted

    def format(self, scales: str) -> WeightFormat:
        return WeightFormat(f"{self.kind} by {GROUP}", 4, GROUP, "float32")

    def read(self, tensors: Mapping[str, Tensor]) -> Held:
        out, width, offset = self._state(tensors[STATE + self.kind], tensors["weight"].numel())
        packed, scales = tensors["weight"].view(out, -1), tensors[SCALES]
        codes = torch.stack((packed >> 4, packed & 15), 2).flatten(1)
        if self.nested:
            factors = tensors["weight.nested_absmax"].repeat_interleave(NESTED)[: len(scales)]
            scales = tensors["weight.nested_quant_map"][scales.int()] * factors + offset
        numbers = tensors["weight.quant_map"]
        return Held(codes, scales.view(out, width // GROUP), numbers=numbers)

    def _state(self, raw: Tensor, packed: int) -> tuple[int, int, Tensor]:
        """Rows and columns, and what is added to every scale that is a code."""
        end = STATE + self.kind
        try:
            state = json.loads(bytes(raw.tolist()))
            out, width = (int(size) for size in state["shape"])
            sizes = int(state["blocksize"]), int(state.get("nested_blocksize", NESTED))
            offset = float(state["nested_offset"]) if self.nested else 0.0
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
            raise Unreadable(end, "does not say shape, blocksize and nested_offset") from None
        if sizes != (GROUP, NESTED):
            raise Unreadable(end, f"has blocks of {sizes[0]} and {sizes[1]}, not of 64 and 256")
        if min(out, width) < 1 or out * width != 2 * packed or width % GROUP:
            raise Unreadable(end, f"says {[out, width]}, which is not the shape of the codes")
        if not math.isfinite(offset):
            raise Unreadable(end, "has a nested_offset that is not finite")
        return out, width, torch.tensor(offset)
