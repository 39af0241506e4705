"""`Arena`: addresses for as much KV memory as there could ever be, and memory under what is in use.

    with kvrt.Arena("64GiB", budget="4GiB") as arena:
        kv = arena.tensor(torch.bfloat16)           # over all 64 GiB
        arena.map(range(3))                         # memory under the first three chunks
        ...                                         # compute
        arena.unmap([1], after=event.query)         # gone when that work is done

For engines that have a page table of their own. It maps and unmaps chunks by their index, and keeps
within a budget; which page lies in which chunk is the engine's business.
"""

import contextlib
import operator
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from kvrt.checks import Checks, Maybe, Of, Size, Text, Whole, check_options
from kvrt.errors import ConfigError, DeviceError, KvrtError, OutOfMemory
from kvrt.executor.mapped import Mapped
from kvrt.executor.pool import ChunkPool
from kvrt.kv.limit import Limit, LimitChange
from kvrt.registry import AUTO, open_device
from kvrt.sharing.share import Share
from kvrt.sharing.tenant import Tenant
from kvrt.spi import DeviceInfo
from kvrt.units import format_bytes, parse_bytes

ARENA: Checks = {
    "nbytes": Size(),
    "backend": Text(),
    "device": Whole(0, 1023),
    "budget": Maybe(Size()),
    "keep_warm": Maybe(Size()),
    "share": Maybe(Of((Share, str))),
    "name": Text(),
}
"""Of each argument, what it may be."""

BUDGET: Checks = {"budget": Size(), "revision": Maybe(Whole(-(2**63), 2**63 - 1))}
"""The same, of `set_budget`."""

CLOSE_TIMEOUT_S = 10.0
"""Work behind which chunks are to be unmapped has so long to end when an arena is closed."""

_NAP_S = 0.001


@dataclass(frozen=True, slots=True)
class ArenaStats:
    """Where an arena stands.

    Args:
        mapped_bytes: physical memory in the span, what is about to be unmapped included.
        leaving_bytes: the part of it that waits for work to end.
        pooled_bytes: physical memory that is kept and not mapped. The arena holds both.
        budget_bytes: that may be held, as it was set.
        allowed_bytes: that may be held now: less than the budget if other tenants are due more.
        peak_mapped_bytes: the most that was mapped so far.
        maps: chunks mapped so far.
        unmaps: chunks unmapped so far.
    """

    mapped_bytes: int
    leaving_bytes: int
    pooled_bytes: int
    budget_bytes: int
    allowed_bytes: int
    peak_mapped_bytes: int
    maps: int
    unmaps: int

    @property
    def held_bytes(self) -> int:
        """Physical memory that is taken."""
        return self.mapped_bytes + self.pooled_bytes

    @property
    def over_bytes(self) -> int:
        """What is to be unmapped to keep to what is allowed."""
        return max(0, self.held_bytes - self.allowed_bytes)


