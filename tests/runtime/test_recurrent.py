"""Models with recurrent layers say what they say in transformers, in every way, and begin again
wherever a page ends."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from kvrt.runtime import Runtime
from kvrt.sampling import SamplingParams
from kvrt.spi import StateLayout
from tests.model.checkpoints import make_model, save_model

from .conftest import Break, MakeRuntime, watched
from .test_speculation import draft
from .test_windows import ALL, BEAMS, GREEDY, NEW, PROMPTS, SHORT, Known, generate
from .ways import CHUNK, ONE, WAYS, Ways, ask

__all__ = ["draft"]

SHAPE: dict[str, Any] = {
    "num_hidden_layers": 8,  # every other one attends, as `ways.TOKEN` wants it
    "num_key_value_heads": 4,
    "head_dim": 128,
    "max_position_embeddings": 8192,
    "eos_token_id": None,
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "lfm-2": ("lfm-2", {"layer_types": ["conv", "full_attention"] * 4, "conv_L_cache": 11}),
    "qwen-3.5": ("qwen-3.5", {"layer_types": ["linear_attention", "full_attention"] * 4}),
    "granite-4": ("granite-4", {"layer_types": ["mamba", "attention"] * 4}),
}
BORDERS = MODELS | {
    "kimi-linear": (
        "kimi-linear",
        {
            "layer_types": ["linear_attention", "full_attention"] * 4,
            "mlp_layer_types": ["dense"] + ["sparse"] * 7,
        },
    ),
}
del BORDERS["qwen-3.5"]  # whose rule Kimi Linear has, with more decays
"""The family in tests/model/checkpoints.py, and what differs from it."""

USUAL = ("prefix_hit", "qwen-3.5"), ("preempted_and_moved", "lfm-2")
"""The ways that always run, and with which model."""

FEW = SamplingParams(max_tokens=12, ignore_eos=True)


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Known]]:
    models: dict[str, Known] = {}

    def model(name: str) -> Known:
        if name not in models:
            family, changes = (MODELS | BORDERS)[name]
            reference = make_model(family, **SHAPE | changes)
            folder = save_model(reference, tmp_path_factory.mktemp(name))
            *answers, short = (
                [tuple(text[len(alike[0]) :]) for text in generate(reference, alike).tolist()]
                for alike in (*PROMPTS, SHORT)
            )
            models[name] = Known(reference, folder, [*itertools.chain(*answers)], short)
        return models[name]

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield model
    torch.set_num_threads(threads)


@pytest.fixture
def opened(make_runtime: MakeRuntime, known: Callable[[str], Known]) -> Callable[..., Runtime]:
    def make(name: str, **options: object) -> Runtime:
        return make_runtime(**{"model": known(name).folder, "load_format": "auto"} | options)

    return make


@pytest.mark.promise("P15")
@pytest.mark.parametrize(
    ("way", "name"),
    [
        pytest.param(way, name, marks=[] if (way, name) in USUAL else [pytest.mark.extra])
        for way in WAYS
        for name in MODELS
    ],
)
def test_every_way_says_what_transformers_says(
    way: str,
    name: str,
    known: Callable[[str], Known],
    opened: Callable[..., Runtime],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    # Admitted without a thought of what comes, so that pages run out.
    monkeypatch.setattr("kvrt.sched.room.LOOKAHEAD_TOKENS", 0)

    def make(**options: object) -> Runtime:
        return opened(name, page_size=8, max_batch_tokens=29, **options)

    asked, right = ALL, known(name).answers
    if way.startswith("preempted"):
        asked, right = [*SHORT, *asked], [*known(name).short, *right]
    ways = Ways(make, asked, tmp_path / "pages", GREEDY)
    assert getattr(ways, way)() == right


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name == "granite-4" else [pytest.mark.extra])
        for name in MODELS
    ],
)
def test_forked_and_in_beams_a_prompt_is_answered_as_by_transformers(
    name: str, known: Callable[[str], Known], opened: Callable[..., Runtime]
) -> None:
    model, runtime = known(name), opened(name)
    thrice = SamplingParams(max_tokens=NEW, ignore_eos=True, n=3)
    forked = runtime.generate([ALL[4]], thrice)[0]
    assert [c.token_ids for c in forked.completions] == [model.answers[4]] * 3
    beams = SamplingParams(max_tokens=NEW, ignore_eos=True, n=BEAMS, beam_width=BEAMS)
    (result,) = runtime.generate([ALL[0]], beams)
    wanted = generate(model.reference, [ALL[0]], num_beams=BEAMS, num_return_sequences=BEAMS)
    found = [list(completion.token_ids) for completion in result.completions]
    assert found == wanted[:, len(ALL[0]) :].tolist()


@pytest.mark.promise("P15")
@pytest.mark.parametrize("page_size", [8, 16])
@pytest.mark.parametrize("name", MODELS)
def test_drafts_change_nothing_that_is_said(
    page_size: int,
    name: str,
    known: Callable[[str], Known],
    opened: Callable[..., Runtime],
    draft: Callable[[list[list[int]]], None],
) -> None:
    """Some are wrong, and taken back."""
    model = known(name)
    draft([[*p, *answer] for p, answer in zip(ALL, model.answers, strict=True)])
    runtime = opened(name, speculate="ngram:6", page_size=page_size, max_batch_tokens=48)
    assert ask(runtime, ALL, GREEDY)[0] == model.answers
    stats = runtime.stats().speculation
    assert 20 < stats.accepted_tokens < stats.drafted_tokens


@pytest.mark.promise("P15")
@pytest.mark.parametrize("name", BORDERS)
def test_a_prompt_begins_at_every_border_of_another(
    name: str, opened: Callable[..., Runtime]
) -> None:
    """And says what it says to one who has computed all of it."""
    runtime, cold = opened(name, page_size=16), opened(name, prefix_cache=False)
    prompt = [n * n % 199 for n in range(150)]
    ask(runtime, [prompt], ONE)
    lengths = [at + more for at in range(144, 0, -16) for more in (3, 0)]
    parts = [[*prompt[:length], 7, 7] for length in lengths]
    right, _, _ = ask(cold, parts, FEW)
    for length, part, answer in zip(lengths, parts, right, strict=True):
        (said,), cached, _ = ask(runtime, [part], FEW)
        assert cached == length // 16 * 16
        assert said == answer


@pytest.mark.parametrize("name", MODELS)
def test_a_second_turn_computes_what_is_new(name: str, opened: Callable[..., Runtime]) -> None:
    """Of a conversation of 4,000 tokens; and says what it says to one who has forgotten it."""
    runtime, cold = opened(name), opened(name, prefix_cache=False)
    first = [n * n % 199 for n in range(4000)]
    (answer,), cached, _ = ask(runtime, [first], FEW)
    assert cached == 0
    second = [*first, *answer, *range(40)]
    (said,), cached, _ = ask(runtime, [second], FEW)
    # The answer's last token is in no page yet, and of a page that is not full nothing is kept.
    assert cached == (len(first) + len(answer) - 1) // 16 * 16
    assert [said] == ask(cold, [second], FEW)[0]


@pytest.mark.parametrize("name", MODELS)
def test_a_text_takes_the_bytes_of_its_window_and_no_more(
    name: str, opened: Callable[..., Runtime], break_device: Break
) -> None:
    """As the system counts them, of texts that are in the middle of their answers."""
    devices = watched(break_device)
    texts, length, said = 24, 250, 20
    runtime = opened(name, prefix_cache=False, keep_warm=0, max_batch_tokens=64)
    endless = SamplingParams(max_tokens=4000, ignore_eos=True)
    prompts = [[n, *range(1, length)] for n in range(texts)]
    streams = [runtime.stream(prompt, endless) for prompt in prompts]
    for stream in streams:
        for _ in range(said):
            next(stream)
    spec, resident = runtime.model.spec, devices[0].resident()
    for layout, group, found in zip(runtime.cache.layouts, spec.groups, resident, strict=True):
        assert isinstance(layout, StateLayout) == bool(group.width)
        token = layout.page_bytes // 16
        if not (window := group.reach(16)):  # some have said more meanwhile
            assert found >= texts * length * token
        else:  # a page is held that a window reaches into, and what prompts took beside it
            most = texts * (window + 2 * 16) * token
            assert texts * window * token <= found + CHUNK <= most + 64 * token + 3 * CHUNK
    for stream in streams:
        stream.close()
