"""What is asked, and when: values that a seed decides."""

import itertools
import json
import random
import statistics
from pathlib import Path

import pytest

from kvrt.bench.arrivals import of_trace, offsets
from kvrt.bench.data import BLOCK, Drawn, Lengths, Scale, read_talks
from kvrt.bench.prices import Tokens, costs, read_weights
from kvrt.errors import ConfigError

NEW = Lengths(8, 8)


@pytest.mark.parametrize(
    ("arrivals", "burstiness", "variation"),
    [("steady", 1.0, 0.0), ("poisson", 1.0, 1.0), ("bursty", 0.25, 4.0), ("bursty", 4.0, 0.25)],
)
def test_gaps_have_the_rate_and_the_spread_that_were_asked_for(
    arrivals: str, burstiness: float, variation: float
) -> None:
    found = offsets(arrivals, 5.0, random.Random(3), burstiness)  # type: ignore[arg-type]
    times = list(itertools.islice(found, 20_000))
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert times[0] == 0
    assert min(gaps) >= 0
    mean = statistics.fmean(gaps)
    assert mean == pytest.approx(1 / 5, rel=0.05)
    assert statistics.pvariance(gaps) / mean**2 == pytest.approx(variation, rel=0.1, abs=1e-9)


def test_a_trace_keeps_its_order_and_begins_at_once() -> None:
    assert list(of_trace([7.0, 5.0, 11.0], 2.0)) == [0.0, 1.0, 3.0]


def test_a_seed_decides_texts_which_have_the_lengths_that_were_asked_for() -> None:
    drawn, scale = Drawn(Lengths(40, 80), Lengths(3, 9), turns=2), Scale(2.0, 10.0)
    talks = list(itertools.islice(drawn.talks("1", scale), 50))
    assert talks == list(itertools.islice(drawn.talks("1", scale), 50))
    assert talks[0] != next(drawn.talks("2", scale))
    for talk in talks:
        first, second = (len(turn.text.split()) for turn in talk.turns)
        assert 40 <= 2 * first + 10 <= 80  # what the target adds is counted once
        assert 40 <= 2 * second <= 80
        assert all(3 <= turn.new <= 9 for turn in talk.turns)
        assert talk.system == ""


def test_talks_with_prefixes_begin_with_one_of_so_many() -> None:
    drawn = Drawn(Lengths(8, 8), NEW, prefixes=3, prefix=100)
    talks = list(itertools.islice(drawn.talks("1", Scale()), 60))
    assert len({talk.system for talk in talks}) == 3
    assert {len(talk.system.split()) for talk in talks} == {100}
    assert len({talk.turns[0].text for talk in talks}) > 50


def write(path: Path, *lines: object) -> Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in lines))
    return path


def test_a_file_may_have_texts_conversations_and_lengths(tmp_path: Path) -> None:
    path = write(
        tmp_path / "data.jsonl",
        {"prompt": "a b", "max_tokens": 3, "timestamp": 1500},
        {"messages": [
            {"role": "system", "content": "Be kind."}, {"role": "user", "content": "one"},
            {"role": "assistant", "content": "left out"}, {"role": "user", "content": "two"},
        ]},
        {"input_length": 2 * BLOCK, "output_length": 5, "hash_ids": [1, 2], "timestamp": 0},
        {"input_length": 2 * BLOCK, "output_length": 5, "hash_ids": [1, 3]},
    )  # fmt: skip
    text, talk, first, second = read_talks(path, NEW, "1", Scale())
    assert (text.turns[0].text, text.turns[0].new, text.at) == ("a b", 3, 1.5)
    assert [turn.text for turn in talk.turns] == ["one", "two"]
    assert (talk.system, talk.turns[0].new) == ("Be kind.", 8)
    ours, theirs = (each.turns[0].text.split() for each in (first, second))
    assert len(ours) == len(theirs) == 2 * BLOCK
    assert ours[:BLOCK] == theirs[:BLOCK]
    assert ours[BLOCK:] != theirs[BLOCK:]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "no JSON"),
        ("[]", "no object"),
        ("{}", "says nothing that could be asked"),
        ('{"prompt": "a", "max_tokens": 0}', "max_tokens is not a whole number"),
        ('{"prompt": "a", "timestamp": "x"}', "timestamp is no number"),
        ('{"messages": [{"role": "user"}]}', "messages have a role"),
        ('{"messages": []}', "no message is the user's"),
        ('{"input_length": 5, "hash_ids": ["x"]}', "hash_ids"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"prompt": "fine"}\n' + line + "\n")
    with pytest.raises(ConfigError, match=f"line 2.*{said}"):
        read_talks(path, NEW, "1", Scale())


@pytest.mark.parametrize("text", ["", "x", "0", "5-3", "1-", "-1", "1-2-3", "٣", "9" * 30])
def test_a_length_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is no length"):
        Lengths.read(text)


def test_costs_of_all_tokens_add_up_to_the_total_and_say_how_they_follow() -> None:
    tokens = Tokens(prompt=1000, cached=4000, output=500)
    found = costs(
        seconds=1800, requests=20, tokens=tokens, weights=read_weights("1:0.1:4"), per_hour=2.0,
        per_kwh=0.5, joules=3.6e6,
    )  # fmt: skip
    assert found is not None
    assert found["total"]["value"] == pytest.approx(2.0 / 2 + 0.5)
    assert found["per_1k_requests"]["value"] == pytest.approx(1.5 * 50)
    parts = {"prompt": 1000, "cached": 4000, "output": 500}
    sums = sum(found[f"per_1m_{kind}_tokens"]["value"] * n / 1e6 for kind, n in parts.items())
    assert sums == pytest.approx(1.5)
    for each in found.values():  # what is said is what was computed
        formula = each["formula"].replace("/h", "").replace("/kWh", "")
        value = eval(formula.replace(" s ", " ").replace(" kWh", ""), {"__builtins__": {}})
        assert value == pytest.approx(each["value"], rel=1e-4)


def test_a_price_of_energy_needs_energy() -> None:
    found = costs(
        seconds=1, requests=1, tokens=Tokens(1, 0, 1), weights=(1, 0, 1), per_hour=None,
        per_kwh=0.5, joules=None,
    )  # fmt: skip
    assert found is not None
    assert found["total"]["value"] is None
