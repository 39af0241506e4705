"""Speculation changes how many steps a text takes, and nothing that it says (promise P15)."""

import itertools
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from kvrt.drafting.cost import StepCost
from kvrt.drafting.drafter import Drafter
from kvrt.drafting.lookup import Guess
from kvrt.errors import ConfigError, RequestError
from kvrt.runtime import Runtime
from kvrt.sampling import SamplingParams
from kvrt.sched.speculation import Speculation
from kvrt.spi import Capability, DeviceInfo
from kvrt.testing.chaos import Chaos
from kvrt.wrappers.wrapper import Wrapper

from .conftest import Break, MakeRuntime, pages_in_use
from .test_ahead import Asynchronous

CHUNK = 2 << 20


def prompt(number: int) -> list[int]:
    """Every other one repeats itself."""
    rng = random.Random(number)
    words = [[rng.randrange(199) for _ in range(rng.randint(1, 6))] for _ in range(3)]
    if number % 2:
        return [rng.randrange(199) for _ in range(1 + 7 * (number % 9))]
    return [token for _ in range(1 + number % 7) for token in rng.choice(words)]


PROMPTS = [prompt(number) for number in range(28)]
KINDS: list[dict[str, Any]] = [
    {},
    {"logprobs": 2},
    {"temperature": 0.05},
    {"temperature": 1.0, "top_k": 20, "logprobs": 1},
    {"repetition_penalty": 1.3, "presence_penalty": 0.4},
    {"temperature": 0.3, "frequency_penalty": 0.2},
    {"n": 3, "temperature": 0.2},
]
PARAMS = [
    SamplingParams(
        max_tokens=5 + 13 * (n % 8), ignore_eos=n % 3 > 0, seed=n, stop_token_ids=[n % 50],
        prompt_logprobs=1 if n % 5 == 0 else None, **KINDS[n % len(KINDS)],
    )
    for n in range(28)
]  # fmt: skip


class Oracle:
    """Knows what comes, and is wrong now and then; as its second branch, or as its first."""

    def __init__(self, seed: int, texts: Sequence[Sequence[int]]) -> None:
        self._random = random.Random(seed)
        self._texts = texts

    def propose(self, tokens: Sequence[int], limit: int) -> Guess:
        rest: list[int] = []
        for text in self._texts:
            if list(text[: len(tokens)]) == list(tokens):
                rest = list(text[len(tokens) : len(tokens) + limit])
        if not rest:
            return Guess()
        good = [t if self._random.random() < 0.8 else (t + 1) % 199 for t in rest]
        bad = [(t + 7 + self._random.randrange(50)) % 199 for t in rest]
        branches = [tuple(good), tuple(bad)] if good[0] != bad[0] else [tuple(good)]
        self._random.shuffle(branches)
        return Guess(tuple(branches), 8)


class Eager(Drafter):
    """Drafts all it may, whatever came of it."""

    def drafts(self, room: int, worth: float, *, trees: bool) -> Any:
        return super().drafts(room, 0.0, trees=trees)


Texts = list[list[int]]


