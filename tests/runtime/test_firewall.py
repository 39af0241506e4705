"""What fails for one request ends that request, and neither its neighbours nor the engine."""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from kvrt.engine import beaming, sampler
from kvrt.engine.answers import Answers
from kvrt.engine.output import Output
from kvrt.engine.request import Request
from kvrt.errors import DeviceError, KvrtError, ModelError
from kvrt.outputs import Result
from kvrt.runtime import Runtime
from kvrt.sampling import SamplingParams
from kvrt.sched.beams import BeamSearch
from kvrt.stream import Inbox

from .conftest import MakeRuntime, pages_in_use, until

VICTIM = [13, 17, 19] * 8
NEIGHBOURS = [
    ([1, 2, 3], SamplingParams(max_tokens=40, ignore_eos=True)),
    ([4, 5], SamplingParams(max_tokens=30, ignore_eos=True, n=3, temperature=0.9, seed=7)),
    ([6] * 20, SamplingParams(max_tokens=20, ignore_eos=True, beam_width=3)),
    ([8, 9] * 9, SamplingParams(max_tokens=60, ignore_eos=True, speculate=8)),
]

PLAIN: dict[str, Any] = {"max_tokens": 30, "ignore_eos": True}
DRAWN = {**PLAIN, "temperature": 1.0, "seed": 3}
BEAMS = {**PLAIN, "beam_width": 4, "n": 3}
PENALIZED = {**PLAIN, "repetition_penalty": 1.2}
PLACES: list[tuple[Any, str, int, dict[str, Any]]] = [
    (sampler, "_draw", 3, DRAWN),
    (sampler, "_draw", 7, {**DRAWN, "n": 4}),
    (sampler, "_penalize", 1, PENALIZED),
    (sampler, "_penalize", 5, {**PENALIZED, "speculate": 8}),
    (sampler, "token_logprobs", 2, {**PLAIN, "logprobs": 1}),
    (sampler, "token_logprobs", 5, {**PLAIN, "prompt_logprobs": 1}),
    (Request, "open_output", 1, PLAIN),
    (Request, "open_output", 3, {**DRAWN, "n": 4}),
    (Request, "open_output", 2, BEAMS),
    (Output, "push", 4, PLAIN),
    (Output, "push", 7, {**DRAWN, "n": 4}),
    (Output, "push", 35, BEAMS),
    (Inbox, "deliver", 2, PLAIN),
    (Inbox, "deliver", 30, PLAIN),
    (Inbox, "deliver", 7, {**DRAWN, "n": 4}),
    (Inbox, "deliver", 59, {**DRAWN, "n": 2}),  # the last piece of one; the other ends as well
    (beaming, "begin", 1, BEAMS),
    (BeamSearch, "advance", 3, BEAMS),
    (BeamSearch, "best", 1, BEAMS),
]
"""What is computed for one row, which of these computations fails, and a request that needs it."""


@pytest.fixture(scope="module")
def runtime(tiny_lm: Path) -> Iterator[Runtime]:
    options: dict[str, Any] = {"backend": "cpu", "load_format": "dummy", "debug": True, "seed": 1}
    with Runtime(tiny_lm, memory_limit="512MiB", **options) as runtime:
        yield runtime


@pytest.fixture(scope="module")
def alone(runtime: Runtime) -> list[object]:
    """What the neighbours say when nobody fails."""
    return [said(runtime.stream(prompt, params).wait()) for prompt, params in NEIGHBOURS]


def said(result: Result) -> object:
    return result.error, [(c.token_ids, c.finish_reason) for c in result.completions]


def beside(runtime: Runtime, prompt: list[int], params: SamplingParams) -> tuple[Result, object]:
    """What becomes of the victim, and of its neighbours."""
    streams = [runtime.stream(prompt, wish) for prompt, wish in NEIGHBOURS[:2]]
    victim = runtime.stream(prompt, params, request_id="victim")
    streams += [runtime.stream(prompt, wish) for prompt, wish in NEIGHBOURS[2:]]
    return victim.wait(), [said(stream.wait()) for stream in streams]


def fail_at(
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, count: int, error: Exception
) -> None:
    """Let the `count`-th call of a function fail that is made for the victim."""
    working: list[str] = []
    calls = [0]
    function, guard = getattr(owner, name), Answers._alone

    def guarded(answers: Answers, request: Request, *args: Any) -> None:
        working.append(request.id)
        try:
            guard(answers, request, *args)
        finally:
            working.pop()

    def fails(*args: Any, **kwargs: Any) -> Any:
        calls[0] += working == ["victim"]
        if working == ["victim"] and calls[0] == count:
            raise error
        return function(*args, **kwargs)

    monkeypatch.setattr(Answers, "_alone", guarded)
    monkeypatch.setattr(owner, name, fails)


