"""A serving stack of one's own that takes nothing of kvrt but its memory: `kvrt.Arena`.

    python examples/own_engine.py

The stack has its page table (`Blocks`), its scheduler (`serve`) and its model, for which one layer
of attention stands. Its cache is one tensor, as large as it could ever need; memory is under the
blocks that requests hold, and goes back when they end. Other engines may have it then, within a
budget (`kvrt.Share`): docs/arena.md.
"""

import heapq
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

import kvrt

HEADS, DIM, TOKENS = 8, 64, 16
BLOCK = (2, TOKENS, HEADS, DIM)
"""Of keys and values, so many tokens."""
BLOCK_BYTES = 4 * 2 * TOKENS * HEADS * DIM


class Blocks:
    """Which blocks are free, and memory under those that are not."""

    def __init__(self, arena: kvrt.Arena) -> None:
        count = arena.nbytes // BLOCK_BYTES
        self.arena = arena
        self.kv = arena.tensor(torch.float32)[: count * BLOCK_BYTES // 4].view(count, *BLOCK)
        self.free = list(range(count))  # a heap: low blocks first, so that few chunks are in use
        self.used: Counter[int] = Counter()
        """How many blocks in use lie in each chunk."""

    def take(self) -> int:
        block = heapq.heappop(self.free)
        chunks = self.arena.chunks_of(block * BLOCK_BYTES, BLOCK_BYTES)
        self.arena.map([chunk for chunk in chunks if not self.used[chunk]])
        self.used.update(chunks)
        return block

    def give(self, block: int) -> None:
        chunks = self.arena.chunks_of(block * BLOCK_BYTES, BLOCK_BYTES)
        self.used.subtract(chunks)
        # On a GPU, after=event.query of the event behind the last step that reads it.
        self.arena.unmap([chunk for chunk in chunks if not self.used[chunk]])
        heapq.heappush(self.free, block)


class Request:
    """One request: what it is about, how far it is, and its row of the page table."""

    def __init__(self, seed: int, length: int) -> None:
        self.random = torch.Generator().manual_seed(seed)
        self.length, self.computed = length, 0
        self.row: list[int] = []
        self.said = torch.zeros(HEADS, DIM)

    def step(self, blocks: Blocks) -> None:
        """One token: its key and value into a block, and its query over all of them."""
        if self.computed == len(self.row) * TOKENS:
            self.row.append(blocks.take())
        q, k, v = torch.randn(3, HEADS, DIM, generator=self.random)
        slot = self.computed % TOKENS
        blocks.kv[self.row[-1], 0, slot], blocks.kv[self.row[-1], 1, slot] = k, v
        self.computed += 1
        self.said = attention(q, blocks.kv[self.row], self.computed)


def attention(q: Tensor, held: Tensor, length: int) -> Tensor:
    """Of a query [heads, dim] over the first tokens of blocks [n, 2, tokens, heads, dim]."""
    k, v = held.transpose(0, 1).reshape(2, -1, HEADS, DIM)[:, :length]
    weights = torch.softmax(torch.einsum("hd,thd->ht", q, k) * DIM**-0.5, dim=-1)
    return torch.einsum("ht,thd->hd", weights, v)


def serve(blocks: Blocks, lengths: Sequence[int], at_once: int = 4) -> list[Tensor]:
    """What is said last of requests of some lengths, a few of which run at once."""
    waiting = [Request(seed, length) for seed, length in enumerate(lengths)]
    all_of_them, running = list(waiting), list[Request]()
    while waiting or running:
        while waiting and len(running) < at_once:
            running.append(waiting.pop(0))
        for sequence in list(running):
            sequence.step(blocks)
            if sequence.computed == sequence.length:
                running.remove(sequence)
                for block in sequence.row:
                    blocks.give(block)
    return [sequence.said for sequence in all_of_them]


def main() -> None:
    with kvrt.Arena("64GiB", budget="256MiB", keep_warm="0B") as arena:
        serve(Blocks(arena), [200, 900, 40, 640, 320, 70])
        stats = arena.stats()
        print(f"reserved {arena.nbytes / 2**30:.0f} GiB of addresses")
        print(f"held     {stats.peak_mapped_bytes / 2**20:.0f} MiB at the peak")
        print(f"holds    {stats.mapped_bytes / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
