"""Recurrent layers as they are defined, over one sequence from its beginning, in float64."""

import torch
from torch import Tensor

from kvrt.spi import DeltaRule, StateActivation, StateSpaceRule


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
    b, a = gates.split_with_sizes((heads, heads * rule.decays), 1)
    bias, log = rule.decay_bias.cpu().double(), rule.decay_log.cpu().double()
    gone = torch.nn.functional.softplus(a + bias).view(-1, heads, rule.decays, 1)
    decay = (-log.exp().view(-1, 1, 1) * gone).exp()
    q, k, v = qkv.split_with_sizes((keys, keys, qkv.shape[1] - 2 * keys), 1)
    q, k = (_unit(part.reshape(-1, rule.key_heads, rule.key_dim), rule) for part in (q, k))
    v = v.reshape(-1, heads, rule.value_dim)
    state = torch.zeros(heads, rule.key_dim, rule.value_dim, dtype=torch.double)
    out, states = [], []
    for token, beta in enumerate(rule.strength * b.sigmoid()):
        state = state * decay[token]
        new = v[token] - (state * k[token].unsqueeze(2)).sum(1)
        state = state + k[token].unsqueeze(2) * (beta.unsqueeze(1) * new).unsqueeze(1)
        out.append((state * q[token].unsqueeze(2)).sum(1) * rule.key_dim**-0.5)
        states.append(state)
    return torch.stack(out).flatten(1), torch.stack(states)


def scan(xbc: Tensor, times: Tensor, rule: StateSpaceRule) -> tuple[Tensor, Tensor]:
    """See `kvrt.spi.StateSpaceRule`: likewise, [tokens, heads * head_dim] and
    [tokens, heads, state_dim, head_dim]."""
    xbc, times = xbc.cpu().double(), times.cpu().double()
    log, bias, skip = (each.cpu().double() for each in (rule.decay_log, rule.time_bias, rule.skip))
    values, keys = rule.heads * rule.head_dim, rule.groups * rule.state_dim
    x, b, c = xbc.split_with_sizes((values, keys, keys), 1)
    x = x.reshape(-1, rule.heads, rule.head_dim)
    b, c = (
        part.reshape(-1, rule.groups, rule.state_dim)
        .repeat_interleave(rule.heads // rule.groups, 1)
        .unsqueeze(3)
        for part in (b, c)
    )
    time = torch.nn.functional.softplus(times + bias).clamp(*rule.limits)
    decay = (-log.exp() * time).exp()
    state = torch.zeros(rule.heads, rule.state_dim, rule.head_dim, dtype=torch.double)
    out, states = [], []
    for token in range(len(x)):
        new = (time[token].unsqueeze(1) * x[token]).unsqueeze(1)
        state = state * decay[token].view(-1, 1, 1) + b[token] * new
        out.append((state * c[token]).sum(1) + skip.unsqueeze(1) * x[token])
        states.append(state)
    return torch.stack(out).flatten(1), torch.stack(states)


def _unit(heads: Tensor, rule: DeltaRule) -> Tensor:
    """Of length 1, one for each value head."""
    root = (heads.square().sum(2, keepdim=True) + 1e-6).sqrt()
    each = rule.value_heads // rule.key_heads
    units = heads / root
    return units.repeat(1, each, 1) if rule.tiled else units.repeat_interleave(each, 1)
