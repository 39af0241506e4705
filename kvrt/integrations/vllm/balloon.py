"""The blocks without memory, held so that nobody uses them: a balloon in vLLM's pool of blocks.

    all blocks    | null | used | free        | held                          |
    memory        |  x      x      x          |                               |
                                     <-- deflate: map, then let go of
                                         inflate: take, then unmap -->

vLLM calls on one thread, the scheduler's. What is decided here happens in the worker, one step
later: each step's `Orders` are numbered, and the worker reports how far it has come. What is
leased of a shared budget is never less than what the worker has.
"""

import heapq
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from kvrt.errors import CapacityError, OutOfMemory
from kvrt.integrations.vllm.ground import Ground, Layout
from kvrt.sharing.tenant import Tenant
from kvrt.units import format_bytes

SPARE_STEPS = 64
"""Blocks that were free in so many steps, one after the other, lose their memory."""

START_S = 30.0
"""Other tenants have so long to make room for the null block."""


class Block(Protocol):
    """One of vLLM's."""

    @property
    def block_id(self) -> int: ...


class Pool(Protocol):
    """What is asked of vLLM's pool of blocks."""

    num_gpu_blocks: int

    def get_num_free_blocks(self) -> int: ...

    def get_new_blocks(self, num_blocks: int) -> list[Block]: ...

    def free_blocks(self, ordered_blocks: Iterable[Block]) -> None: ...


@dataclass(frozen=True, slots=True)
class Orders:
    """What the worker is to do before a step.

    Args:
        number: counts steps.
        gone: blocks that need no memory any more.
        new: blocks that need some.
    """

    number: int
    gone: tuple[int, ...] = ()
    new: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class BalloonFigures:
    """Where a balloon stands.

    Args:
        held: bytes of memory that is leased.
        limit: bytes that may be, now.
        used: bytes of blocks that requests use.
        cached: bytes of blocks that have memory, and nobody uses.
        mapped: blocks that were given memory so far.
        unmapped: blocks that lost it.
        refused: times that a block was wanted and there was no memory for it.
    """

    held: int
    limit: int
    used: int
    cached: int
    mapped: int
    unmapped: int
    refused: int


