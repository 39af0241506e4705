"""Take any one wait for the device out of the core, and it is found out."""

import inspect
import re
import sys
import tempfile
import textwrap
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch

import kvrt
from kvrt.config import RuntimeConfig
from kvrt.engine.engine import Engine
from kvrt.engine.request import Request
from kvrt.engine.sizing import make_cache
from kvrt.engine.snapshots import Snapshots
from kvrt.errors import ContractError, OutOfMemory, WeightsUnreadable
from kvrt.executor.backing import Backing
from kvrt.executor.local import LocalExecutor, LocalPages
from kvrt.executor.mapped import Mapped
from kvrt.kv.cache import KVCache
from kvrt.kv.index.eviction import EVICTIONS
from kvrt.kv.index.reuse import PrefixReuse
from kvrt.kv.limit import LimitChange
from kvrt.kv.memory import Memory
from kvrt.kv.offload import Offload
from kvrt.kv.pages.lanes import SeqId
from kvrt.kv.pages.table import Change
from kvrt.kv.rows import Rows
from kvrt.kv.seq import Seq
from kvrt.kv.tiers.host import HostStore
from kvrt.kv.tiers.names import StoredName, chain, root_key
from kvrt.model.loader import load_model
from kvrt.registry import load
from kvrt.sampling import SamplingParams
from kvrt.sched.plan import Limits
from kvrt.sched.policy import POLICIES
from kvrt.speech.pages import _Group
from kvrt.spi import AttentionBatch, AttentionParams, Device, KVLayout
from kvrt.testing.chaos import Chaos
from kvrt.wrappers import Checked
from kvrt.wrappers.parts import Params, Result
from kvrt.wrappers.wrapper import Wrapper

Life = Callable[[Chaos, Path], None]


def life_of_an_engine(chaos: Chaos, folder: Path) -> None:
    """Two requests fork and decode; the limit is lowered just before the first of them ends."""
    device = Checked(chaos)
    model = load_model(folder, device, load_format="dummy")
    config = RuntimeConfig(model=str(folder), keep_warm=0)
    executor, cache = make_cache(config, device, model)
    engine = Engine(model, executor, Memory(cache), Limits(512, 8), POLICIES["fcfs"])
    for number, length in enumerate((10, 20)):
        prompt = (number + 1,) * 40
        params = SamplingParams(n=2, seed=1, temperature=1.0, ignore_eos=True)
        engine.add(
            Request(f"{number}", prompt, params, 1, 40 + length, 0, lambda: None, lambda _: None)
        )
    while engine.steps < 9:
        engine.step()
    assert cache.set_memory_limit(20 * device.info.granularity) is LimitChange.DEFERRED
    while engine.busy:
        engine.step()
    assert cache.stats().copies > 0
    cache.idle()
    cache.close()


class Crowded(Wrapper):
    """A device that has no memory to compute in at some calls, by their numbers from 1."""

    def __init__(self, inner: Device, refused: Collection[int]) -> None:
        super().__init__(inner)
        self._refused = refused
        self._plans = 0

    def around(
        self, name: str, call: Callable[Params, Result], *args: Params.args, **kwargs: Params.kwargs
    ) -> Result:
        if name == "attention.plan":
            self._plans += 1
            if self._plans in self._refused:
                raise OutOfMemory("no memory to compute in")
        return call(*args, **kwargs)


def life_of_a_crowded_engine(chaos: Chaos, folder: Path) -> None:
    """Of the first step of decoding only one sequence's part can be computed; it then gives its
    pages to the other's."""
    device = Checked(Crowded(chaos, {2, 3, 5}))
    model = load_model(folder, device, load_format="dummy")
    config = RuntimeConfig(model=str(folder), keep_warm=0)
    executor, cache = make_cache(config, device, model)
    engine = Engine(model, executor, Memory(cache), Limits(512, 8), POLICIES["fcfs"])
    for number in range(2):
        params, prompt = SamplingParams(ignore_eos=True), (number + 1,) * 40
        engine.add(Request(f"{number}", prompt, params, 1, 45, 0, lambda: None, lambda _: None))
    while engine.busy:
        engine.step()
    cache.idle()
    cache.close()


