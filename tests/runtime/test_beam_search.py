"""Beams are sequences on forked tables: what is found is what others find, wherever pages go."""

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

import kvrt.engine.engine
import kvrt.model.bundled as bundled
from kvrt.errors import CapacityError, RequestError
from kvrt.kv.pages.table import Change, PageTable
from kvrt.kv.seq import Seq
from kvrt.outputs import Result
from kvrt.runtime import Runtime
from kvrt.sampling import SamplingParams
from kvrt.sched.batching import plan_step
from kvrt.sched.plan import StepPlan
from kvrt.testing.chaos import Chaos

from .conftest import Break, MakeRuntime, pages_in_use, until

CHUNK = 2 << 20
TINY = Path(bundled.__file__).with_name("tiny")


def beams(width: int, **params: Any) -> SamplingParams:
    return SamplingParams(**{"max_tokens": 110, "n": width, "beam_width": width, **params})


def told(result: Result) -> list[tuple[tuple[int, ...], float | None, str]]:
    assert result.error is None
    return [(c.token_ids, c.score, c.finish_reason) for c in result.completions]


# --- the same as others find --------------------------------------------------------------------


@pytest.fixture(scope="module")
def reference() -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(TINY, dtype=torch.float32)


@pytest.fixture(scope="module")
def tiny() -> Iterator[Runtime]:
    with Runtime("tiny", backend="cpu", dtype="float32", memory_limit="512MiB") as runtime:
        yield runtime


@pytest.mark.parametrize("ends", [(), (0,), (5, 10, 13)])
@pytest.mark.parametrize(
    ("width", "penalty", "given", "longest"),
    [(2, 1.0, 1, 20), (4, 1.0, 4, 40), (5, 0.0, 3, 30), (8, -1.0, 8, 25)],
)
def test_completions_and_scores_are_those_of_transformers(
    tiny: Runtime,
    reference: LlamaForCausalLM,
    width: int,
    penalty: float,
    given: int,
    longest: int,
    ends: tuple[int, ...],
) -> None:
    for text in ("def read_lines(path):\n", "import os\n\nclass Foo", "x = "):
        prompt = tiny.model.encode(text)
        ids = torch.tensor([prompt])
        wanted = reference.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=longest,
            num_beams=width, num_return_sequences=given, length_penalty=penalty,
            early_stopping=False, eos_token_id=list(ends) or None, pad_token_id=0,
            return_dict_in_generate=True, output_scores=True,
        )  # fmt: skip
        (result,) = tiny.generate(
            [prompt],
            SamplingParams(
                max_tokens=longest, beam_width=width, n=given, length_penalty=penalty,
                stop_token_ids=ends, ignore_eos=True,
            ),
        )  # fmt: skip
        for index, completion in enumerate(result.completions):
            tokens = wanted.sequences[index, len(prompt) :].tolist()
            assert list(completion.token_ids) == tokens[: len(completion.token_ids)]
            ended = completion.token_ids[-1] in ends
            assert completion.finish_reason == ("stop" if ended else "length")
            assert ended or len(completion.token_ids) == longest
            assert completion.score == pytest.approx(float(wanted.sequences_scores[index]), 1e-5)
        assert len(result.completions) == given


# --- wherever their pages go --------------------------------------------------------------------

PROMPTS = [[(7 * n + k) % 199 for k in range(5 + 23 * n)] for n in range(6)]


@pytest.fixture(scope="module")
def alone(tiny_lm: Path) -> list[Any]:
    """Each request by itself, with all the memory there is."""
    with Runtime(
        tiny_lm, backend="cpu", load_format="dummy", seed=1, memory_limit="512MiB"
    ) as runtime:
        return [told(runtime.generate([p], beams(4))[0]) for p in PROMPTS]


@pytest.mark.parametrize(
    "options",
    [{}, {"max_batch_tokens": 3, "page_size": 8}, {"max_running": 5}, {"speculate": "ngram"}],
    ids=str,
)
@pytest.mark.promise("P15")
def test_many_searches_at_once_find_what_each_finds_alone(
    make_runtime: MakeRuntime, alone: list[Any], options: dict[str, Any]
) -> None:
    runtime = make_runtime(**options)
    assert [told(result) for result in runtime.generate(PROMPTS, beams(4))] == alone
    assert pages_in_use(runtime) == 0


@pytest.mark.parametrize(
    "options",
    [{"prefix_cache": False}, {"offload": "host:64MiB", "preemption": "move"}],
    ids=str,
)
@pytest.mark.promise("P15")
def test_searches_that_have_to_stop_for_others_find_the_same(
    make_runtime: MakeRuntime, alone: list[Any], break_device: Break, options: dict[str, Any]
) -> None:
    break_device(lambda device: Chaos(device, seed=3))
    plain = SamplingParams(max_tokens=200, ignore_eos=True)
    unhurried = make_runtime().generate(PROMPTS[:3], plain)
    runtime = make_runtime(memory_limit=7 * CHUNK, policy="priority", **options)
    others = [runtime.stream(prompt, plain) for prompt in PROMPTS[:3]]
    searches = [runtime.stream(prompt, beams(4), priority=1) for prompt in PROMPTS]
    results = [stream.wait() for stream in searches]
    assert [told(result) for result in results] == alone
    assert [s.wait().token_ids for s in others] == [r.token_ids for r in unhurried]
    assert sum(result.usage.preemptions for result in results) > 0
    assert pages_in_use(runtime) == 0


