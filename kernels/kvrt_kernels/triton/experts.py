"""Mixtures of experts: `TritonExperts` is a `kvrt.spi.ExpertOps`."""

from collections.abc import Iterator
from typing import Any, Final, NamedTuple
from weakref import WeakKeyDictionary

import torch
import triton
from torch import Tensor

from kvrt.spi import Experts, Matrices, Matrix, Router
from kvrt_kernels.triton.attention import ACTIVATIONS
from kvrt_kernels.triton.configs import config, options
from kvrt_kernels.triton.gate import gated
from kvrt_kernels.triton.matrices import FEW, SPAN, of_matrix
from kvrt_kernels.triton.routed import (
    TILE,
    add_chosen_kernel,
    arrange_kernel,
    codes_kernel,
    floats_kernel,
)
from kvrt_kernels.triton.router import route

AT_ONCE: Final = {2: 64, 4: 32}
"""Elements of a row of floats that are multiplied at a time, by the bytes of an activation."""

WARPS: Final = 8
"""Of a program that has many tokens' codes."""

READ: Final = 1024
"""Slots that are read at a time where they are put in order."""

ADDED: Final = 512
"""Features of one program that adds what experts made."""


class Run(NamedTuple):
    """Matrices of one format at equal distances, of experts that follow each other.

    Args:
        begin, end: the first expert, and the one behind the last.
        first: the matrix of the first one.
        distance: bytes from one to the next.
        column: of a result, where those of these matrices begin.
    """

    begin: int
    end: int
    first: Matrix
    distance: int
    column: int


Weights = Tensor | list[Run]


class Choice(NamedTuple):
    """What products are told of a step's choice of experts.

    Args:
        slots: how many.
        tiles: how many programs have slots.
        chosen, listed, order: see `routed`; of few tokens the first alone.
        launch: what all products are compiled for.
    """

    slots: int
    tiles: int
    chosen: Tensor
    listed: Tensor
    order: Tensor
    launch: dict[str, Any]


class TritonExperts:
    """See `kvrt.spi.ExpertOps`. The calls check nothing; `kvrt.wrappers.Checked` has.

    Products with packed weights take activations as they are, as those of `TritonMatrices`. Up to
    `FEW` tokens a token's bits do not depend on the others; with more, other tiles are used.

    Args:
        arch: as its driver names it.
    """

    def __init__(self, arch: str) -> None:
        self.config = config(arch)
        self._found: WeakKeyDictionary[Experts, tuple[Weights, Weights]] = WeakKeyDictionary()

    def route(
        self,
        logits: Tensor,
        router: Router,
        correction: Tensor | None,
        chosen: Tensor,
        weights: Tensor,
    ) -> None:
        route(logits, router, correction, chosen, weights)

    def mix(
        self,
        x: Tensor,
        experts: Experts,
        chosen: Tensor,
        weights: Tensor,
        residual: Tensor | None,
        out: Tensor,
    ) -> None:
        if not len(x):
            return
        choice, features, each = self._choice(x, experts, chosen), out.shape[1], chosen.shape[1]
        up, down = self._parts(experts)
        both = _product(x, up, experts.gate_up_bias, 2 * experts.width, choice, each)
        between = gated(both, experts.activation, limit=experts.limit, alpha=experts.alpha)
        results = _product(between, down, experts.down_bias, features, choice, 1)
        add_chosen_kernel[(len(x), triton.cdiv(features, ADDED))](
            results,
            weights,
            residual,
            out,
            features,
            CHOSEN=each,
            BLOCK=ADDED,
            ADDED=residual is not None,
            # Each result is multiplied, and then added.
            **options(warps=4) | {"enable_fp_fusion": False},
        )

    def _choice(self, x: Tensor, experts: Experts, chosen: Tensor) -> Choice:
        slots, few = chosen.numel(), len(x) <= FEW
        many = not few and slots > FEW * experts.count
        tile = self.config.products[x.element_size() * 8, many]
        launch = {
            "SORTED": not few,
            "DOT": ACTIVATIONS[x.dtype],
            "BLOCK_N": tile.block_n,
            "BLOCK_M": tile.block_m,
        } | tile.options
        if few:
            return Choice(slots, slots, chosen, chosen, chosen, launch)
        tiles = slots // tile.block_m + experts.count
        table = torch.empty(tiles * TILE.value + slots, dtype=torch.int32, device=chosen.device)
        listed, order = table.split_with_sizes((tiles * TILE.value, slots))
        arrange_kernel[(experts.count,)](
            chosen, listed, order, slots, BLOCK_M=tile.block_m, BLOCK=READ, **options(warps=4)
        )
        return Choice(slots, tiles, chosen, listed, order, launch)

    def _parts(self, experts: Experts) -> tuple[Weights, Weights]:
        """The weights of both products; of codes where they lie."""
        found = self._found.get(experts)
        if found is None:
            up, down = (
                list(_runs(weight, experts.count)) if isinstance(weight, tuple) else weight
                for weight in (experts.gate_up, experts.down)
            )
            found = self._found[experts] = up, down
        return found


