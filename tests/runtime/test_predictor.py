"""Drafts of a model's own predictor: the same text in fewer steps, in every way."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from kvrt import ConfigError, Runtime, SamplingParams
from kvrt.drafting import gain
from kvrt.executor.interface import Step
from tests.model.predictors import FULL, LINEAR, agreeing, make_predicted, save_predicted

from .conftest import MakeRuntime
from .test_draft_model import PROMPTS, WAYS, words
from .test_windows import ALL, SHORT
from .ways import WAYS as HISTORIES
from .ways import Ways, ask

MODELS: dict[str, dict[str, Any]] = {
    "deepseek-3": {"num_hidden_layers": 4},
    "glm-4-moe": {"num_hidden_layers": 4},
    "qwen-3.5": {
        "num_hidden_layers": 4,
        "layer_types": [LINEAR, FULL, FULL, FULL],
        "num_key_value_heads": 4,
        "head_dim": 128,  # as `ways.TOKEN` wants it, with the predictor
    },
}
"""One with latents, one with plain keys and values, one with recurrent layers."""

USUAL = ("prefix_hit", "restored")
"""The histories that always run."""

LONG = SamplingParams(max_tokens=32, ignore_eos=True, temperature=0)


@pytest.fixture(autouse=True)
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drafts are made whatever they cost: the model has few layers, and the predictor is one."""
    monkeypatch.setattr(gain, "MARGIN", 0.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Path]]:
    known: dict[str, Path] = {}

    def made(name: str) -> Path:
        if name not in known:
            both = make_predicted(name, **MODELS[name], max_position_embeddings=1024)
            known[name] = save_predicted(*agreeing(*both), tmp_path_factory.mktemp(name))
        return known[name]

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield made
    torch.set_num_threads(threads)


@pytest.fixture
def opened(make_runtime: MakeRuntime, folder: Callable[[str], Path]) -> Callable[..., Runtime]:
    def make(name: str, **options: object) -> Runtime:
        return make_runtime(**{"model": folder(name), "load_format": "auto"} | options)

    return make


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", MODELS)
def test_the_text_is_the_same_in_fewer_steps(
    name: str, way: str, opened: Callable[..., Runtime]
) -> None:
    params = WAYS[way]
    want = words(opened(name), params)
    with opened(name, speculate="mtp") as runtime:
        assert words(runtime, params) == want
        told = runtime.stats().speculation
    if way == "beams":
        assert told.drafted_tokens == 0
    else:
        assert told.accepted_tokens > 10
    if way == "drawn":
        assert words(opened(name, speculate="mtp:2", max_batch_tokens=17), params) == want


@pytest.mark.promise("P15")
@pytest.mark.parametrize(
    "way",
    [pytest.param(way, marks=[] if way in USUAL else [pytest.mark.extra]) for way in HISTORIES],
)
def test_a_text_is_the_same_in_every_way(
    way: str, opened: Callable[..., Runtime], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of a model with recurrent layers, whose states are as if no draft had been wrong."""
    monkeypatch.setattr("kvrt.sched.room.LOOKAHEAD_TOKENS", 0)
    prompts = [*SHORT, *ALL] if way.startswith("preempted") else ALL
    right, _, _ = ask(opened("qwen-3.5"), prompts, LONG)
    runtimes: list[Runtime] = []

    def make(**options: object) -> Runtime:
        given = {"page_size": 8, "max_batch_tokens": 48, "speculate": "mtp"}
        runtimes.append(opened("qwen-3.5", **given | options))
        return runtimes[-1]

    assert getattr(Ways(make, prompts, tmp_path / "pages", LONG), way)() == right
    assert runtimes[-1].stats().speculation.accepted_tokens > 0


def test_behind_a_prefix_that_was_found_it_goes_on_as_if_it_had_computed_it(
    opened: Callable[..., Runtime],
) -> None:
    """What it needs of the tokens before is in their pages; it never computes more than one."""
    runtime = opened("qwen-3.5", speculate="mtp")
    prompt = [3 + 7 * at % 190 for at in range(160)]
    passes: list[int] = []
    launch = runtime._worker.engine.executor.launch

    def counted(step: Step) -> Any:
        if step.drafting:
            passes.append(len(step.tokens))
        return launch(step)

    runtime._worker.engine.executor.launch = counted  # type: ignore[method-assign]
    drafted: list[tuple[int, int]] = []
    runtime.generate([[5, 6, 7]], LONG)  # what a step takes is known from then on
    for _ in range(2):
        (result,) = runtime.generate([prompt], LONG)
        drafted.append((result.usage.drafted_tokens, result.usage.accepted_tokens))
    assert result.usage.cached_tokens == 144
    assert drafted[0] == drafted[1]
    assert set(passes) == {1}


def test_a_request_may_do_without(opened: Callable[..., Runtime]) -> None:
    without = SamplingParams(max_tokens=20, ignore_eos=True, temperature=0, speculate=0)
    runtime = opened("glm-4-moe", speculate="mtp")
    words(runtime, without, PROMPTS)
    assert runtime.stats().speculation.drafted_tokens == 0


def test_where_there_is_no_predictor_it_says_so(tiny_lm: Path) -> None:
    with pytest.raises(ConfigError, match=r"speculate is mtp, and .*tiny_lm.* has no layer"):
        Runtime(tiny_lm, backend="cpu", load_format="dummy", speculate="mtp")
    with pytest.raises(ConfigError, match="speculate is 'mtp:99'") as refused:
        Runtime(tiny_lm, backend="cpu", speculate="mtp:99")
    assert "mtp:K" in refused.value.fix
    with pytest.raises(ConfigError, match="speculate mtp is not for a model that several"):
        Runtime(tiny_lm, backend="cpu", speculate="mtp", tensor_parallel=2)
