"""Products with packed weights, beside torch's in bfloat16 and other kernels for 4-bit weights."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kvrt.spi import Device, Matrices, PackedMatrices, WeightFormat
from kvrt.spi.plain import codes, scales, unpack
from kvrt.testing import matrices
from kvrt.testing.matrices import FORMATS
from tests.bench.gpu.attention import must_agree, queries
from tests.bench.gpu.rows import Rows
from tests.bench.gpu.timing import Clock

GROUP = "products with packed weights"
NAMES = ("q8_0", "q4_0", "q4_k", "q6_k", "int4 by 128", "fp8 by 128")
SHARED = "int4 by 128"
"""The format that peers have, too."""
AGREEMENT = 0.03
"""Of results in bfloat16, of which one is of weights rounded to it, or of activations rounded."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Args:
    shapes: rows of a matrix, and elements of a row.
    tokens: of a step.
    made: rows that are drawn at random; the others repeat them.
    """

    shapes: tuple[tuple[int, int], ...]
    tokens: tuple[int, ...]
    made: int


FULL = Sizes(((28672, 4096), (4096, 14336), (4096, 4096)), (1, 4, 16, 64, 2048), 256)
SMALL = Sizes(((64, 256),), (1, 17), 32)


def products(device: Device, clock: Clock, rows: Rows, *, small: bool) -> None:
    sizes = SMALL if small else FULL
    packed = device.extension(PackedMatrices)  # type: ignore[type-abstract]
    if packed is None:
        rows.skip(GROUP, "all", "kvrt", "the device has none")
        return
    bandwidth = clock.copy_bandwidth()
    for out, width in sizes.shapes:
        for name in NAMES:
            format = FORMATS[name]
            if not packed.multiplies(format):
                rows.skip(GROUP, f"{name}, {out} x {width}", "kvrt", "the device has none with it")
                continue
            made = matrices.random_rows(format, sizes.made, width, seed=1)
            plain = made.repeat(out // sizes.made, 1)
            weight = on_device(packed, format, plain, width, clock.device)
            values = unpack(format, made, width).repeat(out // sizes.made, 1)
            for tokens in sizes.tokens:
                case = f"{name}, {out} x {width}, {tokens} tokens"
                x, own = queries(device, clock, tokens, width)
                got = packed.linear(own, weight)
                ours = clock.seconds(lambda own=own, weight=weight: packed.linear(own, weight))
                fastest = weight[0].data.numel() / bandwidth
                row = {"seconds": ours, "of_copy_bandwidth": fastest / ours}
                others = {"torch bfloat16": torch_product}
                if name == SHARED:
                    others |= {"torch int4": tinygemm, "Marlin": marlin}
                for by, peer in others.items():
                    try:
                        work, kept = peer(format, plain, values, x)
                        theirs = clock.seconds(work)
                        must_agree(work(), got if kept is None else torch.mm(x, kept), AGREEMENT)
                    except Exception as error:  # whatever a package that is not ours says
                        rows.skip(GROUP, case, by, error)
                    else:
                        row[f"times_{by.replace(' ', '_')}"] = theirs / ours
                        rows.add(GROUP, case, by, seconds=theirs)
                rows.add(GROUP, case, "kvrt", **row)
    for by in ("torch_bfloat16", "torch_int4", "Marlin"):
        mean = rows.mean(GROUP, f"times_{by}")
        if mean is not None:
            rows.add(GROUP, f"geometric mean of times {by.replace('_', ' ')}", "kvrt", value=mean)


def on_device(
    packed: PackedMatrices, format: WeightFormat, plain: Tensor, width: int, device: torch.device
) -> Matrices:
    nbytes = packed.nbytes(format, len(plain), width)
    memory = torch.empty(nbytes + 128, dtype=torch.uint8, device=device)
    return (packed.pack(format, plain, width, memory[-memory.data_ptr() % 128 :][:nbytes]),)


Peer = tuple[Callable[[], Any], Tensor | None]
"""A product, and what it multiplies with if that are other weights, [width, out]."""


def torch_product(format: WeightFormat, plain: Tensor, values: Tensor, x: Tensor) -> Peer:
    weight = values.to(x.device, x.dtype)
    return lambda: torch.mm(x, weight.T), None


def tinygemm(format: WeightFormat, plain: Tensor, values: Tensor, x: Tensor) -> Peer:
    """torch's own kernel for codes of 4 bits, whose scales are bfloat16."""
    width = x.shape[1]
    pairs = codes(format, plain, width).view(len(plain), -1, 2)
    packed = (pairs[..., 0] << 4 | pairs[..., 1]).to(x.device)
    of_groups = scales(format, plain, width).T.to(x.device, torch.bfloat16)
    numbers = torch.stack((of_groups, torch.zeros_like(of_groups)), dim=-1).contiguous()
    weight = torch.ops.aten._convert_weight_to_int4pack(packed, 8)
    return lambda: torch.ops.aten._weight_int4pack_mm(x, weight, format.group, numbers), None


def marlin(format: WeightFormat, plain: Tensor, values: Tensor, x: Tensor) -> Peer:
    """Marlin (Frantar et al. 2024, arXiv 2408.11743), as vLLM carries it.

    What makes weights for it makes its own codes of them.
    """
    from vllm.model_executor.layers.quantization.utils import marlin_utils
    from vllm.model_executor.layers.quantization.utils.marlin_utils_test import marlin_quantize
    from vllm.scalar_type import scalar_types

    weight = values.T.to(x.device, x.dtype)
    kind = scalar_types.uint4b8
    kept, weight, of_groups, order, sorting, _ = marlin_quantize(weight, kind, 128, False)
    workspace = marlin_utils.marlin_make_workspace_new(x.device)
    nothing = marlin_utils.marlin_make_empty_g_idx(x.device)

    def work() -> Tensor:
        return marlin_utils.apply_gptq_marlin_linear(
            x, weight, of_groups, nothing, order, sorting, workspace, kind,
            len(plain), x.shape[1], True,
        )  # fmt: skip

    return work, kept
