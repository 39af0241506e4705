"""Models with windows in all or some layers say what they say in transformers, in every way.

Prompts and answers are much longer than the windows, which are no multiple of a page.
"""

import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from kvrt.model.config import read_config
from kvrt.runtime import Runtime
from kvrt.sampling import SamplingParams
from tests.model.checkpoints import make_model, save_model

from .conftest import Break, MakeRuntime
from .test_ahead import Asynchronous
from .test_speculation import draft
from .ways import CHUNK, ONE, TOKEN, WAYS, Answers, Ways, ask

__all__ = ["draft"]

NEW = 64
GREEDY = SamplingParams(max_tokens=NEW, ignore_eos=True)
BEAMS = 3
FULL, SLIDING = "full_attention", "sliding_attention"
SHAPE: dict[str, Any] = {
    "num_hidden_layers": 4,
    "num_key_value_heads": 4,
    "head_dim": 128,  # as `ways.TOKEN` wants it
    "max_position_embeddings": 2048,
    "eos_token_id": None,
}
SWITCHED = {"use_sliding_window": True, "sliding_window": 24}
MODELS: dict[str, tuple[str, dict[str, Any], list[int]]] = {
    "mistral": ("mistral", {"sliding_window": 24}, [24, 24, 24, 24]),
    "qwen2": ("qwen-2", {"sliding_window": 21, "max_window_layers": 2}, [0, 0, 21, 21]),
    "qwen2-types": (
        "qwen-2",
        SWITCHED | {"layer_types": [SLIDING, FULL, SLIDING, SLIDING]},
        [24, 0, 24, 24],
    ),
    "qwen3-types": (
        "qwen-3",
        SWITCHED | {"sliding_window": 37, "layer_types": [FULL, SLIDING, SLIDING, FULL]},
        [0, 37, 37, 0],
    ),
    "smollm3": ("smollm-3", SWITCHED, [0, 24, 0, 24]),
    "smollm3-types": (
        "smollm-3",
        SWITCHED | {"layer_types": [SLIDING, SLIDING, SLIDING, FULL]},
        [24, 24, 24, 0],
    ),
    "mixtral": ("mixtral", {"sliding_window": 29}, [29, 29, 29, 29]),
    "gpt-oss": ("gpt-oss", {"sliding_window": 24, "layer_types": None}, [24, 0, 24, 0]),
}
"""The family in tests/model/checkpoints.py, what differs from it, and the windows of its layers."""


def prompts() -> list[list[list[int]]]:
    """Three of each length, the second beginning as the second of others does."""
    rng = random.Random(0)
    stem = [rng.randrange(199) for _ in range(131)]
    every = [(length, n) for length in (25, 64, 97, 131) for n in range(3)]
    found = [
        stem[:length] if n == 1 else [rng.randrange(199) for _ in range(length)]
        for length, n in every
    ]
    return [found[n : n + 3] for n in range(0, len(found), 3)]


PROMPTS = prompts()
ALL = [prompt for alike in PROMPTS for prompt in alike]
SHORT = [[n, 1, 2, 3, 4] for n in range(12)]
"""They grow, while what is longer than a window does so no more."""


@dataclass(frozen=True, slots=True)
class Known:
    """A model as transformers has it: its folder, and what it says to `ALL`, and to `SHORT`."""

    reference: PreTrainedModel
    folder: Path
    answers: Answers
    short: Answers


def generate(reference: PreTrainedModel, alike: list[list[int]], **options: Any) -> Any:
    ids = torch.tensor(alike)
    return reference.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=NEW,
        pad_token_id=0, **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Known]]:
    models: dict[str, Known] = {}

    def model(name: str) -> Known:
        if name not in models:
            family, changes, windows = MODELS[name]
            reference = make_model(family, **SHAPE | changes)
            folder = save_model(reference, tmp_path_factory.mktemp(name))
            read = read_config(folder / "config.json")
            assert [layer.window for layer in read.layers] == windows
            *answers, short = (
                [tuple(text[len(alike[0]) :]) for text in generate(reference, alike).tolist()]
                for alike in (*PROMPTS, SHORT)
            )
            models[name] = Known(reference, folder, [*itertools.chain(*answers)], short)
        return models[name]

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the models are so small that two would only wait for each other
    yield model
    torch.set_num_threads(threads)


@pytest.fixture
def opened(make_runtime: MakeRuntime) -> Callable[..., Runtime]:
    def make(folder: Path, **options: object) -> Runtime:
        return make_runtime(**{"model": folder, "load_format": "auto"} | options)

    return make


def in_turn(things: list[str]) -> list[Any]:
    """Each with each model; by default each with one, and every model in its turn."""
    names = list(MODELS)
    return [
        pytest.param(thing, name, marks=[] if n % len(names) == m else [pytest.mark.extra])
        for n, thing in enumerate(things)
        for m, name in enumerate(names)
    ]


