"""What `kvrt.spi.ExpertOps` means, expert by expert, in float64 on the host."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from kvrt.spi import Experts, Router
from kvrt.testing import reference


def route(
    logits: Tensor, router: Router, correction: Tensor | None
) -> tuple[list[list[int]], Tensor]:
    """What each token chooses, and float64 [tokens, chosen], the weights."""
    added = [0.0] * logits.shape[1] if correction is None else correction.tolist()
    rows = [_route(row, router, added) for row in logits.tolist()]
    weights = torch.tensor([row[1] for row in rows], dtype=torch.float64)
    return [row[0] for row in rows], weights


def _route(
    logits: list[float], router: Router, added: list[float]
) -> tuple[list[int], list[float]]:
    if router.score == "sparsemixer":
        return _route_sparsely(logits, router)
    scores = {
        "softmax": _softmax(logits),
        "sigmoid": [1 / (1 + math.exp(-z)) for z in logits],
        "chosen": logits,
    }[router.score]
    ranked = [score + more for score, more in zip(scores, added, strict=True)]
    size = len(logits) // router.groups
    groups = [ranked[at : at + size] for at in range(0, len(ranked), size)]
    best = 2 if router.group_score == "two" else 1
    worth = [sum(sorted(group)[-best:]) for group in groups]
    kept = _largest(worth, router.groups_chosen, range(len(groups)))
    usable = [expert for expert in range(len(logits)) if expert // size in kept]
    chosen = _largest(ranked, router.chosen, usable)
    weights = [scores[expert] for expert in chosen]
    if router.score == "chosen":
        weights = _softmax(weights)
    if router.renormalise:
        weights = [weight / max(sum(weights), router.least) for weight in weights]
    return chosen, [weight * router.scale for weight in weights]


def _route_sparsely(logits: list[float], router: Router) -> tuple[list[int], list[float]]:
    chosen: list[int] = []
    weights: list[float] = []
    for _ in range(router.chosen):
        left = [expert for expert in range(len(logits)) if expert not in chosen]
        (best,) = _largest(logits, 1, left)
        most = logits[best]
        near = [
            logits[expert]
            for expert in left
            if (most - logits[expert]) / max(abs(logits[expert]), most) <= 2 * router.jitter
        ]
        chosen.append(best)
        weights.append(router.scale / sum(math.exp(z - most) for z in near))
    return chosen, weights


def _softmax(logits: Sequence[float]) -> list[float]:
    powers = [math.exp(z - max(logits)) for z in logits]
    return [power / sum(powers) for power in powers]


def _largest(scores: Sequence[float], count: int, among: Sequence[int]) -> list[int]:
    return sorted(among, key=lambda which: (-scores[which], which))[:count]


def mix(
    x: Tensor, experts: Experts, values: tuple[Tensor, Tensor], chosen: Tensor, weights: Tensor
) -> Tensor:
    """Each token's sum: float64 [tokens, out features].

    Args:
        values: of gate and up, and of down, as `Experts` has floats.
    """
    gate_up, down = (value.cpu().chunk(experts.count) for value in values)
    rows = []
    for token, (those, parts) in enumerate(zip(chosen.tolist(), weights.tolist(), strict=True)):
        total = torch.zeros(1, down[0].shape[0], dtype=torch.float64)
        for expert, weight in zip(those, parts, strict=True):
            total += weight * _one(x[token : token + 1], experts, gate_up, down, expert)
        rows.append(total)
    return torch.cat(rows)


def _one(
    x: Tensor, experts: Experts, gate_up: Sequence[Tensor], down: Sequence[Tensor], expert: int
) -> Tensor:
    biases = (
        None if bias is None else bias[expert] for bias in (experts.gate_up_bias, experts.down_bias)
    )
    gate_up_bias, down_bias = biases
    if experts.activation == "clamped":
        gate, up = reference.linear(x, gate_up[expert], gate_up_bias, None).chunk(2, dim=1)
        gate, up = gate.clamp(max=experts.limit), up.clamp(-experts.limit, experts.limit)
        between = (up + 1) * gate * torch.sigmoid(experts.alpha * gate)
    else:
        between = reference.gated_linear(x, gate_up[expert], experts.activation, gate_up_bias)
    return reference.linear(between, down[expert], down_bias, None)
