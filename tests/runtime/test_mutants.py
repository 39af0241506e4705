"""Leave any one piece of the bookkeeping of cached pages out, and an answer or a count is wrong."""

import inspect
import random
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

import kvrt.kv.index.reuse
import kvrt.kv.tiers.names
from kvrt.engine.prefixes import Prefixes
from kvrt.errors import KvrtError
from kvrt.kv.index.eviction import EVICTIONS
from kvrt.kv.index.prefix import PrefixIndex
from kvrt.kv.index.reuse import PrefixReuse
from kvrt.kv.memory import Memory
from kvrt.kv.offload import Offload
from kvrt.kv.pages.geometry import Geometry
from kvrt.kv.pages.group import Group
from kvrt.kv.tiers.blockfile import BlockFile, Bytes
from kvrt.kv.tiers.names import chain
from kvrt.kv.tiers.stores import Stores
from kvrt.runtime import Runtime
from kvrt.sampling import SamplingParams

from .conftest import MakeRuntime, until

CHUNK = 2 << 20
GREEDY = SamplingParams(max_tokens=6, ignore_eos=True)
LONGER = SamplingParams(max_tokens=18, ignore_eos=True)


class Mutant(NamedTuple):
    """A method with one line changed."""

    owner: type
    method: str
    old: str
    new: str


MUTANTS = {
    "pages that were dropped can still be found": Mutant(
        Memory, "commit", "self.reuse.dropped(change.dropped)", "pass"
    ),
    "the index does not let go of a page": Mutant(
        PrefixReuse, "dropped", "self.index.forget(pages)", "[]"
    ),
    "a name stays after its page": Mutant(
        PrefixIndex, "drop_links", "del self._by_key[entry.name.key]", "pass"
    ),
    "a plan begins with pages that it gives away": Mutant(
        PrefixIndex, "there", "row[np.isin(row, gone)] = 0", "pass"
    ),
    "a key is believed": Mutant(PrefixIndex, "chain", " or found.name != name", ""),
    "a page is named twice": Mutant(
        PrefixIndex, "add", "if name.key in self._by_key:", "if False:"
    ),
    "a lost page counts as fetched": Mutant(
        Memory, "fetched", "rows[group][rows[group] == page] = 0", "pass"
    ),
    "what comes after a lost page counts as fetched": Mutant(
        Offload, "_advance", "fetch.lost = move.index", "pass"
    ),
    "a slot is never given back": Mutant(Stores, "reap", "self.host.unpin(entry[0])", "pass"),
    "an ended request's fetch goes on": Mutant(Memory, "end", "self.offload.cancel(seq)", "pass"),
    "what is pinned is held by nobody": Mutant(
        Prefixes,
        "pin",
        "cache.table.attach(holder, rows)",
        "cache.table.attach(holder, (rows[0][:0],))",
    ),
    "what is unpinned stays held": Mutant(
        Prefixes, "unpin", "cache.table.free(holder)", "cache.table.fork(holder, 0)"
    ),
    "what is forgotten stays in the tiers": Mutant(
        Prefixes, "forget", "offload.remove(doomed)", "pass"
    ),
    "what is forgotten can be found": Mutant(
        Prefixes, "forget", "self._memory.forget(pages)", "pass"
    ),
    "what is forgotten is saved first": Mutant(
        Memory, "forget", "self.reuse.dropped(pages)", "pass"
    ),
    "a page that goes on its way lets the next one stay": Mutant(
        PrefixIndex, "drop_links", "entry.after -= 1", "pass"
    ),
}


rng = random.Random(3)
STEMS = [[rng.randrange(199) for _ in range(120)] for _ in range(5)]
PROMPTS = [[*rng.choice(STEMS)[: rng.randint(1, 120)], rng.randrange(9)] for _ in range(30)]
PROMPTS += [STEMS[0][:-1], STEMS[0][:96], STEMS[0][:96], STEMS[1][:80]]

Answers = list[tuple[int, ...]]


def ask(runtime: Runtime, prompts: list[list[int]], params: SamplingParams = LONGER) -> Answers:
    results = runtime.generate(prompts, params)
    assert [result.error for result in results] == [None] * len(results)
    return [result.token_ids for result in results]


def cached(runtime: Runtime, prompt: list[int]) -> int:
    return runtime.generate([prompt], GREEDY)[0].usage.cached_tokens


@pytest.fixture(scope="module")
def right(tiny_lm: Path) -> Answers:
    with Runtime(tiny_lm, backend="cpu", load_format="dummy", seed=1, prefix_cache=False) as cold:
        return ask(cold, PROMPTS)


def tight(make_runtime: MakeRuntime, offload: str | None) -> Runtime:
    runtime = make_runtime(
        offload=offload, preemption="move", max_running=6, max_batch_tokens=64, keep_warm=0
    )
    runtime.set_memory_limit(runtime.model.weight_bytes + 4 * CHUNK)
    return runtime


