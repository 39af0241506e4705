"""Requests of several adapters are answered together, each as by weights that it is merged into."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel

from kvrt import ConfigError, ModelError, RequestError, Runtime, SamplingParams
from kvrt.engine.events import Event, RequestPreempted
from tests.model.adapters import Matrices, make_adapter, merged, save_adapter
from tests.model.checkpoints import make_model, save_model

from .conftest import until

COUNT = 8
GREEDY = SamplingParams(max_tokens=24, ignore_eos=True)
LONG = SamplingParams(max_tokens=150, ignore_eos=True)
PROMPTS = [[3 + (n * at) % 250 for at in range(1, 40 + n)] for n in range(2 * COUNT)]


class Case:
    """A model, adapters for it, and what the merged weights say."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.reference: PreTrainedModel = make_model("qwen-3")
        self.model = save_model(self.reference, folder / "model")
        self.matrices: list[Matrices] = [
            make_adapter(self.reference, seed=n, leave=() if n % 2 else ("o_proj", "gate_proj"))
            for n in range(COUNT)
        ]
        for n, matrices in enumerate(self.matrices):
            save_adapter(folder / f"a{n}", matrices)

    def merged_says(self, number: int, prompts: list[list[int]]) -> list[tuple[int, ...]]:
        weights = save_model(
            merged(self.reference, self.matrices[number]), self.folder / f"merged{number}"
        )
        with Runtime(weights, backend="cpu", memory_limit="64MiB") as runtime:
            return [result.token_ids for result in runtime.generate(prompts, GREEDY)]


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp("adapters"))


def opened(case: Case, **options: Any) -> Runtime:
    return Runtime(case.model, backend="cpu", debug=True, **{"memory_limit": "64MiB", **options})


@pytest.fixture
def runtime(case: Case) -> Iterator[Runtime]:
    with opened(case) as runtime:
        yield runtime


@pytest.mark.parametrize("options", [{}, {"speculate": "ngram"}, {"max_batch_tokens": 17}])
def test_sixteen_requests_over_eight_adapters_say_what_merged_weights_say(
    case: Case, options: dict[str, Any]
) -> None:
    with opened(case, **options) as runtime:
        plain = [result.token_ids for result in runtime.generate(PROMPTS[:4], GREEDY)]
        for n in range(COUNT):
            runtime.load_adapter(f"a{n}", case.folder / f"a{n}")
        assert [*runtime.adapters] == [f"a{n}" for n in range(COUNT)]
        streams = [
            runtime.stream(prompt, GREEDY, adapter=f"a{n % COUNT}")
            for n, prompt in enumerate(PROMPTS)
        ]
        beside = [runtime.stream(prompt, GREEDY) for prompt in PROMPTS[:4]]
        said = [stream.wait().token_ids for stream in streams]
        assert [stream.wait().token_ids for stream in beside] == plain
    for n in range(0, COUNT, 3):
        assert said[n::COUNT] == case.merged_says(n, PROMPTS[n::COUNT])
        assert said[n] != plain[0]


def test_requests_that_are_preempted_say_the_same(case: Case) -> None:
    with opened(case) as runtime:
        runtime.load_adapter("one", case.folder / "a1")
        want = [r.token_ids for r in runtime.generate(PROMPTS, LONG, adapter="one")]
    preempted: list[Event] = []
    with opened(case, memory_limit="3MiB", prefix_cache=False) as runtime:
        runtime.load_adapter("one", case.folder / "a1")
        runtime.add_observer(
            lambda event: preempted.append(event) if isinstance(event, RequestPreempted) else None
        )
        said = [r.token_ids for r in runtime.generate(PROMPTS, LONG, adapter="one")]
    assert preempted
    assert said == want


def test_pages_are_found_by_the_content_of_an_adapter_and_not_by_its_name(
    case: Case, runtime: Runtime
) -> None:
    prompt = PROMPTS[0]

    def cached(adapter: str | None) -> int:
        (result,) = runtime.generate([prompt], GREEDY, adapter=adapter)
        assert result.error is None
        return result.usage.cached_tokens

    runtime.load_adapter("one", case.folder / "a0")
    runtime.load_adapter("other", case.folder / "a1")
    whole = len(prompt) // 16 * 16
    assert [cached(None), cached("one"), cached("other")] == [0, 0, 0]
    assert [cached(None), cached("one"), cached("other")] == [whole] * 3
    runtime.unload_adapter("one")
    runtime.load_adapter("one", case.folder / "a2")
    assert cached("one") == 0
    runtime.load_adapter("again", case.folder / "a0")
    assert cached("again") == whole


def test_an_adapter_is_unloaded_while_it_answers_and_its_memory_goes_back(
    case: Case, runtime: Runtime
) -> None:
    runtime.load_adapter("one", case.folder / "a3")
    held = runtime.model.decoder.adapters.by_number
    assert len(held) == 1
    assert runtime.adapters["one"] > 0
    stream = runtime.stream(PROMPTS[0], LONG, adapter="one")
    next(iter(stream))
    runtime.unload_adapter("one")
    with pytest.raises(RequestError, match="none are") as refused:
        runtime.stream(PROMPTS[0], adapter="one")
    assert refused.value.param == "adapter"
    result = stream.wait()
    assert result.error is None
    (want,) = case.merged_says(3, [PROMPTS[0]])
    assert result.token_ids[: len(want)] == want
    del stream
    runtime.generate([[1, 2, 3]], SamplingParams(max_tokens=1))
    until(lambda: not held)


def test_names_are_taken_once_and_what_is_no_adapter_is_refused(
    case: Case, runtime: Runtime, tmp_path: Path
) -> None:
    runtime.load_adapter("one", case.folder / "a0")
    with pytest.raises(ConfigError, match="'one' is loaded"):
        runtime.load_adapter("one", case.folder / "a1")
    with pytest.raises(ConfigError, match="no adapter 'two'") as refused:
        runtime.unload_adapter("two")
    assert "one" in refused.value.fix
    with pytest.raises(ModelError, match="adapter_config"):
        runtime.load_adapter("two", tmp_path)
    with pytest.raises(ModelError, match="does not have"):
        runtime.load_adapter(
            "two", save_adapter(tmp_path, {"score": next(iter(case.matrices[0].values()))})
        )
    assert [*runtime.adapters] == ["one"]
