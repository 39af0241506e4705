"""Greedy output has the same bytes in whatever way it came about (promise P15).

A case is one combination from the cross product of everything that may differ. They are drawn by
seed, 500 of them, and each first shows that what it is about has happened.
"""

import json
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import pytest

from kvrt.runtime import Runtime
from kvrt.sampling import SamplingParams
from kvrt.testing.chaos import Chaos

from .conftest import CONFIG, Break, MakeRuntime
from .test_ahead import Asynchronous

CASES, DEFAULT = 500, 49
CHUNK, TOKEN = 2 << 20, 16 << 10
NEW = 32
GREEDY = SamplingParams(max_tokens=NEW, ignore_eos=True)
ONE = SamplingParams(max_tokens=1, ignore_eos=True)


def prompts() -> list[list[int]]:
    """Of all lengths around those of pages; half of them begin as another one does."""
    rng = random.Random(0)
    stem = [rng.randrange(199) for _ in range(130)]
    lengths = (1, 7, 8, 15, 16, 17, 33, 64, 65, 66, 77, 80, 97, 110, 128, 130)
    found = [stem[:length] for length in lengths[5:]]
    found += [[rng.randrange(199) for _ in range(length)] for length in lengths]
    return [[*prompt, n] for n, prompt in enumerate(found)]


PROMPTS = prompts()

DEVICES: dict[str, Callable[[Any], Any]] = {
    "plain": lambda device: device,
    "early copies": lambda device: Chaos(device, 1, copies="early"),
    "late copies": lambda device: Chaos(device, 2, copies="late"),
    "mixed copies": lambda device: Chaos(device, 3, copies="mixed"),
    "late steps": Asynchronous,
}


@dataclass(frozen=True, slots=True)
class Case:
    """One point of the cross product; see `AXES` for the values of each field.

    Args:
        way: a method of `Ways`.
        batch: how many prompts are asked together.
        max_batch_tokens: prompts are computed in chunks of so many tokens at most.
        page_size: tokens in a page.
        full: there is no free page when the prompts come, so that each one is taken from another.
        offload_write: see `RuntimeConfig`.
        prefix_cache_policy: see `RuntimeConfig`.
        speculate: see `RuntimeConfig`.
        dtype: of the weights.
        kv_cache_dtype: of the pages.
        seed: of the weights.
        left_by: a runtime that is another in this left the pages of the same prompts in the folder.
        device: the wrapper around it.
        number: also the seed of which prompts are asked.
    """

    way: str
    batch: int
    max_batch_tokens: int
    page_size: int
    full: bool
    offload_write: str
    prefix_cache_policy: str
    speculate: str | None
    dtype: str
    kv_cache_dtype: str
    seed: int
    left_by: str
    device: str
    number: int

    @property
    def options(self) -> dict[str, object]:
        """What is an option of the runtime."""
        here = {"way", "batch", "full", "left_by", "device", "number"}
        return {name: value for name, value in asdict(self).items() if name not in here}

    def __str__(self) -> str:
        return "-".join(str(getattr(self, field.name)) for field in fields(self))