@pytest.mark.parametrize(
    "options",
    [{"prefix_cache": False}, {"page_size": 1}, {"page_size": 2, "max_batch_tokens": 15}],
    ids=str,
)
@pytest.mark.promise("P15")
def test_searches_that_lose_their_pages_at_any_moment_find_the_same(
    make_runtime: MakeRuntime,
    alone: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
) -> None:
    rng = random.Random(8)

    def plan(table: PageTable, running: Sequence[Seq], *rest: Any, **named: Any) -> StepPlan:
        if running and rng.random() < 0.1:
            together = rng.choice([*running]).together
            victims = [seq for seq in running if seq.together == together]
            change = Change(table)
            for seq in victims:
                change = change.then(change.table.free(seq.id))
            return StepPlan((), change, preempted=tuple(victims))
        return plan_step(table, running, *rest, **named)

    monkeypatch.setattr(kvrt.engine.engine, "plan_step", plan)
    runtime = make_runtime(**options)
    results = runtime.generate(PROMPTS, beams(4))
    assert [told(result) for result in results] == alone
    assert sum(result.usage.preemptions for result in results) > 5
    assert pages_in_use(runtime) == 0
    # What they left in the cache is what it is said to be.
    texts = [
        [*prompt, *completion.token_ids]
        for prompt, result in zip(PROMPTS, results, strict=True)
        for completion in result.completions
    ]
    more = SamplingParams(max_tokens=3, ignore_eos=True)
    anew = make_runtime(prefix_cache=False).generate(texts, more)
    assert [r.token_ids for r in runtime.generate(texts, more)] == [r.token_ids for r in anew]


def test_beams_share_the_pages_of_what_they_have_in_common(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime(prefix_cache=False)
    prompt = [(5 * n) % 199 for n in range(320)]
    runtime.generate([prompt], beams(8, max_tokens=8))
    own_pages = runtime.stats().cache.peak_mapped_bytes // runtime.stats().cache.page_bytes
    assert own_pages < 20 + 8 + 8 + 8  # a prompt, ends of eight, those just left, a chunk's rest


# --- ends ---------------------------------------------------------------------------------------


def test_the_answer_comes_as_a_whole_and_best_first(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime()
    stream = runtime.stream(PROMPTS[2], beams(3, max_tokens=9))
    deltas = list(stream)
    assert [(d.index, d.finish_reason) for d in deltas] == [(n, "length") for n in range(3)]
    result = stream.result
    assert [d.token_ids for d in deltas] == [c.token_ids for c in result.completions]
    scores = [c.score for c in result.completions if c.score is not None]
    assert len(scores) == 3
    assert scores == sorted(scores, reverse=True)
    assert result.usage.completion_tokens == 27
    assert 0 < result.timings.first_token < result.timings.total


def test_log_probabilities_add_up_to_the_score(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime()
    (result,) = runtime.generate([PROMPTS[1]], beams(3, max_tokens=9, logprobs=2))
    for completion in result.completions:
        assert completion.logprobs is not None
        assert tuple(entry.token_id for entry in completion.logprobs) == completion.token_ids
        assert sum(entry.logprob for entry in completion.logprobs) / 9 == completion.score
        for entry in completion.logprobs:
            assert len(entry.top) == 2
            assert entry.top[0][1] >= entry.logprob


def test_an_abort_gives_the_best_so_far(make_runtime: MakeRuntime, alone: list[Any]) -> None:
    runtime = make_runtime()
    stream = runtime.stream(PROMPTS[2], beams(4, max_tokens=700))
    until(lambda: runtime.stats().steps > 30)
    stream.close()
    result = stream.wait()
    assert result.error is None
    assert {c.finish_reason for c in result.completions} == {"abort"}
    assert len(result.completions) == 4
    assert len(result.completions[0].token_ids) >= 25
    assert pages_in_use(runtime) == 0
    assert told(runtime.generate([PROMPTS[2]], beams(4))[0]) == alone[2]


def test_an_abort_in_the_queue_gives_nothing_yet(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime(max_running=1)
    busy = runtime.stream(PROMPTS[0], SamplingParams(max_tokens=900, ignore_eos=True))
    until(lambda: pages_in_use(runtime) > 0)
    stream = runtime.stream(PROMPTS[1], beams(4))
    stream.close()
    assert stream.result.token_ids == ()
    assert stream.result.finish_reason == "abort"
    busy.close()


def test_a_search_that_no_longer_fits_ends_with_what_it_has(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime(memory_limit=4 * CHUNK)
    (result,) = runtime.generate([PROMPTS[5]], beams(32, n=4, max_tokens=400))
    assert isinstance(result.error, CapacityError)
    assert {c.finish_reason for c in result.completions} == {"capacity"}
    assert pages_in_use(runtime) == 0
    assert told(runtime.generate([PROMPTS[0]], beams(2, max_tokens=5))[0])


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("beam_width", {"beam_width": 0}),
        ("beam_width", {"beam_width": 65}),
        ("length_penalty", {"beam_width": 2, "length_penalty": float("nan")}),
        ("n", {"beam_width": 2, "n": 3}),
        ("temperature", {"beam_width": 2, "temperature": 0.7}),
        ("repetition_penalty", {"beam_width": 2, "presence_penalty": 0.1}),
        ("stop", {"beam_width": 2, "stop": ["x"]}),
        ("speculate", {"beam_width": 2, "speculate": 4}),
    ],
)
def test_what_does_not_go_with_beams_is_refused(name: str, params: dict[str, Any]) -> None:
    with pytest.raises(RequestError) as refused:
        SamplingParams(**params)
    assert refused.value.param == name
    assert name in str(refused.value)