@pytest.fixture
def draft(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let every sequence draft from these texts, branches and mistakes included."""

    def put(texts: Texts, seed: int = 0) -> None:
        rng = random.Random(seed)

        def drafter(limit: int, forced: int = 0) -> Drafter | None:
            return Eager(Oracle(rng.randrange(2**32), texts), limit) if limit else None

        monkeypatch.setattr(Speculation, "drafter", staticmethod(drafter))

    return put


def said(runtime: Runtime) -> list[object]:
    results = runtime.generate(PROMPTS, PARAMS)
    assert all(result.error is None for result in results)
    return [
        [r.prompt_logprobs, *((c.token_ids, c.logprobs, c.finish_reason) for c in r.completions)]
        for r in results
    ]


@pytest.fixture(scope="module")
def right(tiny_lm: object) -> tuple[list[object], Texts]:
    """What is said without speculation, and each text with its prompt."""
    with Runtime(tiny_lm, backend="cpu", load_format="dummy", seed=1) as runtime:  # type: ignore[arg-type]
        results = runtime.generate(PROMPTS, PARAMS)
        texts = [[*r.prompt_token_ids, *c.token_ids] for r in results for c in r.completions]
        return said(runtime), texts


PAIRS = {(7, None, True), (7, 3, False), (48, None, False), (48, 3, True)}
PAIRS |= {(512, None, True), (512, 3, False)}
"""Any two of the values below meet in one of them; all combinations are run by ``-m extra``."""


@pytest.mark.promise("P15")
@pytest.mark.parametrize(
    ("max_batch_tokens", "chunks", "chaos"),
    [
        pytest.param(*case, marks=[] if case in PAIRS else [pytest.mark.extra])
        for case in itertools.product((7, 48, 512), (3, None), (False, True))
    ],
)
def test_drafts_change_nothing_that_is_said(
    max_batch_tokens: int,
    chunks: int | None,
    chaos: bool,
    make_runtime: MakeRuntime,
    break_device: Break,
    draft: Any,
    right: tuple[list[object], Texts],
) -> None:
    want, texts = right
    draft(texts, seed=max_batch_tokens)
    if chaos:
        break_device(lambda device: Chaos(device, seed=max_batch_tokens))
    runtime = make_runtime(max_batch_tokens=max_batch_tokens, speculate="ngram:6")
    if chunks is not None:  # too little for all: sequences are preempted
        runtime.set_memory_limit(runtime.model.weight_bytes + chunks * CHUNK)
    assert said(runtime) == want
    stats = runtime.stats()
    least = 10 if max_batch_tokens == 7 else 100
    assert least < stats.speculation.accepted_tokens < stats.speculation.drafted_tokens
    assert stats.cache.used_pages == 0
    runtime.cache.check_integrity()


@pytest.mark.promise("P15")
@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_drafts_in_quantised_pages_change_nothing_that_is_said(
    dtype: str, make_runtime: MakeRuntime, draft: Any
) -> None:
    """Kept tokens take their scales along."""
    plain = make_runtime(kv_cache_dtype=dtype)
    results = plain.generate(PROMPTS, PARAMS)
    want = said(plain)
    draft([[*r.prompt_token_ids, *c.token_ids] for r in results for c in r.completions])
    runtime = make_runtime(kv_cache_dtype=dtype, speculate="ngram:6")
    assert said(runtime) == want
    assert runtime.stats().speculation.accepted_tokens > 100


@pytest.mark.promise("P15")
def test_what_is_looked_up_changes_nothing_that_is_said(
    make_runtime: MakeRuntime, right: tuple[list[object], Texts]
) -> None:
    runtime = make_runtime(speculate="ngram", prefix_cache=False)
    assert said(runtime) == right[0]
    assert runtime.stats().speculation.drafted_tokens > 100


class OneLine(Wrapper):
    """A device that computes no branches."""

    @property
    def info(self) -> DeviceInfo:
        info = super().info
        return replace(info, capabilities=info.capabilities - {Capability.TREES})


@pytest.mark.promise("P15")
def test_a_device_without_branches_is_given_lines(
    make_runtime: MakeRuntime, break_device: Break, draft: Any, right: tuple[list[object], Texts]
) -> None:
    want, texts = right
    draft(texts)
    break_device(OneLine)
    runtime = make_runtime(speculate="ngram")
    assert said(runtime) == want
    assert runtime.stats().speculation.accepted_tokens > 100


@pytest.mark.promise("P15")
@pytest.mark.parametrize("chunks", [3, None])
def test_on_a_device_that_computes_beside_the_host(
    chunks: int | None,
    make_runtime: MakeRuntime,
    break_device: Break,
    draft: Any,
    right: tuple[list[object], Texts],
) -> None:
    """Steps are planned ahead only where no drafts are hoped for."""
    want, texts = right
    draft(texts, seed=9)
    break_device(Asynchronous)
    runtime = make_runtime(speculate="ngram:5", max_batch_tokens=64)
    if chunks is not None:
        runtime.set_memory_limit(runtime.model.weight_bytes + chunks * CHUNK)
    assert said(runtime) == want
    assert runtime.stats().speculation.accepted_tokens > 100


def test_sequences_are_aborted_at_any_moment(
    make_runtime: MakeRuntime, draft: Any, right: tuple[list[object], Texts]
) -> None:
    draft(right[1])
    runtime = make_runtime(speculate="ngram")
    params = SamplingParams(max_tokens=300, ignore_eos=True)
    rng = random.Random(5)
    for _ in range(8):
        streams = [runtime.stream(PROMPTS[rng.randrange(28)], params) for _ in range(4)]
        for stream in streams:
            for _ in range(rng.randrange(1, 12)):
                next(stream)
            stream.close()
        for stream in streams:
            assert stream.wait().finish_reason == "abort"
    assert pages_in_use(runtime) == 0
    runtime.cache.check_integrity()


def test_text_may_stop_in_the_middle_of_what_was_drafted() -> None:
    """A stop string, an end token and max_tokens, each among drafts that come true."""
    with Runtime("tiny", backend="cpu", memory_limit="256MiB", debug=True) as runtime:
        start = "import sys\nimport sys\nimport sys\nimport"
        plain = runtime.generate([start], SamplingParams(max_tokens=60))[0]
        for extra in (
            {"stop": ["sys\nimport s"], "max_tokens": 60},
            {"stop_token_ids": [plain.token_ids[-2]], "max_tokens": 60},
            {"max_tokens": 17},
            {"max_tokens": 1},
        ):
            want, got = (
                runtime.generate([start], SamplingParams(speculate=drafts, **extra))[0]
                for drafts in (0, 12)
            )
            assert (got.text, got.token_ids) == (want.text, want.token_ids)
            assert got.finish_reason == want.finish_reason


def test_a_request_may_ask_for_it_or_decline_it(
    make_runtime: MakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As long as nothing was measured, guessing is worth it, however busy this machine is.
    monkeypatch.setattr(StepCost, "observe", lambda *_: None)
    repeating = [5, 6, 7, 8] * 8
    for speculate, wish, drafts in (
        (None, None, 0),
        (None, 4, 1),
        ("ngram", 0, 0),
        ("ngram", 3, 1),
    ):
        runtime = make_runtime(speculate=speculate)
        params = SamplingParams(max_tokens=30, ignore_eos=True, speculate=wish)
        usage = runtime.generate([repeating], params)[0].usage
        assert (usage.drafted_tokens > 0) == bool(drafts)
        assert usage.accepted_tokens <= usage.drafted_tokens
        assert runtime.stats().speculation.drafted_tokens == usage.drafted_tokens


@pytest.mark.parametrize("speculate", ["", "ngram:", "ngram:0", "ngram:65", "eagle", "ngram:-1", 5])
def test_a_method_that_is_none_is_refused(speculate: object) -> None:
    with pytest.raises(ConfigError, match=r"speculate (is|has) "):
        Runtime("tiny", speculate=speculate)


@pytest.mark.parametrize("speculate", [-1, 65, 1.5, "ngram", True])
def test_a_number_of_drafts_that_is_none_is_refused(speculate: Any) -> None:
    with pytest.raises(RequestError, match="speculate"):
        SamplingParams(speculate=speculate)