class Ways:
    """The ways, each of which asks for the same answers.

    Args:
        case: which.
        make: a runtime with the case's options and more.
        prompts: that are asked.
        folder: an empty one.
    """

    def __init__(
        self, case: Case, make: Callable[..., Runtime], prompts: list[list[int]], folder: Path
    ) -> None:
        self.case = case
        self.make = make
        self.prompts = prompts
        self.folder = folder

    def cold(self) -> list[tuple[int, ...]]:
        runtime = self.make(prefix_cache=False)
        if self.case.full:
            _limit(runtime, 4)
        answers, cached, _ = _ask(runtime, self.prompts)
        assert cached == 0
        return answers

    def prefix_hit(self) -> list[tuple[int, ...]]:
        runtime = self.make()
        self._fill(runtime, _chunks(self.prompts) + 2)
        answers, _, _ = _ask(runtime, self.prompts)
        again, cached, _ = _ask(runtime, self.prompts)
        assert cached > 0
        assert answers == again
        return answers

    def preempted_and_recomputed(self) -> list[tuple[int, ...]]:
        runtime = self.make(preemption="recompute")
        self._fill(runtime, 2)
        answers, _, preemptions = _ask(runtime, self.prompts)
        assert preemptions > 0
        return answers

    def preempted_and_moved(self) -> list[tuple[int, ...]]:
        runtime = self.make(offload="host:64MiB", preemption="move")
        self._fill(runtime, 2)
        answers, _, preemptions = _ask(runtime, self.prompts)
        assert preemptions > 0
        assert _fetched(runtime) > 0
        return answers

    def fetched_from_host(self) -> list[tuple[int, ...]]:
        return self._spilled("host:64MiB")

    def fetched_from_disk(self) -> list[tuple[int, ...]]:
        self._left_by_another()
        return self._spilled(f"disk:{self.folder}:64MiB")

    def restored(self) -> list[tuple[int, ...]]:
        first = self.make()
        _ask(first, self.prompts)
        assert first.save_cache(self.folder, compress=random.choice([None, 3])) > 0
        first.close()
        runtime = self.make(preemption="move")
        assert runtime.load_cache(self.folder) > 0
        self._fill(runtime, 6)
        answers, cached, _ = _ask(runtime, self.prompts)
        assert cached > 0
        assert _fetched(runtime) > 0
        return answers

    def kept_in_a_folder(self) -> list[tuple[int, ...]]:
        self._left_by_another()
        first = self.make(cache_dir=self.folder)
        answers, cached, _ = _ask(first, self.prompts[:1])
        assert cached == 0, "pages of another are not taken"
        _ask(first, self.prompts)
        first.close()
        runtime = self.make(cache_dir=self.folder, preemption="move")
        again, cached, _ = _ask(runtime, self.prompts)
        assert cached > 0
        assert _fetched(runtime) > 0
        assert again[:1] == answers
        return again

    def _left_by_another(self) -> None:
        what = self.case.left_by
        others = [value for value in AXES.get(what, ()) if value != getattr(self.case, what)]
        if others:
            with self.make(cache_dir=self.folder, **{what: others[0]}) as runtime:
                _ask(runtime, self.prompts)

    def _spilled(self, offload: str) -> list[tuple[int, ...]]:
        runtime = self.make(offload=offload, preemption="move")
        _limit(runtime, 6)
        answers, _, _ = _ask(runtime, self.prompts)
        before = _fetched(runtime)
        _crowd(runtime, 199)
        again, cached, _ = _ask(runtime, self.prompts)
        assert cached > 0
        assert _fetched(runtime) > before
        assert answers == again
        return answers

    def _fill(self, runtime: Runtime, chunks: int) -> None:
        """Leave so many chunks, and if the case is about that, nothing free in them."""
        _limit(runtime, chunks)
        if self.case.full:
            _crowd(runtime, 0)


def _limit(runtime: Runtime, chunks: int) -> None:
    runtime.set_memory_limit(runtime.model.weight_bytes + chunks * CHUNK)