class Arena:
    """See the module. Any thread may call it.

    What is mapped is readable and writable, at the address that it has for good; its bytes are
    undefined at first, and stay until it is unmapped. What is not mapped must not be touched: that
    may end the process. `map` and `unmap` do all that they are asked, or nothing.

    Args:
        nbytes: of addresses, rounded up to whole chunks. They cost no memory: bytes, or a text such
            as ``64GiB`` or ``90%`` (of the device's memory).
        backend: whose device it is; ``auto`` as for `kvrt.RuntimeConfig`.
        device: which of the backend's devices.
        budget: bytes of physical memory that may be held, rounded down to whole chunks; the same
            forms. None: as much as there are addresses.
        keep_warm: bytes of unmapped chunks that are kept, so that mapping the next ones costs
            little; None: nothing.
        share: keep within a budget with other processes as well: a `kvrt.Share`, or its name.
        name: of this tenant of the share, for people.

    Raises:
        ConfigError: an argument has a bad value; others have another size of the share.
        BackendUnavailable: the backend cannot be used here.
        DeviceError: the addresses cannot be reserved.
        CapacityError: the guarantees of all tenants are more than the share.
        StoreError: the share's ledger cannot be used.
    """

    def __init__(
        self,
        nbytes: int | str,
        *,
        backend: str = AUTO,
        device: int = 0,
        budget: int | str | None = None,
        keep_warm: int | str | None = None,
        share: Share | str | None = None,
        name: str = "arena",
    ) -> None:
        given = check_options(
            ARENA,
            nbytes=nbytes,
            backend=backend,
            device=device,
            budget=budget,
            keep_warm=keep_warm,
            share=share,
            name=name,
        )
        self._lock = threading.RLock()
        self._leaving: list[tuple[Callable[[], bool], set[int]]] = []
        self._peak = self._maps = self._unmaps = 0
        self._listens = False
        self._tenant: Tenant | None = None
        with contextlib.ExitStack() as stack:
            opened = open_device(given["backend"], given["device"])
            stack.callback(opened.close)
            self.device_info: DeviceInfo = opened.info
            self.chunk_bytes = opened.info.granularity
            """Of physical memory, which is mapped and unmapped by so much at a time."""
            self.chunks = -(-self._bytes(given["nbytes"]) // self.chunk_bytes)
            """How many there are addresses for: indices are from 0 to one less."""
            self._warm = self._bytes(given["keep_warm"] or 0) // self.chunk_bytes
            whole = self.chunks * self.chunk_bytes
            asked = whole if given["budget"] is None else self._bytes(given["budget"])
            self._limit = Limit(self._chunks_in(asked), asked)
            if given["share"] is not None:
                shared = given["share"]
                shared = Share(name=shared) if isinstance(shared, str) else shared
                self._tenant = shared.join(given["name"], opened.info)
                stack.callback(self._tenant.close)
            self._pool = ChunkPool(opened, self._tenant)
            stack.callback(self._pool.drain)
            self._span = Mapped(opened, whole, self._pool)
            stack.callback(self._span.release)
            self._closing = stack.pop_all()

    # --- mapping -----------------------------------------------------------------------------

    @property
    def nbytes(self) -> int:
        """Bytes of addresses."""
        return self._span.span.nbytes

    @property
    def address(self) -> int:
        """Where the first chunk is, or would be."""
        return self._span.span.base

    def tensor(self, dtype: torch.dtype = torch.uint8) -> Tensor:
        """All of it as a 1-D tensor, what is not mapped included. It owns nothing, and is valid
        until the arena is closed."""
        return self._span.tensor("float32").view(dtype)

    def chunks_of(self, at: int, nbytes: int) -> range:
        """The chunks in which bytes from `at` on lie."""
        return range(at // self.chunk_bytes, -(-(at + nbytes) // self.chunk_bytes))

    @property
    def mapped(self) -> frozenset[int]:
        """The chunks that may be used; not those that are about to be unmapped."""
        with self._lock:
            return frozenset(self._span.mapped.keys() - self._on_their_way())

    def map(self, indices: Iterable[int]) -> None:
        """Put memory under chunks: all of them, or none. One that waits to be unmapped stays then,
        with its bytes.

        Raises:
            ConfigError: there is no such chunk, or it is mapped.
            OutOfMemory: it is more than the budget, than other tenants leave (`NotLeased`), or than
                the device has.
            DeviceError: a call of the device failed.
        """
        with self._lock:
            wanted = self._checked(indices)
            leaving = self._on_their_way()
            for index in wanted:
                if index in self._span.mapped and index not in leaving:
                    raise ConfigError(f"chunk {index} is mapped already", fix="unmap it first")
            self.poll()
            new = [index for index in wanted if index not in self._span.mapped]
            self._check_budget(len(new))
            done: set[int] = set()
            try:
                for index in new:
                    self._span.map(index)
                    done.add(index)
                    self._maps += 1
            except BaseException:
                self._leaving.append((_at_once, done))
                with contextlib.suppress(KvrtError):  # it is tried again
                    self.poll()
                raise
            for _, those in self._leaving:
                those.difference_update(wanted)
            self._peak = max(self._peak, len(self._span.mapped))

    def unmap(self, indices: Iterable[int], after: Callable[[], bool] | None = None) -> None:
        """Take the memory under chunks away: all of them, or none.

        Args:
            after: says whether the work is done that may still use them, and goes on saying so:
                ``event.query`` of a `torch.cuda.Event`, say. They are unmapped by the first `poll`,
                `map`, `unmap` or `close` that finds it so. None: nothing uses them.

        Raises:
            ConfigError: a chunk is not mapped, or is about to be unmapped.
            DeviceError: a call of the device failed; what it did not come to waits for the next.
        """
        with self._lock:
            gone = self._checked(indices)
            leaving = self._on_their_way()
            for index in gone:
                if index not in self._span.mapped or index in leaving:
                    raise ConfigError(f"chunk {index} is not mapped", fix="unmap it once")
            self._leaving.append((after or _at_once, set(gone)))
            self.poll()

    def poll(self) -> int:
        """Unmap what waited for work that is done by now. Returns how many chunks wait on."""
        with self._lock:
            for entry in list(self._leaving):
                done, those = entry
                if those and not done():
                    continue
                for index in sorted(those):
                    self._span.unmap(index)
                    those.remove(index)
                    self._unmaps += 1
                self._leaving.remove(entry)
            self._pool.drain(max(0, min(self._warm, self._limit.chunks - len(self._span.mapped))))
            return len(self._on_their_way())

    def _on_their_way(self) -> set[int]:
        return set().union(*(those for _, those in self._leaving))

    def _checked(self, indices: Iterable[int]) -> list[int]:
        try:
            wanted = [operator.index(index) for index in indices]
        except TypeError:
            raise ConfigError("indices of chunks are whole numbers") from None
        for index in wanted:
            if not 0 <= index < self.chunks:
                raise ConfigError(f"there is no chunk {index}: indices are below {self.chunks}")
        if len(set(wanted)) < len(wanted):
            raise ConfigError("a chunk is named twice")
        return wanted

    # --- the budget --------------------------------------------------------------------------

    def set_budget(self, budget: int | str, revision: int | None = None) -> LimitChange:
        """Change how much physical memory may be held.

        Args:
            budget: as when it was made. Less than is mapped: nothing more is mapped until enough
                has been unmapped.
            revision: numbers the caller's changes; one that comes late, after a newer one, is
                ignored. None: it is the newest.
        """
        given = check_options(BUDGET, budget=budget, revision=revision)
        asked = self._bytes(given["budget"])
        with self._lock:
            if not self._limit.ask(self._chunks_in(asked), asked, given["revision"]):
                return LimitChange.STALE
            self.poll()
            within = self._held <= self._limit.chunks
            return LimitChange.APPLIED if within else LimitChange.DEFERRED

    def wants(self, nbytes: int) -> None:
        """So much would be of use now, all together: other tenants give back for it what they are
        not due. Of no effect without a share."""
        if self._tenant is not None:
            with self._lock:
                self._tenant.wants(nbytes)

    def listen(self, heard: Callable[[], None]) -> None:
        """Call `heard`, on a thread of its own, when other tenants are due what this one holds, and
        it has not looked at its `stats` since it was called last. Of no effect without a share."""
        if self._tenant is not None:
            self._tenant.listen(heard)
            self._listens = True
            self._tenant.waits(True)

    def stats(self) -> ArenaStats:
        """Where it stands now."""
        with self._lock:
            size, allowed = self.chunk_bytes, self._limit.chunks * self.chunk_bytes
            if self._tenant is not None:
                self._tenant.waits(self._listens)
                allowed = min(allowed, self._tenant.allowance())
            return ArenaStats(
                mapped_bytes=len(self._span.mapped) * size,
                leaving_bytes=len(self._on_their_way()) * size,
                pooled_bytes=len(self._pool) * size,
                budget_bytes=self._limit.nbytes,
                allowed_bytes=allowed,
                peak_mapped_bytes=self._peak * size,
                maps=self._maps,
                unmaps=self._unmaps,
            )

    @property
    def _held(self) -> int:
        return len(self._span.mapped) + len(self._pool)

    def _check_budget(self, more: int) -> None:
        mapped = len(self._span.mapped)
        if mapped + more > self._limit.chunks:
            raise OutOfMemory(
                f"{more} chunks more than the {mapped} that are mapped are not within the budget of"
                f" {format_bytes(self._limit.nbytes)}",
                needed=more * self.chunk_bytes,
                free=max(0, self._limit.chunks - mapped) * self.chunk_bytes,
                fix="unmap others, or raise the budget",
            )

    def _bytes(self, size: int | str) -> int:
        if isinstance(size, int):
            return size
        return parse_bytes(size, whole=self.device_info.total_bytes)

    def _chunks_in(self, nbytes: int) -> int:
        return min(nbytes // self.chunk_bytes, self.chunks)

    # --- the end -----------------------------------------------------------------------------

    def close(self, timeout: float = CLOSE_TIMEOUT_S) -> None:
        """Give all memory and addresses back. Nothing may use them any more. Safe to call twice.

        Args:
            timeout: seconds to wait for the work behind which chunks are to be unmapped.

        Raises:
            DeviceError: it did not end, and nothing was given back.
        """
        end = time.monotonic() + timeout
        while self.poll():
            if time.monotonic() > end:
                raise DeviceError(
                    f"work that uses chunks did not end within {timeout:g} s",
                    fix="end that work, and close it again",
                )
            time.sleep(_NAP_S)
        with self._lock:
            self._closing.close()
            self._tenant = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _at_once() -> bool:
    return True