class Balloon:
    """See the module.

    Args:
        pool: of which every free block is held from now on.
        headroom: blocks that are kept ready for running requests.
        keep: blocks that may stay free with what is cached in them.
        linger: seconds for which all may, once no request is left: the next one may come at once.
        delay: steps for which a block keeps its memory when it is held: somebody may yet read it.
        clock: seconds.
    """

    def __init__(
        self,
        pool: Pool,
        *,
        headroom: int,
        keep: int,
        linger: float = 0.0,
        delay: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pool, self._headroom, self._keep = pool, headroom, keep
        self._linger, self._clock = linger, clock
        self._idle_since: float | None = None
        self._held: list[tuple[int, Block]] = []
        self._ground: Ground | None = None
        self._whole = self._needed = self._limit = self._leased = 0
        self._tenant: Tenant | None = None
        self._kept = 0
        """Blocks that were free when nothing ran, and may stay: what is cached in them is to, if it
        can. What only lingers is used again."""
        self._gone: set[int] = set()
        self._leaving = deque[set[int]](set() for _ in range(delay))
        """Blocks that are to go in the next steps, the next one's first."""
        self._new: set[int] = set()
        self._fresh = 0
        """Chunks that the next orders map, at most."""
        self._sent: deque[tuple[int, int]] = deque()
        """Orders that nobody has reported on, and the chunks that each maps at most."""
        self._number = 0
        self._mapped = self._unmapped = self._refused = 0
        self._reclaim = False
        self._least, self._steps = pool.num_gpu_blocks, 0
        self._hold(pool.get_num_free_blocks())

    def lay(
        self, layout: Layout, *, limit_bytes: int | None, longest: int, tenant: Tenant | None
    ) -> None:
        """Where blocks lie, and what all of them may take.

        Args:
            limit_bytes: None: as much as all of them need.
            longest: blocks that one request may need.
            tenant: of a budget that is shared.

        Raises:
            CapacityError: it has no room for the longest request.
        """
        self._ground, self._tenant = Ground(layout), tenant
        self._whole = layout.chunks_for(range(self._pool.num_gpu_blocks))
        self._needed = layout.chunks_for(range(longest + 1))
        self.set_limit(self._whole * layout.chunk_bytes if limit_bytes is None else limit_bytes)
        self._leased = len(self._ground.take(0))
        if tenant is not None:
            tenant.take_soon(self._leased * layout.chunk_bytes, START_S)

    def set_limit(self, nbytes: int) -> bool:
        """What all blocks may take from now on. What is beyond it goes as it comes free. Any thread
        may call it.

        Returns:
            Whether it is kept to already.

        Raises:
            CapacityError: it has no room for the longest request; nothing is changed.
        """
        size = self._the_ground.layout.chunk_bytes
        limit = min(self._whole, nbytes // size)
        most = limit if self._tenant is None else min(limit, self._tenant.total // size)
        if self._needed > most:
            raise CapacityError(
                f"the longest request needs {format_bytes(self._needed * size)} of KV memory, and"
                f" {format_bytes(most * size)} may be had",
                needed=self._needed * size,
                free=most * size,
                fix="allow more, or lower vLLM's max_model_len",
            )
        self._limit = limit
        return self._leased <= limit

    def reclaim(self) -> bool:
        """What nobody uses is to lose its memory, with the next orders. Any thread may call it.

        Returns:
            Whether there is nothing of that kind.
        """
        self._reclaim = self._pool.get_num_free_blocks() > 0 or not self.settled
        return not self._reclaim

    # --- while a step is scheduled -------------------------------------------------------------

    def want(self, blocks: int) -> int:
        """Have so many free blocks beside those that are kept, as far as there is memory. Returns
        how many came."""
        return self._fill(blocks + self._kept)

    def more(self) -> bool:
        """A running request finds no free block: whether there are some now."""
        return self._fill(self._pool.get_num_free_blocks() + self._headroom) > 0

    def orders(self, running: int) -> Orders:
        """A step has been scheduled, in which so many requests run: what the worker is to do."""
        pool = self._pool
        if not self._idle:
            self._idle_since = None
        if running:
            self._give_spare()
            self.want(min(running, self._headroom))
        elif self._idle:
            now = self._clock()
            self._idle_since = now if self._idle_since is None else self._idle_since
            if now - self._idle_since >= self._linger:
                self._hold(pool.get_num_free_blocks() - self._keep)
            self._kept = min(pool.get_num_free_blocks(), self._keep)
            self._say_wants(0)
        excess = pool.num_gpu_blocks if self._reclaim else self._excess
        self._reclaim = False
        self._hold(min(pool.get_num_free_blocks(), excess))
        self._number += 1
        self._leaving.append(self._gone)
        gone = self._leaving.popleft()
        orders = Orders(self._number, tuple(sorted(gone)), tuple(sorted(self._new)))
        self._sent.append((self._number, self._fresh))
        self._mapped += len(self._new)
        self._unmapped += len(gone)
        self._gone, self._new, self._fresh = set(), set(), 0
        return orders

    def reported(self, number: int, held: int) -> None:
        """The worker has come so far: what it has no more is anybody's.

        Args:
            number: of the last orders that it has carried out.
            held: chunks that it has.
        """
        while self._sent and self._sent[0][0] <= number:
            self._sent.popleft()
        to_come = self._fresh + sum(fresh for _, fresh in self._sent)
        spare = self._leased - held - to_come
        if spare > 0:
            self._leased -= spare
            if self._tenant is not None:
                self._tenant.give(spare * self._the_ground.layout.chunk_bytes)

    @property
    def settled(self) -> bool:
        """Nothing is to be given back, unless a request comes."""
        spare = self._idle and self._pool.get_num_free_blocks() > self._keep
        going = self._gone or any(self._leaving)
        return not (spare or going or self._new) and self._leased == len(self._the_ground)

    def figures(self) -> BalloonFigures:
        """Where it stands."""
        layout, free = self._the_ground.layout, self._pool.get_num_free_blocks()
        used = self._pool.num_gpu_blocks - len(self._held) - free - 1
        limit = self._limit * layout.chunk_bytes
        return BalloonFigures(
            held=self._leased * layout.chunk_bytes,
            limit=limit if self._tenant is None else min(limit, self._tenant.allowance()),
            used=used * layout.block_bytes,
            cached=free * layout.block_bytes,
            mapped=self._mapped,
            unmapped=self._unmapped,
            refused=self._refused,
        )

    # --- within --------------------------------------------------------------------------------

    @property
    def _the_ground(self) -> Ground:
        assert self._ground is not None, "the worker has said how blocks lie"
        return self._ground

    @property
    def _idle(self) -> bool:
        """No request has a block; one is the null block."""
        pool = self._pool
        return pool.get_num_free_blocks() + len(self._held) + 1 == pool.num_gpu_blocks

    @property
    def _excess(self) -> int:
        """Blocks that are to go: others are due their memory, or the limit is lower now."""
        layout = self._the_ground.layout
        allowed = self._limit * layout.chunk_bytes
        if self._tenant is not None:
            allowed = min(allowed, self._tenant.allowance())
        over = self._leased * layout.chunk_bytes - allowed
        return -(-over // layout.block_bytes)

    def _fill(self, blocks: int) -> int:
        count = 0
        while self._pool.get_num_free_blocks() < blocks and self._let_go():
            count += 1
        if (missing := blocks - self._pool.get_num_free_blocks()) > 0:
            self._refused += 1
            self._say_wants(missing)
        return count

    def _give_spare(self) -> None:
        self._least = min(self._least, self._pool.get_num_free_blocks())
        self._steps += 1
        if self._steps == SPARE_STEPS:
            self._hold(self._least - self._headroom - self._keep)
            self._least, self._steps = self._pool.num_gpu_blocks, 0

    def _hold(self, count: int) -> None:
        """Take so many free blocks; what is cached in them is lost."""
        if count <= 0:
            return
        for block in self._pool.get_new_blocks(count):
            number = block.block_id
            heapq.heappush(self._held, (number, block))
            if self._ground is None:
                continue
            self._ground.give(number)
            if number in self._new:
                self._new.remove(number)
            else:
                self._gone.add(number)

    def _let_go(self) -> bool:
        """Let vLLM have the first block that is held. False: there is no memory for it."""
        if not self._held:
            return False
        number, block = self._held[0]
        new = len(self._the_ground.take(number))
        if new and not self._lease(new):
            self._the_ground.give(number)
            return False
        heapq.heappop(self._held)
        self._fresh += new
        for going in (self._gone, *self._leaving):
            if number in going:
                going.remove(number)
                break
        else:
            self._new.add(number)
        self._pool.free_blocks([block])
        return True

    def _lease(self, chunks: int) -> bool:
        """So many chunks more."""
        if self._leased + chunks > self._limit:
            return False
        if self._tenant is not None:
            try:
                self._tenant.take(chunks * self._the_ground.layout.chunk_bytes)
            except OutOfMemory:
                return False
        self._leased += chunks
        return True

    def _say_wants(self, blocks: int) -> None:
        """So many blocks more than have memory would be of use."""
        if self._tenant is not None:
            layout = self._the_ground.layout
            mapped = len(self._the_ground) * layout.chunk_bytes
            self._tenant.wants(mapped + blocks * layout.block_bytes)