def _crowd(runtime: Runtime, first: int) -> None:
    """Cache the pages of other prompts until nothing is free, and nothing older is left."""
    pages = runtime.stats().cache.limit_bytes // runtime.stats().cache.page_bytes
    length = 4 * runtime.config.page_size
    # Pages that were reused are worth more to the policy by cost, until others have come and gone.
    turns = 4 if runtime.config.prefix_cache_policy == "cost" else 1
    for n in range(turns * -(-pages // 4)):
        _ask(runtime, [[(first - n) % 199, n % 199] * (length // 2 + 1)], ONE)
    cache = runtime.stats().cache
    assert cache.free_pages <= cache.cached_pages // 8 + 2, "a few are evicted ahead of need"


def _chunks(prompts: list[list[int]]) -> int:
    return sum(len(prompt) + NEW + 64 for prompt in prompts) * TOKEN // CHUNK


def _ask(
    runtime: Runtime, prompts: list[list[int]], params: SamplingParams = GREEDY
) -> tuple[list[tuple[int, ...]], int, int]:
    """Answers; how many tokens were cached, and how often somebody was preempted."""
    results = runtime.generate(prompts, params)
    assert [result.error for result in results] == [None] * len(results)
    cached = sum(result.usage.cached_tokens for result in results)
    preemptions = sum(result.usage.preemptions for result in results)
    return [result.token_ids for result in results], cached, preemptions


def _fetched(runtime: Runtime) -> int:
    stats = runtime.stats().offload
    assert stats is not None
    return stats.fetched_pages


WAYS = [name for name in vars(Ways) if not name.startswith("_")]

AXES: dict[str, tuple[object, ...]] = {
    "batch": tuple(range(1, 17)),
    "max_batch_tokens": (7, 24, 96, 512),
    "page_size": (8, 16, 32),
    "full": (False, True),
    "offload_write": ("back", "through"),
    "prefix_cache_policy": ("lru", "lfu", "cost"),
    "speculate": (None, "ngram", "ngram:3"),
    "dtype": ("float32", "bfloat16"),
    "kv_cache_dtype": ("float32", "bfloat16"),
    "seed": (1, 2),
    "left_by": ("nobody", "dtype", "kv_cache_dtype", "seed"),
    "device": tuple(DEVICES),
}
"""A field of `Case` that is an option of the runtime needs no more than its values here."""


def draw(count: int) -> list[Case]:
    """The ways in turn; everything else by chance."""
    rng = random.Random(0)
    return [
        Case(WAYS[n % len(WAYS)], number=n, **{name: rng.choice(of) for name, of in AXES.items()})  # type: ignore[arg-type]
        for n in range(count)
    ]


@pytest.fixture(scope="module")
def model_for(tiny_lm: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By the format of keys and values: where they take half the bytes there are twice as many
    layers, so that a token takes `TOKEN` bytes in each."""
    deep = tmp_path_factory.mktemp("deep")
    layers = 2 * int(CONFIG["num_hidden_layers"])  # type: ignore[call-overload]
    (deep / "config.json").write_text(json.dumps(CONFIG | {"num_hidden_layers": layers}))
    return {"float32": tiny_lm, "bfloat16": deep}


@pytest.fixture(scope="module")
def alone(model_for: dict[str, Path]) -> Callable[[Case, int], tuple[int, ...]]:
    """What the model says to a prompt, asked by itself, by a runtime that reuses nothing."""
    known: dict[object, list[tuple[int, ...]]] = {}

    def answer(case: Case, number: int) -> tuple[int, ...]:
        options = {name: getattr(case, name) for name in ("dtype", "kv_cache_dtype", "seed")}
        key = tuple(options.values())
        if key not in known:
            model = model_for[case.kv_cache_dtype]
            with Runtime(
                model, backend="cpu", load_format="dummy", prefix_cache=False, **options
            ) as runtime:
                known[key] = [_ask(runtime, [prompt])[0][0] for prompt in PROMPTS]
        return known[key][number]

    return answer


@pytest.mark.promise("P15")
@pytest.mark.promise("P20")
@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=str(case), marks=[pytest.mark.extra] if n >= DEFAULT else [])
        for n, case in enumerate(draw(CASES))
    ],
)
def test_every_way_says_the_same(
    case: Case,
    make_runtime: MakeRuntime,
    break_device: Break,
    model_for: dict[str, Path],
    alone: Callable[[Case, int], tuple[int, ...]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = random.Random(case.number)
    count = case.batch
    if case.way.startswith("preempted"):
        count = 16
        # Admitted without a thought of what comes, so that pages run out.
        monkeypatch.setattr("kvrt.sched.batching.LOOKAHEAD_TOKENS", 0)
    chosen = rng.sample(range(len(PROMPTS)), count)
    if case.batch < 4:
        chosen[-1] = len(PROMPTS) - 1  # long enough to have full pages
    right = [alone(case, n) for n in chosen]
    break_device(DEVICES[case.device])

    def make(**options: object) -> Runtime:
        model = model_for[case.kv_cache_dtype]
        return make_runtime(**{"model": model} | case.options | options)

    ways = Ways(case, make, [PROMPTS[n] for n in chosen], tmp_path / "pages")
    assert getattr(ways, case.way)() == right
