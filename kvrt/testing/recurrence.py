"""Recurrent layers as they are defined, over one sequence from its beginning, in float64."""

import torch
from torch import Tensor

from kvrt.spi import DeltaRule, StateActivation


def convolved(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: StateActivation
) -> Tensor:
    """See `kvrt.spi.Recurrence.convolve`: [tokens, width]."""
    x, weight = x.cpu().double(), weight.cpu().double()
    kernel = weight.shape[1]
    padded = torch.cat((torch.zeros(kernel - 1, x.shape[1], dtype=torch.double), x))
    out = (padded.unfold(0, kernel, 1) * weight).sum(2)
    if bias is not None:
        out += bias.cpu().double()
    return out if activation == "none" else out * out.sigmoid()


def delta(qkv: Tensor, gates: Tensor, rule: DeltaRule) -> tuple[Tensor, Tensor]:
    """See `kvrt.spi.DeltaRule`: what the tokens are given, [tokens, value_heads * value_dim], and
    the states after each, [tokens, value_heads, key_dim, value_dim]."""
    qkv, gates = qkv.cpu().double(), gates.cpu().double()
    heads, keys = rule.value_heads, rule.key_heads * rule.key_dim
    b, a = gates.chunk(2, 1)
    bias, log = rule.decay_bias.cpu().double(), rule.decay_log.cpu().double()
    decay = (-log.exp() * torch.nn.functional.softplus(a + bias)).exp()
    q, k, v = qkv.split_with_sizes((keys, keys, qkv.shape[1] - 2 * keys), 1)
    q, k = (_unit(part.reshape(-1, rule.key_heads, rule.key_dim), heads) for part in (q, k))
    v = v.reshape(-1, heads, rule.value_dim)
    state = torch.zeros(heads, rule.key_dim, rule.value_dim, dtype=torch.double)
    out, states = [], []
    for token, beta in enumerate(b.sigmoid()):
        state = state * decay[token].view(-1, 1, 1)
        new = v[token] - (state * k[token].unsqueeze(2)).sum(1)
        state = state + k[token].unsqueeze(2) * (beta.unsqueeze(1) * new).unsqueeze(1)
        out.append((state * q[token].unsqueeze(2)).sum(1) * rule.key_dim**-0.5)
        states.append(state)
    return torch.stack(out).flatten(1), torch.stack(states)


def _unit(heads: Tensor, count: int) -> Tensor:
    """Of length 1, each for as many of `count` heads."""
    root = (heads.square().sum(2, keepdim=True) + 1e-6).sqrt()
    return (heads / root).repeat_interleave(count // heads.shape[1], 1)