class Unread(Wrapper):
    """A device before layers whose experts cannot be read, once it is told so."""

    told = False

    def around(
        self, name: str, call: Callable[Params, Result], *args: Params.args, **kwargs: Params.kwargs
    ) -> Result:
        result = call(*args, **kwargs)
        if name == "attention.run" and self.told:
            raise WeightsUnreadable("experts cannot be read")
        return result


def life_of_an_engine_that_cannot_read(chaos: Chaos, folder: Path) -> None:
    """A step that is computed in part ends all requests, and the limit was lowered before."""
    unread = Unread(chaos)
    device = Checked(unread)
    model = load_model(folder, device, load_format="dummy")
    config = RuntimeConfig(model=str(folder), keep_warm=0)
    executor, cache = make_cache(config, device, model)
    engine = Engine(model, executor, Memory(cache), Limits(512, 8), POLICIES["fcfs"])
    for number in range(2):
        params, prompt = SamplingParams(ignore_eos=True), (number + 1,) * 40
        engine.add(Request(f"{number}", prompt, params, 1, 60, 0, lambda: None, lambda _: None))
    while engine.steps < 11:
        engine.step()
    assert cache.set_memory_limit(20 * device.info.granularity) is LimitChange.DEFERRED
    unread.told = True
    while engine.busy:
        engine.step()
    cache.idle()
    cache.close()


def life_of_a_cache(chaos: Chaos, folder: Path) -> None:
    """Steps follow each other without a wait between them, which only an engine would put there."""
    device = Checked(chaos)
    layout = KVLayout.packed("float32", layers=1, kv_heads=2, head_dim=128, page_size=64)
    pages = LocalPages(device, [layout], 64)
    cache = KVCache(pages, limit_bytes=64 * layout.page_bytes)

    def step(tokens: dict[SeqId, int]) -> None:
        change = cache.table.grow(tokens)
        assert isinstance(change, Change)
        assert cache.commit(change) is None
        (batch,) = pages.batches(cache.step(list(tokens), list(tokens.values())))
        q, k, v, out = (torch.ones(sum(tokens.values()), 2, 128) for _ in range(4))
        plan = device.attention.plan(batch)
        device.attention.append(plan, 0, k, v)
        device.attention.run(plan, 0, q, out, AttentionParams(1.0))

    step({"a": 6})
    cache.commit(cache.table.fork("a", "b"))
    step({"a": 1, "b": 1})
    assert cache.stats().copies == 1
    for seq in "ab":
        cache.commit(cache.table.free(seq, after=2))
    cache.idle()
    assert cache.stats().mapped_bytes < 2 * layout.page_bytes
    step({"c": 70})
    cache.close()


def life_of_the_tiers(chaos: Chaos, folder: Path) -> None:
    """Pages leave the device and come back between steps that nobody waits for."""
    device = Checked(chaos)
    layout = KVLayout.packed("float32", layers=1, kv_heads=2, head_dim=128, page_size=64)
    pages = LocalPages(device, [layout], 64)
    cache = KVCache(pages, limit_bytes=64 * layout.page_bytes)
    reuse = PrefixReuse(cache.table.groups, EVICTIONS["lru"]())
    host = HostStore(pages, [layout.page_bytes], 4 << 20)
    offload = Offload(pages, host, reuse.cost, is_tier=True)
    root = root_key(bytes(32))
    names = list(chain(root, range(128), 64))

    def step(tokens: dict[SeqId, int]) -> tuple[int, ...]:
        change = cache.table.grow(tokens)
        assert isinstance(change, Change)
        assert cache.commit(change) is None
        (batch,) = pages.batches(cache.step(list(tokens), list(tokens.values())))
        q, k, v, out = (torch.ones(sum(tokens.values()), 2, 128) for _ in range(4))
        plan = device.attention.plan(batch)
        device.attention.append(plan, 0, k, v)
        device.attention.run(plan, 0, q, out, AttentionParams(1.0))
        return cache.table.pages(*tokens)

    row = step({"a": 128})
    before = None
    for depth, name in enumerate(names):
        before = reuse.index.add(name, (row[depth],), before, depth, 0.0)
        assert before is not None
    engine = SimpleNamespace(memory=Memory(cache, reuse, offload), executor=pages)
    snapshots = Snapshots(engine, bytes(32), lambda function: function())  # type: ignore[arg-type]
    saved = snapshots.save(Path(tempfile.mkdtemp(dir=folder)), None, (), None)
    assert saved == 2
    cache.commit(cache.table.free("a"))
    row = step({"b": 128})
    stored = [StoredName(name) for name in names]
    offload.save(zip(stored, row, strict=True))
    cache.commit(cache.table.free("b"))
    row = step({"c": 128})
    seq = Seq(1, [], 0, 0)
    offload.fetch(seq, stored, row)
    while not (ended := offload.poll()):
        pass
    assert ended == [(seq, [])]
    step({"c": 1})
    offload.fetch(seq, stored, row)
    offload.cancel(seq)
    step({"c": 1})
    offload.close()
    cache.idle()
    cache.close()