@pytest.mark.promise("P27")
@pytest.mark.parametrize(
    ("owner", "name", "count", "params"),
    PLACES,
    ids=[f"{name}-{count}-{n}" for n, (_, name, count, _) in enumerate(PLACES)],
)
def test_a_request_that_fails_leaves_the_others_as_they_were(
    owner: Any,
    name: str,
    count: int,
    params: dict[str, Any],
    runtime: Runtime,
    alone: list[object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fail_at(monkeypatch, owner, name, count, IndexError("index -1 is out of bounds\nfor a line"))
    victim, others = beside(runtime, VICTIM, SamplingParams(**params))
    assert others == alone
    assert type(victim.error) is KvrtError
    assert str(victim.error) == "engine: IndexError: index -1 is out of bounds"
    assert {c.finish_reason for c in victim.completions} <= {"error", "length"}, "some had ended"
    until(lambda: not runtime.busy and not pages_in_use(runtime))
    runtime.cache.check_integrity()


@pytest.mark.promise("P27")
@pytest.mark.parametrize("caught", [True, False])
def test_a_panic_of_a_tokenizer_ends_the_request_whose_text_it_was(
    tiny_lm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caught: bool
) -> None:
    """It comes out of compiled code, and is no `Exception` unless our tokenizer makes it one."""
    if not caught:
        monkeypatch.setattr("kvrt.model.tokens.tokenizer._is_fault", lambda error: False)
    words = {f"w{n}": n for n in range(198)} | {"x": 198}
    tokenizer = json.loads(Tokenizer(WordLevel(words, unk_token="w0")).to_str())
    tokenizer["decoder"] = {"type": "Strip", "content": "x", "start": 0, "stop": 2**62}
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    (tmp_path / "config.json").write_text((tiny_lm / "config.json").read_text())
    with Runtime(
        tmp_path, backend="cpu", load_format="dummy", seed=1, memory_limit="512MiB"
    ) as runtime:
        assert runtime.model.tokenizer is not None
        with pytest.raises(BaseException, match="out of bounds") as panic:
            runtime.model.tokenizer.decode([198])
        assert isinstance(panic.value, ModelError) == caught
        assert isinstance(panic.value, Exception) == caught
        victim, other = runtime.generate([[13, 198], [1, 2, 3]], SamplingParams(**PLAIN))
        assert "out of bounds" in str(victim.error)
        assert other.error is None
        assert 198 not in other.token_ids


def test_an_end_from_outside_that_fails_ends_the_request(
    runtime: Runtime, alone: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_at(monkeypatch, Output, "finish", 2, IndexError("of text"))
    wish = SamplingParams(max_tokens=900, ignore_eos=True, n=3)
    stream = runtime.stream(VICTIM, wish, request_id="victim")
    next(stream)
    stream.close()
    reasons = [c.finish_reason for c in stream.wait().completions]
    assert sorted(reasons) == ["abort", "error", "error"]
    assert said(runtime.stream(*NEIGHBOURS[0]).wait()) == alone[0]
    until(lambda: not runtime.busy and not pages_in_use(runtime))


def test_a_fault_of_the_device_is_everybodys(
    make_runtime: MakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = DeviceError("the device fell off the bus")
    fail_at(monkeypatch, sampler, "_draw", 3, gone)
    runtime = make_runtime()
    victim, _ = beside(runtime, VICTIM, SamplingParams(**DRAWN))
    assert victim.error is gone
    with pytest.raises(DeviceError):
        runtime.stream([1])


# --- scores that are not numbers -----------------------------------------------------------------

BAD = 196
"""A token whose embedding is not of numbers; so are then all scores behind it. No neighbour says
it."""


@pytest.fixture(params=[math.nan, math.inf, -math.inf], ids=str)
def damaged(runtime: Runtime, request: pytest.FixtureRequest) -> Iterator[Callable[[], None]]:
    """Damages the weights; called, it mends them."""
    row = runtime.model.decoder.weights.embedding[BAD]
    right = row.clone()

    def mend() -> None:
        row.copy_(right)

    row[0] = request.param
    yield mend
    mend()


@pytest.mark.promise("P27")
@pytest.mark.parametrize(
    "params",
    [PLAIN, DRAWN, BEAMS, PENALIZED, {**DRAWN, "min_p": 0.1}, {**DRAWN, "n": 4, "top_p": 0.9},
     {**PLAIN, "logprobs": 2}, {**PLAIN, "prompt_logprobs": 2}, {**PLAIN, "speculate": 8}],
    ids=lambda params: "-".join(map(str, params)),
)  # fmt: skip
def test_scores_that_are_not_numbers_end_their_request_with_an_error_that_says_so(
    params: dict[str, Any],
    damaged: Callable[[], None],
    runtime: Runtime,
    alone: list[object],
) -> None:
    victim, others = beside(runtime, [*VICTIM, BAD, *VICTIM], SamplingParams(**params))
    assert others == alone
    assert victim.finish_reason == "error"
    assert "not finite numbers" in str(victim.error)
    assert all(not c.token_ids for c in victim.completions)
    until(lambda: not runtime.busy and not pages_in_use(runtime))


def test_what_was_computed_for_a_request_that_failed_is_not_used_again(
    damaged: Callable[[], None], runtime: Runtime
) -> None:
    prompt = [BAD, *VICTIM, *VICTIM, *VICTIM]
    failed = runtime.generate([prompt], SamplingParams(**PLAIN))[0]
    assert failed.error is not None
    damaged()
    mended = runtime.generate([prompt], SamplingParams(**PLAIN))[0]
    assert mended.error is None
    assert mended.usage.cached_tokens == 0
    fresh = runtime.generate([prompt], SamplingParams(**PLAIN))[0]
    assert fresh.token_ids == mended.token_ids
    runtime.invalidate()
