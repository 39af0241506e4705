"""KV memory of several groups of layers with tiers that are small and fail: whatever comes, and
whatever does not come back, sequences find their own tokens."""

import errno
import os
import random
from collections import Counter
from pathlib import Path

import pytest

from kvrt.executor.local import LocalPages
from kvrt.kv.index.reuse import PrefixReuse
from kvrt.kv.offload import Offload
from kvrt.kv.seq import Seq
from kvrt.kv.tiers.disk import DiskStore
from kvrt.kv.tiers.files import DATA
from kvrt.kv.tiers.format import PageFormat
from kvrt.kv.tiers.host import ALIGNMENT, HostStore
from kvrt.kv.tiers.pagefile import PageFile
from kvrt.spi import Device
from tests.pages.life import ROOT, Life
from tests.pages.shapes import SIZE

from .pages import FINGERPRINT, Faults

KINDS = [
    "straddling",
    "straddling+many in a chunk 9 0",
    "many in a chunk+one chunk 11 5",
    "straddling 14 0+many in a chunk 5 2",
    "many in a chunk+straddling 6 0+one chunk 10 3",
]


class Tiers:
    """Host memory for a few pages of each group, and a disk behind it that fails now and then.

    Args:
        folder: of the disk; None: there is none.
        rng: when it fails.
        seen: counts that.
        at_once: pages go on to the disk at once.
    """

    def __init__(
        self,
        folder: Path | None,
        rng: random.Random,
        seen: Counter[str],
        *,
        at_once: bool = False,
    ) -> None:
        self.folder, self.rng, self.seen, self.at_once = folder, rng, seen, at_once
        self.faults = Faults()

    def __call__(self, pages: LocalPages, reuse: PrefixReuse) -> Offload:
        sizes = tuple(layout.page_bytes for layout in pages.layouts)
        frames = 12 if self.folder is None else 5
        self.host = HostStore(
            pages, sizes, frames * max(sizes) + ALIGNMENT, slab_bytes=4 * max(sizes)
        )
        disk = None
        if self.folder is not None:
            form = PageFormat(FINGERPRINT, sizes, SIZE)
            file = PageFile.open(self.folder, form, budget=60 * sum(sizes), open_file=self.faults)
            disk = DiskStore(file, threads=1, retry_after=0.0, warn_every=0.0)
        reuse.cost.choice = "move"
        return Offload(pages, self.host, reuse.cost, disk, is_tier=True, write_at_once=self.at_once)

    def trouble(self) -> None:
        """A call fails soon, a byte on the disk changes, or a page is gone from host memory."""
        what = self.rng.choice(["fail", "flip", "lose"])
        self.seen[what] += 1
        if what == "lose":
            if names := self.host.names():
                self.host.remove(self.rng.choice(names))
        elif what == "fail":
            self.faults.at = self.faults.calls + self.rng.randrange(3)
            self.faults.error = self.rng.choice([errno.EIO, errno.ENOSPC])
        elif self.folder is not None and (size := os.stat(self.folder / DATA).st_size):
            with (self.folder / DATA).open("r+b") as file:
                file.seek(self.rng.randrange(size))
                file.write(b"\xa5" * 50_000)


@pytest.mark.promise("P20", "P22")
@pytest.mark.parametrize("where", ["host", "host and disk"])
@pytest.mark.parametrize("kind", KINDS)
def test_sequences_read_what_was_computed_of_their_tokens(
    null_device: Device, kind: str, where: str, tmp_path: Path
) -> None:
    seen: Counter[str] = Counter()
    for seed in range(3):
        rng = random.Random(seed)
        folder = None if where == "host" else tmp_path / f"{seed}"
        tiers = Tiers(folder, rng, seen)
        life = Life(null_device, kind, rng, tiers, limit=24)
        for _ in range(80):
            if len(life.waiting) < 3:
                life.add()
            life.go_on()
            assert life.offload is not None
            if rng.random() < 0.5:
                life.offload.wait()
            if rng.random() < 0.15:
                life.something()
            if rng.random() < 0.3:
                tiers.trouble()
            if rng.random() < 0.05 and life.fetching:
                life.end(rng.choice([*life.fetching]))
                seen["ended while it came"] += 1
            life.check()
            tiers.host.check_integrity()
            if not life.step % 5:
                life.check_bytes()
        for seq in [*life.running, *life.fetching, *life.waiting]:
            life.end(seq)
        life.prefixes.forget(None)
        life.memory.rest()
        assert life.cache.stats().cached_pages == life.cache.stats().used_pages == 0
        stats = life.offload.stats()
        seen += life.seen
        seen.update(saved=stats.saved_pages, back=stats.fetched_pages, missed=stats.missed_pages)
        life.memory.close()
        life.cache.close()
    assert min(seen[what] for what in ("cached", "fetched", "back", "saved")) > 0, seen


