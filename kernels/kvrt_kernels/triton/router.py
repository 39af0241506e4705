"""How tokens choose experts (`kvrt.spi.Router`); a program has some tokens, and all experts."""

from typing import Final

import triton
import triton.language as tl
from torch import Tensor

from kvrt.spi import Router
from kvrt_kernels.triton.configs import options

NUMBERS: Final = 1024
"""Logits of a program, about."""

NOWHERE: tl.constexpr = tl.constexpr(1 << 30)
"""Behind all places."""


@triton.jit
def _best(scores, left, place):
    """Where the largest of those that are left is, of equals the first, of each row: [rows, 1]."""
    most = tl.max(tl.where(left, scores, float("-inf")), 1)[:, None]
    return tl.min(tl.where(left & (scores == most), place, NOWHERE), 1)[:, None]


@triton.jit
def _softmax(logits, there):
    """Over those of each row that are there; 0 elsewhere."""
    most = tl.max(tl.where(there, logits, float("-inf")), 1)[:, None]
    power = tl.where(there, tl.exp(tl.where(there, logits - most, 0.0)), 0.0)
    return power / tl.sum(power, 1)[:, None]


@triton.jit
def _of_best_groups(
    ranked,
    e,
    SIZE: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUPS_CHOSEN: tl.constexpr,
    BEST_TWO: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_G: tl.constexpr,
):
    """Scores of experts that cannot be chosen become negative infinity."""
    group, g = e // SIZE, tl.arange(0, BLOCK_G)[None, :]
    worth = tl.full([BLOCK_T, BLOCK_G], float("-inf"), tl.float32)
    for i in range(GROUPS):
        own = tl.where(group == i, ranked, float("-inf"))
        best = tl.max(own, 1)[:, None]
        if BEST_TWO and SIZE > 1:
            at = _best(ranked, (group == i) & (ranked == ranked), e)
            best += tl.max(tl.where(e == at, float("-inf"), own), 1)[:, None]
        worth = tl.where(g == i, best, worth)
    left = (g < GROUPS) & (worth == worth)
    usable = (group < 0) & (ranked == ranked)
    for _ in range(GROUPS_CHOSEN):
        at = _best(worth, left, g)
        left = left & (g != at)
        usable = usable | (group == at)
    return tl.where(usable, ranked, float("-inf"))


@triton.jit(do_not_specialize=["tokens"])
def route_kernel(
    logits,
    correction,
    chosen,
    weights,
    tokens,
    scale,
    least,
    jitter,
    EXPERTS: tl.constexpr,
    CHOSEN: tl.constexpr,
    SCORE: tl.constexpr,
    RENORMALISE: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUPS_CHOSEN: tl.constexpr,
    BEST_TWO: tl.constexpr,
    CORRECTED: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_G: tl.constexpr,
):
    """BLOCK_T tokens. Grid: [tokens]."""
    t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)[:, None]
    e, slot = tl.arange(0, BLOCK_E)[None, :], tl.arange(0, BLOCK_C)[None, :]
    row = t.to(tl.int64)
    there = (e < EXPERTS) & (t >= 0)
    given = tl.load(logits + row * EXPERTS + e, mask=there & (t < tokens), other=0.0)
    scores = given
    if SCORE == "softmax":
        scores = _softmax(given, there)
    elif SCORE == "sigmoid":
        scores = 1 / (1 + tl.exp(tl.minimum(-given, 88.0)))
    ranked = scores
    if CORRECTED:
        ranked += tl.load(correction + e, mask=e < EXPERTS, other=0.0)
    ranked = tl.where(there & (ranked == ranked), ranked, float("-inf"))  # what is no number loses
    if GROUPS_CHOSEN < GROUPS:
        ranked = _of_best_groups(
            ranked, e, EXPERTS // GROUPS, GROUPS, GROUPS_CHOSEN, BEST_TWO, BLOCK_T, BLOCK_G
        )
    left = there
    picked = tl.zeros([BLOCK_T, BLOCK_C], tl.int32)
    kept = tl.zeros([BLOCK_T, BLOCK_C], tl.float32)
    for s in range(CHOSEN):
        at = _best(ranked, left, e)
        score = tl.sum(tl.where(e == at, scores, 0.0), 1)[:, None]
        if SCORE == "sparsemixer":
            size = tl.maximum(tl.abs(given), score)
            near = left & ((score - given) / tl.where(size == 0, 1.0, size) <= 2 * jitter)
            score = tl.sum(tl.where(e == at, _softmax(given, near), 0.0), 1)[:, None]
        left = left & (e != at)
        picked = tl.where(slot == s, at, picked)
        kept = tl.where(slot == s, score, kept)
    if SCORE == "chosen":
        kept = _softmax(kept, (slot < CHOSEN) & (t >= 0))
    if RENORMALISE:
        kept = kept / tl.maximum(tl.sum(kept, 1)[:, None], least)
    mask = (slot < CHOSEN) & (t < tokens)
    tl.store(chosen + row * CHOSEN + slot, picked, mask=mask)
    tl.store(weights + row * CHOSEN + slot, kept * scale, mask=mask)


def route(
    logits: Tensor, router: Router, correction: Tensor | None, chosen: Tensor, weights: Tensor
) -> None:
    """See `kvrt.spi.ExpertOps.route`."""
    tokens, experts = logits.shape
    if tokens:
        block_e = triton.next_power_of_2(experts)
        block_t = max(1, min(16, NUMBERS // block_e))
        route_kernel[(triton.cdiv(tokens, block_t),)](
            logits,
            correction,
            chosen,
            weights,
            tokens,
            router.scale,
            router.least,
            router.jitter,
            EXPERTS=experts,
            CHOSEN=router.chosen,
            SCORE=router.score,
            RENORMALISE=router.renormalise,
            GROUPS=router.groups,
            GROUPS_CHOSEN=router.groups_chosen,
            BEST_TWO=router.group_score == "two",
            CORRECTED=correction is not None,
            BLOCK_T=block_t,
            BLOCK_E=block_e,
            BLOCK_C=triton.next_power_of_2(router.chosen),
            BLOCK_G=triton.next_power_of_2(router.groups),
            **options(warps=4),
        )
