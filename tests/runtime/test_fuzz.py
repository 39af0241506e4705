"""Every accepted value of every sampling parameter, alone and in pairs, with prompts of all kinds.

Bounds come from `kvrt.sampling.PARAMS`, so that a new parameter is drawn as soon as it has a check.
"""

import json
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import torch

from kvrt import checks
from kvrt.checks import Check
from kvrt.drafting import gain
from kvrt.errors import CapacityError, RequestError
from kvrt.outputs import Result
from kvrt.runtime import Runtime
from kvrt.sampling import MAX_BEAMS, PARAMS, SamplingParams
from kvrt.structured.constraint import Constraint
from tests.model.drafters import noisy_copy

from .conftest import pages_in_use, until

ROOM = 48
AT_ONCE = 12
NEIGHBOURS = [
    ("def add(a, b):", SamplingParams(max_tokens=16, ignore_eos=True)),
    ("import os", SamplingParams(max_tokens=12, n=2, temperature=0.9, seed=5, ignore_eos=True)),
]
RUNTIMES: dict[str, dict[str, Any]] = {
    "plain": {},
    "speculating": {"speculate": "ngram:6", "max_batch_tokens": 64},
    "crowded": {"max_running": 6, "page_size": 4, "max_batch_tokens": 16},
    "drafting": {"max_running": 6, "page_size": 4, "max_batch_tokens": 16, "draft_model": 0.1},
}
"""A model that drafts is the one that is asked, with so much noise."""
TEXTS = ("x", "def f():\n    return", "a = 1\nb = 2\n" * 3, "é", "\0", " \n\t ", "漢字😀")
LETTERS = "ab \n():=é"
CONSTRAINTS = (
    Constraint.json_object(),
    Constraint.json_schema({"type": "array", "items": {"type": "integer"}}),
    Constraint.regex(r"[a-c]{1,3}"),
    Constraint.choice(["yes", "no", "漢字😀"]),
    Constraint.grammar('start: "x"+'),
)


def bounds(low: float, high: float, above: bool, rng: random.Random) -> float:
    """A number at a bound, just within, near zero, or anywhere between."""
    inner = math.nextafter(low, math.inf), math.nextafter(high, -math.inf)
    edges = [*inner, high, *([] if above else [low])]
    small = [x for x in (0.0, 5e-324, 1e-45, 1e-38, 1e-9, 1e-5, 1e-3, 1.0) if low < x <= high]
    return rng.choice([*edges, *small, rng.uniform(*inner), rng.uniform(*inner)])


def draw(check: Check, rng: random.Random) -> Any:
    """A value that a check takes."""
    match check:
        case checks.Maybe(inner):
            return rng.choice([None, *(draw(inner, rng) for _ in range(4))])
        case checks.Whole(low, high):
            small = rng.randint(low, min(high, low + 8))
            number = rng.choice([low, low + 1, small, small, high - 1, high])
            return rng.choice([int, np.uint64 if low >= 0 else int])(number)
        case checks.Number(low, high, above):
            return bounds(low, high, above, rng)
        case checks.Flag():
            return rng.random() < 0.5
        case checks.Texts(count, most):
            sizes = [rng.choice([1, 2, 3, most]) for _ in range(rng.choice([0, 1, 2, count]))]
            return ["".join(rng.choices(LETTERS, k=size)) for size in sizes]
        case checks.Wholes(count, low, high):
            length = rng.choice([0, 1, 2, count])
            return [rng.choice([low, high, rng.randrange(low, 4096)]) for _ in range(length)]
        case checks.Biases(count, low, high):
            length = rng.choice([0, 1, 2, count])
            return {rng.randrange(4096): bounds(low, high, False, rng) for _ in range(length)}
        case checks.Of((kind,)) if kind is Constraint:
            return rng.choice(CONSTRAINTS)
    raise AssertionError(f"no values are known for {check}: draw some here")