class Mutant(NamedTuple):
    """The core with one line of a method changed, and the life in which it shows."""

    owner: type
    method: str
    old: str
    new: str
    life: Life


def life_of_rows(chaos: Chaos, folder: Path) -> None:
    """A batch of two of which one ends, so that in time its memory goes back."""
    device = Checked(chaos)
    layout = KVLayout.packed("float32", layers=1, kv_heads=2, head_dim=128, page_size=64)
    rows = Rows(LocalPages(device, [layout], 256), [0], 256 * layout.page_bytes)
    for step in range(80):
        tokens = [1] if step else [64 * 40] * 2
        (batch,) = rows.begin(tokens)
        assert isinstance(batch, AttentionBatch)
        q, k, v, out = (torch.ones(sum(tokens), 2, 128) for _ in range(4))
        plan = device.attention.plan(batch)
        device.attention.append(plan, 0, k, v)
        device.attention.run(plan, 0, q, out, AttentionParams(1.0))
        if not step:
            rows.select([0])
    rows.close()


def life_of_sounds(chaos: Chaos, folder: Path) -> None:
    """Of two rows one ends, so that in time its memory goes back."""
    device = Checked(chaos)
    layout = KVLayout.packed("float32", layers=1, kv_heads=2, head_dim=128, page_size=64)
    limit = 256 * layout.page_bytes
    group = _Group(device, layout, limit)
    for step in range(80):
        rows, tokens = ([0], [1]) if step else ([0, 1], [64 * 40] * 2)
        group.begin_step()
        assert group.grow(dict(zip(rows, tokens, strict=True)), limit) is None
        batch = group.batch(rows, tokens)
        q, k, v, out = (torch.ones(sum(tokens), 2, 128) for _ in range(4))
        plan = device.attention.plan(batch)
        device.attention.append(plan, 0, k, v)
        device.attention.run(plan, 0, q, out, AttentionParams(1.0))
        if not step:
            group.free([1])
    group.cache.close()


