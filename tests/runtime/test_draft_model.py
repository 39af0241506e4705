"""Drafts of a small model: the same text in fewer steps, whatever happens to a sequence."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from kvrt import ConfigError, Constraint, Runtime, SamplingParams
from kvrt.drafting import gain
from kvrt.engine.events import Event, RequestPreempted
from tests.model.checkpoints import make_model, save_model

PROMPTS = [[3 + (n * at) % 250 for at in range(1, 20 + 9 * n)] for n in range(4)]
WAYS = {
    "greedy": SamplingParams(max_tokens=24, ignore_eos=True, temperature=0),
    "drawn": SamplingParams(max_tokens=24, ignore_eos=True, temperature=1.0, seed=7),
    "several": SamplingParams(max_tokens=20, ignore_eos=True, temperature=0.8, n=3, seed=5),
    "penalised": SamplingParams(
        max_tokens=24, ignore_eos=True, temperature=0, repetition_penalty=1.3, logprobs=2
    ),
    "beams": SamplingParams(max_tokens=10, beam_width=3, n=2),
}


class Models:
    """Folders of a model, and of others that draft for it."""

    def __init__(self, folder: Path) -> None:
        self.model = save_model(make_model("qwen-3"), folder / "model")
        self.other = save_model(make_model("llama-2"), folder / "other")
        self.windows = save_model(make_model("gemma-2"), folder / "windows")

    def said(self, way: SamplingParams, **options: Any) -> list[tuple[tuple[int, ...], ...]]:
        with self.opened(**options) as runtime:
            return words(runtime, way)

    def opened(self, **options: Any) -> Runtime:
        return Runtime(self.model, backend="cpu", **{"memory_limit": "64MiB", **options})


def words(
    runtime: Runtime, way: SamplingParams, prompts: Sequence[list[int]] = PROMPTS
) -> list[tuple[tuple[int, ...], ...]]:
    results = runtime.generate(prompts, way)
    assert not any(result.error for result in results)
    return [tuple(each.token_ids for each in result.completions) for result in results]


@pytest.fixture(autouse=True)
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drafts are made whatever they cost: here, models that draft are as large as others."""
    monkeypatch.setattr(gain, "MARGIN", 0.0)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(tmp_path_factory.mktemp("drafts"))


@pytest.mark.parametrize("way", WAYS)
def test_the_text_is_the_same_and_drafts_of_the_same_model_come_true(
    models: Models, way: str
) -> None:
    params = WAYS[way]
    want = models.said(params)
    others = (models.other, models.windows) if way == "greedy" else ()
    for drafter in (models.model, *others):
        with models.opened(draft_model=drafter, debug=True) as runtime:
            assert words(runtime, params) == want
            told = runtime.stats().speculation
        if way == "beams":
            assert told.drafted_tokens == 0
        elif drafter is models.model:
            assert told.accepted_tokens > 40
            assert told.accepted_tokens > 0.95 * told.drafted_tokens
    if way == "drawn":
        assert models.said(params, draft_model=models.model, max_batch_tokens=17) == want


def test_requests_that_are_preempted_say_the_same(models: Models) -> None:
    long = SamplingParams(max_tokens=100, ignore_eos=True, temperature=0)
    many = [[3 + (n * at) % 250 for at in range(1, 100 + n)] for n in range(12)]
    with models.opened() as runtime:
        want = words(runtime, long, many)
    preempted: list[Event] = []
    with models.opened(
        draft_model=models.model, memory_limit="5.5MiB", offload="host:8MiB", debug=True
    ) as runtime:
        runtime.add_observer(
            lambda event: preempted.append(event) if isinstance(event, RequestPreempted) else None
        )
        assert words(runtime, long, many) == want
        assert runtime.stats().speculation.accepted_tokens > 0
    assert preempted


def test_what_a_drafter_has_computed_is_found_again_with_the_pages(models: Models) -> None:
    prompt = [3 + 7 * at % 250 for at in range(200)]
    short = SamplingParams(max_tokens=12, ignore_eos=True, temperature=0)
    with models.opened(draft_model=models.model, debug=True) as runtime:
        passes: list[int] = []
        launch = runtime._worker.engine.executor.launch

        def counted(step: Any) -> Any:
            if step.drafting:
                passes.append(len(step.tokens))
            return launch(step)

        runtime._worker.engine.executor.launch = counted  # type: ignore[method-assign]
        first = words(runtime, short, [prompt])
        assert max(passes) > len(prompt)
        passes.clear()
        assert words(runtime, short, [prompt]) == first
        assert 0 < max(passes) < 40


def test_a_request_that_is_left_takes_its_drafts_along(models: Models) -> None:
    endless = SamplingParams(max_tokens=240, ignore_eos=True, temperature=0)
    with models.opened(draft_model=models.other, debug=True) as runtime:
        streams = [runtime.stream(prompt, endless) for prompt in PROMPTS]
        for stream in streams:
            next(iter(stream))
            stream.close()
        assert words(runtime, WAYS["greedy"]) == models.said(WAYS["greedy"])


def test_a_request_may_do_without(models: Models) -> None:
    without = SamplingParams(max_tokens=30, ignore_eos=True, temperature=0, speculate=0)
    with models.opened(draft_model=models.model) as runtime:
        words(runtime, without)
        assert runtime.stats().speculation.drafted_tokens == 0


def test_an_answer_under_a_constraint_is_drafted_under_it() -> None:
    constraint = Constraint.regex(r"(one|two|three)( (one|two|three)){8}")
    params = SamplingParams(max_tokens=60, temperature=0, constraint=constraint)
    with Runtime("tiny", backend="cpu", memory_limit="256MiB") as runtime:
        want = runtime.generate("count:", params)[0].text
    with Runtime("tiny", backend="cpu", memory_limit="256MiB", draft_model="tiny") as runtime:
        assert runtime.generate("count:", params)[0].text == want
        told = runtime.stats().speculation
    assert told.accepted_tokens > 0.6 * told.drafted_tokens > 0


def test_a_drafter_with_another_vocabulary_is_refused_by_name(
    models: Models, tmp_path: Path
) -> None:
    with pytest.raises(
        ConfigError, match=r"draft_model tiny cannot draft for .*its vocabulary has"
    ):
        models.opened(draft_model="tiny", max_model_len=256)
    with pytest.raises(ConfigError, match="speculate is 'ngram'"):
        models.opened(draft_model=models.other, speculate="ngram")
    with pytest.raises(ConfigError, match="speculate is 'draft'") as refused:
        models.opened(speculate="draft")
    assert "draft_model" in refused.value.fix
