"""What attention is asked: the sequences of a step, and what may differ between layers."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kvrt.spi.layout import KVLayout

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class AttentionBatch:
    """The sequences of one step; each brings some new ("query") tokens, or none.

    Sequence `s` brings the rows ``query_start[s] : query_start[s + 1]`` of q, k, v and out. They
    are the last tokens of its context: row ``query_start[s] + i`` stands at position
    ``context_len[s] - query_len[s] + i``. The token at position p lives in slot
    ``p % page_size`` of page ``page_table[s, p // page_size]``. Entries of the page table beyond
    the context, and slots beyond it, may be anything and must not be read.

    Nor is anything read that no token can see: neither pages that lie before the window of a
    sequence's first new token (and hold none of the sinks), which have been given to others, nor
    their entries of the page table. kvrt puts 0 there, a page that is always mapped, and `Checked`
    insists on pages that are; a device must not notice if they are numbers of no page at all.

    With `parents`, which needs `Capability.TREES`, the new tokens of a sequence may branch, as
    guesses at what comes next do:

        7 tokens before -- a --+-- b -- c        row         0   1   2   3   4
                               +-- d -- e        parents    -1   0   1   0   3
                                                 position    7   8   9   8   9
                                                 slot        7   8   9  10  11

    A token then sees the tokens before this step, its ancestors among the new ones, and itself,
    and stands at the position after its parent's. Its slot goes by its row as ever. Its result is
    that of a batch in which its ancestors stand in line and nothing is beside them: the same bits,
    where the device is `BATCH_INVARIANT`.

    The tensors on the host are the caller's again when `plan`, `capture` or `replay` has returned:
    the page table is an array that is changed in place from step to step.

    Args:
        kv: 1-D, `layout.storage`, over the whole span (`VirtualMemory.tensor`, seen as bytes for
            `uint8`).
        layout: where in `kv` a token's keys and values are.
        page_table: int32 [sequences, max pages], on the host, contiguous.
        query_start: int32 [sequences + 1], on the host, begins with 0, never decreases.
        context_len: int32 [sequences], on the host, this step's tokens included.
        parents: int32 [tokens], on the host: which of its sequence's new tokens each one follows,
            counted from 0 and before itself; -1 for the last token before this step. None: each
            follows the one before it.
    """

    kv: "Tensor" = field(repr=False)  # printing it would read the holes
    layout: KVLayout
    page_table: "Tensor"
    query_start: "Tensor"
    context_len: "Tensor"
    parents: "Tensor | None" = None


@dataclass(frozen=True, slots=True)
class AttentionParams:
    """What may differ between layers.

    Args:
        scale: multiplies the dot products of q and k.
        window: a token sees only the last `window` positions, its own included; 0 = all.
        softcap: scores become ``softcap * tanh(score / softcap)``; 0 = off.
        sinks: besides its window a token sees the first `sinks` positions, up to its own (Xiao et
            al. 2023, arXiv 2309.17453; but positions stay those of the text).
        causal: a token sees the positions up to its own; else all of its context, without a window
            and without `parents`.
        sink_logits: a learned logit of each query head, float32 [heads], contiguous, on the
            device: its exponential is one more term of the softmax's denominator, for a token that
            has no value. It is neither scaled nor capped. None: there is none.
    """

    scale: float
    window: int = 0
    softcap: float = 0.0
    sinks: int = 0
    causal: bool = True
    sink_logits: "Tensor | None" = None
