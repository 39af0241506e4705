"""What a module does, found out by calling it: its layers of attention, and whether it does more
between tokens than that, which pages could not serve.
"""

import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kvrt.errors import ModelError
from kvrt.model.borrowed.attention import NAME, Call, asking, plain_attention

STEPS = [4, 0], [3, 5]
"""Tokens of each of two texts that are computed in each step of the trial."""

NEAR = {torch.float32: 1e-3}
FAR = 0.1
"""How much logits may differ, by their dtype, of those the largest."""


class Found(NamedTuple):
    """A module's attention.

    Args:
        modules: of the layers, in the order in which they are called.
        windows: of each, 0: it sees all.
        heads: of queries.
        kv_heads: of keys and values.
        head_dim: width of a key.
        vocab: how many logits there are.
    """

    modules: list[nn.Module]
    windows: list[int]
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int


class _Watching:
    """Attends in torch's operators to what it has seen of each text, and keeps what was asked."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.step: Sequence[int] = ()
        self._seen: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}

    def attend(self, call: Call) -> Tensor:
        self.calls.append(call)
        found = []
        new = zip(*(torch.split(heads, list(self.step)) for heads in call[1:4]), strict=True)
        for text, (q, k, v) in enumerate(new):
            seen = self._seen.setdefault((id(call.module), text), [])
            seen.append((k, v))
            keys, values = (torch.cat(all) for all in zip(*seen, strict=True))
            found.append(plain_attention(call._replace(q=q, k=keys, v=values)))
        return torch.cat(found)


def module_logits(
    module: nn.Module, tokens: Tensor, positions: Tensor, rows: Tensor | None = None
) -> Tensor:
    """The logits of tokens at their positions, [tokens] each; of some rows, if they are given."""
    options: dict[str, Any] = {"use_cache": False}
    keeps = "logits_to_keep" in inspect.signature(module.forward).parameters
    if rows is not None and keeps:
        options["logits_to_keep"] = rows
    logits = module(input_ids=tokens[None], position_ids=positions[None], **options).logits[0]
    found: Tensor = logits if rows is None or keeps else logits[rows]
    return found


@torch.inference_mode()
def try_out(module: Any, vocab: int, device: str) -> Found:
    """Call a module with two texts in one row, one of them in two steps, and with each alone.

    Raises:
        ModelError: it does not say the same, or asks for what pages do not have.
    """
    name = type(module).__name__
    if "position_ids" not in inspect.signature(module.forward).parameters:
        raise ModelError(f"{name} takes no positions, so texts cannot lie behind one another")
    generator = torch.Generator().manual_seed(0)
    counts = [sum(counts) for counts in zip(*STEPS, strict=True)]
    texts = [torch.randint(vocab, (count,), generator=generator).to(device) for count in counts]
    places = [torch.arange(count, device=device) for count in counts]
    watching, done = _Watching(), [0] * len(texts)
    said: list[list[Tensor]] = [[] for _ in texts]
    for step in STEPS:
        watching.step = step
        now = [slice(begin, begin + count) for begin, count in zip(done, step, strict=True)]
        tokens, positions = (
            torch.cat([of[part] for of, part in zip(what, now, strict=True)])
            for what in (texts, places)
        )
        with asking(watching):
            logits = module_logits(module, tokens, positions)
        for text, part in enumerate(torch.split(logits, list(step))):
            said[text].append(part)
        done = [part.stop for part in now]
    module.set_attn_implementation("eager")
    alone = [module_logits(module, *text) for text in zip(texts, places, strict=True)]
    module.set_attn_implementation(NAME)
    found = _found(name, watching.calls[: len(watching.calls) // len(STEPS)], alone[0].shape[-1])
    given = torch.cat([part for parts in said for part in parts]).float()
    wanted = torch.cat(alone).float()
    error = float((given - wanted).abs().max() / wanted.abs().max())
    if not error <= NEAR.get(alone[0].dtype, FAR):  # also of what is no number
        raise ModelError(
            f"{name} computes other scores for texts in steps than for each at once (by"
            f" {error:.2g} of the largest): it does more between tokens than attention"
        )
    return found


def _found(name: str, calls: list[Call], vocab: int) -> Found:
    if not calls:
        raise ModelError(
            f"{name} has an attention of its own, not transformers' AttentionInterface"
        )
    modules = [call.module for call in calls]
    if len({id(module) for module in modules}) < len(modules):
        raise ModelError(f"layers of {name} share their attention")
    shapes = {(call.q.shape[1], call.k.shape[1], call.k.shape[2]) for call in calls}
    if len(shapes) > 1:
        raise ModelError(f"layers of {name} have keys of different shapes")
    if any(call.v.shape[-1] > call.k.shape[-1] for call in calls):
        raise ModelError(f"{name} has values that are wider than its keys")
    windows = [call.window for call in calls]
    return Found(modules, windows, *next(iter(shapes)), vocab)