def _product(
    x: Tensor, weight: Weights, bias: Tensor | None, features: int, choice: Choice, each: int
) -> Tensor:
    """[slots, features]; a slot's row of x is that of ``slot // each``."""
    out = torch.empty(choice.slots, features, dtype=x.dtype, device=x.device)
    if isinstance(weight, Tensor):
        _floats(x, weight, bias, out, choice, each)
    else:
        for run in weight:
            _codes(x, run, bias, out, choice, each)
    return out


def _floats(
    x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor, choice: Choice, each: int
) -> None:
    features, width = out.shape[1], weight.shape[1]
    block = AT_ONCE[x.element_size()]
    floats_kernel[(triton.cdiv(features, choice.launch["BLOCK_N"]), choice.tiles)](
        x,
        weight,
        bias,
        out,
        choice.chosen,
        choice.listed,
        choice.order,
        x.stride(0),
        0 if bias is None else bias.stride(0),
        out.stride(0),
        features,
        width,
        EACH=each,
        BLOCK_K=block,
        EVEN=width % block == 0,
        BIASED=bias is not None,
        **choice.launch,
    )


def _codes(
    x: Tensor, run: Run, bias: Tensor | None, out: Tensor, choice: Choice, each: int
) -> None:
    matrix, own = run.first, of_matrix(run.first)
    columns = slice(run.column, run.column + matrix.out)
    launch = choice.launch
    if launch["BLOCK_M"] > FEW:  # addresses of single rows take registers, too
        launch = launch | {"num_warps": WARPS}
    codes_kernel[(triton.cdiv(matrix.out, launch["BLOCK_N"]), choice.tiles)](
        x=x,
        bias=None if bias is None else bias[:, columns],
        out=out[:, columns],
        chosen=choice.chosen,
        tiles=choice.listed,
        order=choice.order,
        x_stride=x.stride(0),
        bias_stride=0 if bias is None else bias.stride(0),
        out_stride=out.stride(0),
        features=matrix.out,
        begin=run.begin,
        end=run.end,
        distance=run.distance,
        EACH=each,
        SPAN=SPAN,
        EVEN=matrix.width % own["HOW"].elements == 0,
        BIASED=bias is not None,
        **own,
        **launch,
    )


def _runs(weight: Matrices, count: int) -> Iterator[Run]:
    """One for each part of an expert's weight, if its matrices lie as those of a tensor do."""
    parts, column = len(weight) // count, 0
    for part in range(parts):
        own = weight[part::parts]
        begin = 0
        while begin < count:
            first, end = own[begin], begin + 1
            distance = 0 if end == count else _distance(first, own[end])
            while end < count and own[end].format == first.format and (
                _distance(own[end - 1], own[end]) == distance
            ):  # fmt: skip
                end += 1
            yield Run(begin, end, first, distance, column)
            begin = end
        column += own[0].out


def _distance(one: Matrix, other: Matrix) -> int:
    return other.data.data_ptr() - one.data.data_ptr()