MUTANTS = {
    "sounds go on while their last step runs": Mutant(
        _Group, "begin_step", "self.executor.finish()", "pass", life_of_sounds
    ),
    "pages of requests that fail go while a part of the step uses them": Mutant(
        Engine, "step", "self.executor.finish()", "pass", life_of_an_engine_that_cannot_read
    ),
    "a batch goes on while its last step runs": Mutant(
        Rows, "begin", "self._executor.finish()", "pass", life_of_rows
    ),
    "a step ends without its fence": Mutant(
        LocalExecutor,
        "launch",
        "Running(logits, self._device.fence())",
        "Running(logits, kvrt.spi.Done())",
        life_of_an_engine,
    ),
    "pages go to make room while a part of the step uses them": Mutant(
        Engine, "_carry_out_alone", "self.executor.finish()", "pass", life_of_a_crowded_engine
    ),
    "memory goes when idle without a fence": Mutant(
        KVCache, "idle", "self._executor.finish()", "pass", life_of_a_cache
    ),
    "nobody waits for what was launched": Mutant(
        LocalPages, "finish", "self._device.fence().wait()", "pass", life_of_a_cache
    ),
    "memory goes at the end without waiting": Mutant(
        Mapped, "release", "self.device.synchronize()", "pass", life_of_a_cache
    ),
    "a copy does not wait for compute": Mutant(
        Backing, "copy", "after=self.device.fence()", "after=None", life_of_a_cache
    ),
    "compute does not wait for a copy": Mutant(Backing, "copy", ".wait()", "", life_of_an_engine),
    "pages leave and come back beside compute": Mutant(
        LocalPages,
        "copies",
        "self._device.copier, self._device.fence()",
        "self._device.copier, None",
        life_of_the_tiers,
    ),
    "a page leaves before it is computed": Mutant(
        LocalPages, "copies", "move.group), after)", "move.group), None)", life_of_the_tiers
    ),
    "a page comes back while it is still used": Mutant(
        LocalPages, "copies", "move.host, after)", "move.host, None)", life_of_the_tiers
    ),
    "a page is used again before it has left": Mutant(
        Offload, "_carry_out", "ticket.wait()", "pass", life_of_the_tiers
    ),
    "a page is used before it is back": Mutant(
        Offload, "_advance", "not _arrived(move.ticket)", "False", life_of_the_tiers
    ),
    "a page is used while a copy that nobody wants writes to it": Mutant(
        Offload, "cancel", "move.ticket.wait()", "pass", life_of_the_tiers
    ),
    "a page is used again before it is saved": Mutant(
        Snapshots, "_read", "ticket.wait()", "pass", life_of_the_tiers
    ),
}


@pytest.fixture
def chaos(request: pytest.FixtureRequest) -> Iterator[Chaos]:
    chaos = Chaos(load("null").open(), seed=1, copies=request.param)
    yield chaos
    chaos.close()


each_order = pytest.mark.parametrize("chaos", ["early", "late", "mixed"], indirect=True)


@each_order
@pytest.mark.parametrize(
    "life",
    [
        life_of_an_engine,
        life_of_a_crowded_engine,
        life_of_a_cache,
        life_of_rows,
        life_of_sounds,
        life_of_an_engine_that_cannot_read,
        life_of_the_tiers,
    ],
)
def test_the_core_waits_for_the_device(life: Life, chaos: Chaos, tiny_lm: Path) -> None:
    life(chaos, tiny_lm)
    assert chaos.memory.info().chunks == 0


@each_order
@pytest.mark.parametrize("name", MUTANTS)
def test_a_wait_that_is_missing_is_found(
    name: str, chaos: Chaos, tiny_lm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mutant = MUTANTS[name]
    source = textwrap.dedent(inspect.getsource(getattr(mutant.owner, mutant.method)))
    assert source.count(mutant.old) == 1
    scope: dict[str, object] = {}
    module = {**vars(sys.modules[mutant.owner.__module__]), "kvrt": kvrt}
    exec(source.replace(mutant.old, mutant.new), module, scope)
    monkeypatch.setattr(mutant.owner, mutant.method, scope[mutant.method])
    with pytest.raises(ContractError, match=r"while (compute|a copy) uses them"):
        mutant.life(chaos, tiny_lm)


def test_every_fence_of_the_core_has_its_mutant() -> None:
    # Not those of ranks, processes which wait for each step before they are told of the next.
    root = Path(kvrt.__file__).parent
    waits = re.compile(r"\.(?:fence|synchronize)\(\)|executor\.finish\(\)")
    found = [
        f"{path.relative_to(root)}: {line.strip()}"
        for path in sorted(root.rglob("*.py"))
        if path.relative_to(root).parts[0] not in ("testing", "wrappers", "integrations", "ranks")
        for line in path.read_text().splitlines()
        if waits.search(line)
    ]
    missing = [line for line in found if not any(m.old in line for m in MUTANTS.values())]
    assert not missing
    assert len(found) == sum(waits.search(mutant.old) is not None for mutant in MUTANTS.values())
