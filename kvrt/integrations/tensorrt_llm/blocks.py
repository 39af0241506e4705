"""Which blocks of a request are in the store, come from it, and go there: of numbers alone."""

import hashlib
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field


def block_names(tokens: Sequence[int], size: int, names: list[bytes]) -> list[bytes]:
    """What the full blocks of a request are called: by all tokens up to their ends.

    Args:
        size: tokens in a block.
        names: of the first ones, from an earlier call with fewer tokens; longer when it returns.
    """
    for start in range(len(names) * size, len(tokens) - size + 1, size):
        own = array("q", tokens[start : start + size]).tobytes()
        names.append(hashlib.sha256((names[-1] if names else b"") + own).digest())
    return names


@dataclass(slots=True)
class Running:
    """What is known of a request that runs.

    Args:
        size: tokens in a block.
        loaded: its first blocks that were computed elsewhere, or will have come from the store.
        tokens: so far.
        blocks: where its tokens are, in order; -1: nowhere any more.
        names: of its full blocks.
        seen: blocks that were full before, and are saved.
    """

    size: int
    loaded: int = 0
    tokens: list[int] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)
    names: list[bytes] = field(default_factory=list)
    seen: int = 0

    def goes_on(
        self, tokens: Iterable[int], blocks: Iterable[int], computed: int, scheduled: int
    ) -> list[tuple[bytes, int]]:
        """A pass computes some of its tokens. Returns the blocks that are full after it and were
        not before, each after its name.

        Args:
            tokens: that are new.
            blocks: that are new.
            computed: tokens that are, before the pass; with or without those that are loaded, which
                releases of TensorRT-LLM do not agree about.
            scheduled: tokens of the pass.
        """
        self.tokens += tokens
        self.blocks += blocks
        done = max(computed, self.loaded * self.size) + scheduled
        full = min(done, len(self.tokens)) // self.size
        full = min(full, len(self.blocks))
        names = block_names(self.tokens, self.size, self.names)
        new = range(self.seen, full)
        self.seen = max(self.seen, full)
        return [(names[at], self.blocks[at]) for at in new if self.blocks[at] >= 0]