def life_of_a_service(
    make_runtime: MakeRuntime, right: Answers, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _load_and_aborts(tight(make_runtime, f"host:3MiB,disk:{folder}/tier:64MiB"), right)
    _pins_and_forgetting(tight(make_runtime, "host:16MiB"))
    _damage(make_runtime, right, folder / "saved")
    _plans_that_give_pages_up()
    with monkeypatch.context() as patched:
        reads = HeldReads()
        patched.setattr(BlockFile, "read", reads.held(BlockFile.read))
        _aborts_while_pages_come_back(make_runtime, right, folder / "slow", reads)
    with monkeypatch.context() as patched:
        real = kvrt.kv.tiers.names.page_key
        # Prompts are named before they wait.
        for module in (kvrt.kv.tiers.names, kvrt.kv.index.reuse):
            patched.setattr(
                module, "page_key", lambda *named: bytes([real(*named)[0] & 1]) + bytes(31)
            )
        runtime = tight(make_runtime, None)
        assert ask(runtime, PROMPTS) == right


def _plans_that_give_pages_up() -> None:
    index = PrefixIndex(EVICTIONS["lru"](), [Group(Geometry(1, 2, 16, 16))])
    names, before = list(chain(bytes(32), range(6), 2)), None
    for depth, name in enumerate(names):
        before = index.add(name, (4 + depth,), before, depth, 0.0)
    (row,) = index.match(names, ((5, 7),))
    assert row.tolist() == [4]


def _load_and_aborts(runtime: Runtime, right: Answers) -> None:
    for start in range(0, len(PROMPTS), 10):
        assert ask(runtime, PROMPTS[start : start + 10]) == right[start : start + 10]
    for start in range(0, 24, 6):
        streams = [runtime.stream(prompt, LONGER) for prompt in PROMPTS[start : start + 6]]
        streams[start % 5].wait()
        for stream in streams:
            stream.close()
    assert ask(runtime, PROMPTS) == right
    stats = runtime.stats()
    assert stats.offload is not None
    assert stats.offload.fetched_pages > 0
    assert stats.cache.used_pages == 0
    runtime.invalidate()
    assert runtime.stats().reuse.named_pages == runtime.stats().cache.cached_pages == 0
    until(lambda: not pinned(runtime), seconds=3)


class HeldReads:
    """Reads of a disk, which can be made to wait."""

    def __init__(self) -> None:
        self.begun, self.free = threading.Event(), threading.Event()
        self.free.set()

    def held(self, read: Callable[..., None]) -> Callable[..., None]:
        def later(file: BlockFile, into: Bytes, at: int) -> None:
            self.begun.set()
            assert self.free.wait(60)
            read(file, into, at)

        return later


def _aborts_while_pages_come_back(
    make_runtime: MakeRuntime, right: Answers, folder: Path, reads: HeldReads
) -> None:
    runtime = tight(make_runtime, f"host:3MiB,disk:{folder}:64MiB")
    ask(runtime, PROMPTS[:12], GREEDY)
    for n in range(4):
        reads.begun.clear()
        reads.free.clear()
        streams = [runtime.stream([*stem, n], LONGER) for stem in STEMS]
        began = reads.begun.wait(60)
        for stream in streams:
            stream.close()
        runtime.unpin(STEMS[0])  # which is answered behind the aborts
        reads.free.set()
        assert began
        assert ask(runtime, PROMPTS[n : n + 4]) == right[n : n + 4]
    until(lambda: not pinned(runtime), seconds=3)


def pinned(runtime: Runtime) -> int:
    stats = runtime.stats().offload
    assert stats is not None
    return stats.host.pinned


def _pins_and_forgetting(runtime: Runtime) -> None:
    ask(runtime, [STEMS[0]], GREEDY)
    assert runtime.pin(STEMS[0]) == 112
    for stem in STEMS[1:]:
        ask(runtime, [stem + stem], GREEDY)
    stats = runtime.stats().offload
    assert stats is not None
    before = stats.fetched_pages
    assert cached(runtime, STEMS[0]) == 112
    stats = runtime.stats().offload
    assert stats is not None
    assert stats.fetched_pages == before, "it never left"
    assert runtime.unpin(STEMS[0]) == 1
    assert runtime.stats().cache.used_pages == 0
    assert runtime.invalidate(STEMS[0][:32]) > 0
    assert cached(runtime, STEMS[0]) == 16
    runtime.invalidate()
    assert cached(runtime, STEMS[1]) == 0
    assert cached(runtime, STEMS[1]) == 112, "its names are not taken"


def _damage(make_runtime: MakeRuntime, right: Answers, folder: Path) -> None:
    """The third page that was saved, and those after it, are not what they were."""
    first = make_runtime()
    ask(first, PROMPTS[30:])
    first.save_cache(folder)
    data = next(folder.glob("*.data"))
    with data.open("r+b") as file:
        for at in range(2 * 256 << 10, data.stat().st_size, 256 << 10):
            file.seek(at + 1000)
            file.write(b"\x55" * 100)
    runtime = tight(make_runtime, None)
    runtime.load_cache(folder)
    assert ask(runtime, PROMPTS[30:]) == right[30:]


def test_the_life_of_a_service_is_right(
    make_runtime: MakeRuntime, right: Answers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    life_of_a_service(make_runtime, right, tmp_path, monkeypatch)


@pytest.mark.promise("P15")
@pytest.mark.promise("P31")
@pytest.mark.parametrize("name", MUTANTS)
def test_bookkeeping_that_is_left_out_is_found(
    name: str,
    make_runtime: MakeRuntime,
    right: Answers,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mutant = MUTANTS[name]
    source = textwrap.dedent(inspect.getsource(getattr(mutant.owner, mutant.method)))
    assert source.count(mutant.old) == 1
    scope: dict[str, object] = {}
    module = dict(vars(sys.modules[mutant.owner.__module__]))
    exec(source.replace(mutant.old, mutant.new), module, scope)
    monkeypatch.setattr(mutant.owner, mutant.method, scope[mutant.method])
    with pytest.raises((AssertionError, KvrtError, LookupError, ValueError)):
        life_of_a_service(make_runtime, right, tmp_path, monkeypatch)