@pytest.mark.promise("P15")
@pytest.mark.parametrize(("way", "name"), in_turn(WAYS))
@pytest.mark.parametrize("page_size", [8, pytest.param(16, marks=pytest.mark.extra)])
@pytest.mark.parametrize("chunk", [29, pytest.param(512, marks=pytest.mark.extra)])
def test_every_way_says_what_transformers_says(
    way: str,
    name: str,
    page_size: int,
    chunk: int,
    known: Callable[[str], Known],
    opened: Callable[..., Runtime],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    # Admitted without a thought of what comes, so that pages run out.
    monkeypatch.setattr("kvrt.sched.room.LOOKAHEAD_TOKENS", 0)

    def make(**options: object) -> Runtime:
        return opened(known(name).folder, page_size=page_size, max_batch_tokens=chunk, **options)

    asked, right = ALL, known(name).answers
    if way.startswith("preempted"):
        asked, right = [*SHORT, *asked], [*known(name).short, *right]
    ways = Ways(make, asked, tmp_path / "pages", GREEDY)
    assert getattr(ways, way)() == right


@pytest.mark.parametrize("name", MODELS)
def test_alone_and_forked_a_prompt_is_answered_as_by_transformers(
    name: str, known: Callable[[str], Known], opened: Callable[..., Runtime]
) -> None:
    runtime = opened(known(name).folder)
    thrice = SamplingParams(max_tokens=NEW, ignore_eos=True, n=3)
    for n in (0, 4, 11):  # the window is passed by the answer, or by the prompt
        assert ask(runtime, [ALL[n]], GREEDY)[0] == [known(name).answers[n]]
        forked = runtime.generate([ALL[n]], thrice)[0]
        assert [c.token_ids for c in forked.completions] == [known(name).answers[n]] * 3


@pytest.mark.promise("P15")
@pytest.mark.parametrize(("chunk", "name"), in_turn(["7", "48"]))
@pytest.mark.parametrize("page_size", [8, 16])
def test_drafts_change_nothing_that_is_said(
    page_size: int,
    chunk: str,
    name: str,
    known: Callable[[str], Known],
    opened: Callable[..., Runtime],
    draft: Callable[[list[list[int]]], None],
) -> None:
    """Some are wrong, and taken back: by then the window must not have given away what it needs,
    nor by the time they are computed, which shows where a window ends near a page's end."""
    model = known(name)
    draft([[*p, *answer] for p, answer in zip(ALL, model.answers, strict=True)])
    options: dict[str, Any] = {"page_size": page_size, "max_batch_tokens": int(chunk)}
    runtime = opened(model.folder, speculate="ngram:6", **options)
    assert ask(runtime, ALL, GREEDY)[0] == model.answers
    stats = runtime.stats().speculation
    assert 20 < stats.accepted_tokens < stats.drafted_tokens


@pytest.mark.parametrize(("length", "name"), in_turn(["97", "25"]))
def test_beams_are_those_of_transformers(
    length: str, name: str, known: Callable[[str], Known], opened: Callable[..., Runtime]
) -> None:
    model, prompt = known(name), next(p for p in ALL if len(p) == int(length))
    beams = SamplingParams(max_tokens=NEW, ignore_eos=True, n=BEAMS, beam_width=BEAMS)
    (result,) = opened(model.folder).generate([prompt], beams)
    wanted = generate(model.reference, [prompt], num_beams=BEAMS, num_return_sequences=BEAMS)
    found = [list(completion.token_ids) for completion in result.completions]
    assert found == wanted[:, len(prompt) :].tolist()


@pytest.mark.parametrize("name", MODELS)
def test_a_window_of_one_token_more_or_less_would_say_something_else(
    name: str, known: Callable[[str], Known], opened: Callable[..., Runtime], tmp_path: Path
) -> None:
    """So the answers above do tell what the windows are."""
    model = known(name)
    config = (model.folder / "config.json").read_text()
    window = max(MODELS[name][2])
    for other in (window - 1, window + 1):
        changed = tmp_path / str(other)
        changed.mkdir()
        written = config.replace(f'"sliding_window": {window}', f'"sliding_window": {other}')
        (changed / "config.json").write_text(written)
        (changed / "model.safetensors").symlink_to(model.folder / "model.safetensors")
        answers, _, _ = ask(opened(changed), ALL[3:6], GREEDY)
        assert all(answers[n] != model.answers[3 + n] for n in range(3))


@pytest.mark.parametrize("chunk", [24, 512])
@pytest.mark.parametrize("name", ["mistral", "qwen3-types"])
def test_a_prompt_begins_where_any_part_of_a_long_one_ends(
    name: str,
    chunk: int,
    known: Callable[[str], Known],
    opened: Callable[..., Runtime],
    break_device: Break,
) -> None:
    """Pages have names before a window leaves them, also while the next step is planned ahead."""
    break_device(Asynchronous)
    runtime = opened(known(name).folder, page_size=16, max_batch_tokens=chunk)
    prompt = [n * n % 199 for n in range(900)]
    ask(runtime, [prompt], ONE)
    for part in (850, 500, 100, 33):
        _, cached, _ = ask(runtime, [[*prompt[:part], 7, 7]], ONE)
        assert cached == part // 16 * 16


@pytest.mark.parametrize("name", MODELS)
def test_a_layer_with_a_window_takes_memory_for_its_window_and_no_more(
    name: str, known: Callable[[str], Known], opened: Callable[..., Runtime]
) -> None:
    length, chunk, windows = 1900, 64, MODELS[name][2]
    options: dict[str, Any] = {"prefix_cache": False, "max_batch_tokens": chunk, "keep_warm": 0}
    runtime = opened(known(name).folder, **options)
    ask(runtime, [[n % 199 for n in range(length - NEW)]], GREEDY)
    cache = runtime.stats().cache
    kept = [min(length, window + 2 * chunk + 16) if window else length for window in windows]
    least = sum(kept) * TOKEN // len(windows)
    assert cache.peak_mapped_bytes <= least + 2 * len(set(windows)) * CHUNK < length * TOKEN