def draw_params(rng: random.Random) -> SamplingParams | None:
    """One or two parameters, the others as usual; None: they do not go together."""
    names = rng.sample(sorted(PARAMS), rng.choice([1, 2, 2, 2]))
    given = {"max_tokens": 4, "seed": rng.choice([None, 3])}
    if rng.random() < 0.5:
        given["temperature"] = 1.0  # else most of them are not looked at
    given |= {name: draw(PARAMS[name], rng) for name in names}
    try:
        return SamplingParams(**given)
    except RequestError:
        return None


def draw_prompt(rng: random.Random, vocab: int) -> Any:
    ids = [rng.choice([0, vocab - 1, rng.randrange(vocab)]) for _ in range(rng.randint(1, 12))]
    if rng.random() < 0.5:
        ids = ids[:2] * 6  # such as guesses are made from
    kinds: list[Callable[[], Any]] = [
        lambda: rng.choice(TEXTS),
        lambda: ids,
        lambda: np.array(ids, rng.choice([np.int64, np.uint16])),
        lambda: torch.tensor(ids),
        lambda: [np.int32(i) for i in ids],
        lambda: {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids))},
    ]
    return rng.choice(kinds)()


def said(result: Result) -> object:
    return result.error, [(c.text, c.token_ids, c.finish_reason) for c in result.completions]


@pytest.fixture(scope="module", params=RUNTIMES)
def fuzzed(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Runtime, list[object]]]:
    """A runtime, and what the neighbours say on it when they are alone."""
    options = dict(RUNTIMES[request.param])
    if noise := options.get("draft_model"):
        options["draft_model"] = noisy_copy(tmp_path_factory.mktemp("drafter") / "model", noise)
    with (
        pytest.MonkeyPatch.context() as patch,
        Runtime(
            "tiny", backend="cpu", memory_limit="64MiB", max_model_len=ROOM, debug=True, **options
        ) as runtime,
    ):
        patch.setattr(gain, "MARGIN", 0.0)  # drafts are made whatever they cost
        yield runtime, [said(runtime.stream(*neighbour).wait()) for neighbour in NEIGHBOURS]


def fuzz(runtime: Runtime, alone: list[object], draws: int, rng: random.Random) -> None:
    while draws > 0:
        wishes = [params for _ in range(AT_ONCE) if (params := draw_params(rng)) is not None]
        draws -= len(wishes)
        asked = [(draw_prompt(rng, runtime.model.spec.vocab), params) for params in wishes]
        neighbours = [runtime.stream(*NEIGHBOURS[0])]
        streams = [runtime.stream(*each) for each in asked]
        neighbours.append(runtime.stream(*NEIGHBOURS[1]))
        for stream, each in zip(streams, asked, strict=True):
            result = stream.wait()
            if isinstance(result.error, CapacityError) and runtime.config.max_running < MAX_BEAMS:
                continue  # it wants more places than there are pages
            assert result.error is None, each
            assert {c.finish_reason for c in result.completions} <= {"stop", "length"}, each
            json.dumps(asdict(result), allow_nan=False)
        assert [said(stream.wait()) for stream in neighbours] == alone, asked
    until(lambda: not runtime.busy and not pages_in_use(runtime))
    told = runtime.stats().speculation
    assert runtime.config.draft_model is None or 0 < told.accepted_tokens < told.drafted_tokens
    runtime.cache.check_integrity()


@pytest.mark.parametrize("name", PARAMS)
def test_values_are_known_for_every_parameter(name: str) -> None:
    rng = random.Random(name)
    for _ in range(50):
        PARAMS[name](draw(PARAMS[name], rng))


@pytest.mark.promise("P27")
def test_no_request_that_is_accepted_ends_the_engine_or_changes_a_neighbour(
    fuzzed: tuple[Runtime, list[object]],
) -> None:
    fuzz(*fuzzed, draws=110, rng=random.Random(1))


@pytest.mark.extra
@pytest.mark.promise("P27")
@pytest.mark.parametrize("seed", range(2, 6))
def test_thousands_of_such_requests(fuzzed: tuple[Runtime, list[object]], seed: int) -> None:
    fuzz(*fuzzed, draws=450, rng=random.Random(seed))