@pytest.mark.parametrize("kind", KINDS)
def test_pages_move_together_while_others_come_back(
    null_device: Device, kind: str, tmp_path: Path
) -> None:
    seen: Counter[str] = Counter()
    for seed in range(8):
        rng = random.Random(seed)
        life = Life(null_device, kind, rng, Tiers(tmp_path / f"{seed}", rng, seen), limit=40)
        for _ in range(60):
            if len(life.waiting) < 3:
                life.add()
            life.go_on()
            life.something("limit" if rng.random() < 0.7 else "clear")
            life.check()
            life.check_bytes()
        for seq in [*life.running, *life.fetching, *life.waiting]:
            life.end(seq)
        seen += life.seen
        life.memory.close()
        life.cache.close()
    assert min(seen["packed_meanwhile"], seen["tokens back"]) > 0, seen


@pytest.mark.promise("P22")
@pytest.mark.parametrize("kind", KINDS)
def test_a_fetch_that_fails_at_any_page_goes_on_where_all_groups_can(
    null_device: Device, kind: str, tmp_path: Path
) -> None:
    """All of a prompt is on disk only, and the disk fails at each of its reads in turn."""
    rng = random.Random(1)
    tiers = Tiers(tmp_path, rng, Counter(), at_once=True)
    life = Life(null_device, kind, rng, tiers)
    pages, groups = 10, life.cache.table.groups
    prompt = [rng.randrange(3) for _ in range(pages * SIZE + 1)]

    def needed(border: int) -> set[tuple[int, int]]:
        return {
            (at, group)
            for group, layers in enumerate(groups)
            for part in layers.kept(border * SIZE)
            for at in part
        }

    tell(life, tiers, prompt)
    coming = sorted(needed(pages))
    for failing in range(len(coming) + 1):
        tiers.faults.at = tiers.faults.calls + failing
        back = tell(life, tiers, prompt)
        there = {*coming[:failing]}
        assert back == SIZE * max(b for b in range(pages + 1) if needed(b) <= there)
    life.memory.close()
    life.cache.close()


def test_a_window_that_came_back_for_a_sequence_that_is_doubted_is_found_no_more(
    null_device: Device,
) -> None:
    """Of layers that see everything it shares the pages of one that goes on from the same prompt,
    whose window has moved on; the window came back for it alone."""
    rng = random.Random(1)
    tiers = Tiers(None, rng, Counter())
    life = Life(null_device, "straddling+many in a chunk 9 0", rng, tiers)
    prompt = [rng.randrange(3) for _ in range(10 * SIZE + 1)]
    tell(life, tiers, prompt, clear=False)
    other, doubted = (
        Seq(n, [*prompt, *[2] * n], 10 * SIZE + 1 + n, 20 * SIZE, arrival=n, root=ROOT)
        for n in (4 * SIZE, 2)
    )
    for seq in (other, doubted):
        life.waiting.append(seq)
        while seq not in life.running or (seq is other and life.cache.table.row(other.id, 1)[9]):
            life.go_on()
        table = life.cache.table
        entries = [entry.pages[1] for entry in life.reuse.index if entry.pages[1]]
        idle = tuple(page for page in entries if table.lanes[1].holders.idle(page))
        life.memory.commit(table.forget(((), idle)))
    assert life.seen["tokens back"] == 10 * SIZE
    shared = {*life.cache.table.pages(other.id)} & {*life.cache.table.pages(doubted.id)}
    assert len(shared) == 10
    life.doubt(doubted)
    life.check_bytes()
    life.end(other)
    tell(life, tiers, [*prompt, 1], clear=False)
    life.memory.close()
    life.cache.close()


def tell(life: Life, tiers: Tiers, prompt: list[int], *, clear: bool = True) -> int:
    """A sequence from its beginning to its end. Returns how many of its tokens came back.

    Args:
        clear: in the end all of it is on disk, and nowhere else.
    """
    assert life.offload is not None
    before = life.seen["tokens back"]
    life.ids += 1
    seq = Seq(life.ids, [*prompt], len(prompt), len(prompt) + 1, arrival=life.ids, root=ROOT)
    life.waiting.append(seq)
    while seq in life.waiting or seq in life.fetching or seq in life.running:
        life.go_on()
        life.offload.wait()
    tiers.faults.at = None
    life.check_bytes()
    if clear:
        life.memory.clear(())
        while life.offload.busy:
            life.offload.poll()
        for name in tiers.host.names():
            tiers.host.remove(name)
    return life.seen["tokens back"] - before
