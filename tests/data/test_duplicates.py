"""What is left out says what something before it says, and nothing else is."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvrt import Embedder
from kvrt.data.duplicates import Duplicate, duplicates
from kvrt.data.meaning import Meaning
from kvrt.data.reading import Reader
from kvrt.data.rows import Part, Row
from kvrt.data.shingles import Bands, bands_for, jaccard, shingles, signature
from tests.embedding.encoders import make_encoder

from .sets import WORDS, rows, written


def deduped(
    path: Path, near: float | None, part: Part = "all"
) -> tuple[list[Row], list[Duplicate]]:
    kept, gone = [], []
    with Reader(path) as reader, duplicates(path, part, near) as found:
        for row in reader:
            duplicate = found.find(row)
            if duplicate is None:
                kept.append(row)
            else:
                gone.append(duplicate)
    return kept, gone


@settings(max_examples=40)
@given(lines=st.lists(rows, max_size=25), near=st.sampled_from([None, 0.5, 0.8, 1.0]))
def test_what_stays_is_in_order_has_no_duplicates_and_stays_again(
    tmp_path_factory: pytest.TempPathFactory, lines: Any, near: float | None
) -> None:
    folder = tmp_path_factory.mktemp("sets")
    path = written(folder / "set.jsonl", lines)
    kept, gone = deduped(path, near)
    numbers = [row.number for row in kept]
    assert numbers == sorted(numbers)
    assert sorted([*numbers, *(each.line for each in gone)]) == list(range(1, len(lines) + 1))
    said = [(row.prompt, row.answer) for row in kept]
    assert len(set(said)) == len(said)
    by_number = {row.number: row for row in kept}
    with Reader(path) as reader:
        texts = {row.number: shingles(row.text()) for row in reader}
    for each in gone:
        assert each.of in by_number
        assert each.of < each.line, "the first one stays"
        if each.why == "near":
            assert near is not None
            assert jaccard(texts[each.line], texts[each.of]) == each.similarity >= near
    again = written(folder / "again.jsonl", [row.line.decode() for row in kept])
    rows_again, gone_again = deduped(again, near)
    assert [row.line for row in rows_again] == [row.line for row in kept]
    assert not gone_again


def test_rows_are_the_same_only_if_the_same_one_says_the_same(tmp_path: Path) -> None:
    lines = [
        {"prompt": "a", "completion": "b"}, {"completion": "b", "prompt": "a", "id": 7},
        {"prompt": "ab", "completion": ""}, {"prompt": "a"}, {"text": "a"},
        {"messages": [{"role": "user", "content": "a"}]},
        {"messages": [{"role": "system", "content": "a"}]}, {"prompt": "A", "completion": "b"},
    ]  # fmt: skip
    kept, gone = deduped(written(tmp_path / "set.jsonl", lines), None)
    assert gone == [Duplicate(2, 1, "same", 1.0)]
    assert len(kept) == 7
    _, gone = deduped(tmp_path / "set.jsonl", None, "answer")
    assert [each.line for each in gone] == [2, 6, 7, 8], "no answer is no answer"


def changed(random: random.Random, words: Sequence[str], part: float) -> list[str]:
    return [random.choice(WORDS) + "x" if random.random() < part else word for word in words]


def test_nearly_all_that_are_near_enough_are_found_and_none_that_is_not(tmp_path: Path) -> None:
    draw = random.Random(3)
    lines, originals = [], 150
    for number in range(originals):
        words = [f"{draw.choice(WORDS)}{draw.randrange(50)}" for _ in range(120)]
        lines += [" ".join(words), " ".join(changed(draw, words, 0.02)) + f" {number}"]
    draw.shuffle(lines)
    path = written(tmp_path / "set.jsonl", [{"text": line} for line in lines])
    _, gone = deduped(path, 0.7)
    sets = [shingles(line) for line in lines]
    true = {
        late
        for late in range(len(lines))
        if any(jaccard(sets[late], sets[early]) >= 0.7 for early in range(late))
    }
    found = {each.line - 1 for each in gone}
    assert found <= true
    assert len(true) > 50
    assert len(found) >= 0.98 * len(true)


def test_signatures_agree_as_often_as_sets_have_members_in_common() -> None:
    for common, own in ((900, 50), (500, 250), (100, 450)):
        one = np.arange(common + own, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        other = np.arange(own, 2 * own + common, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        true = jaccard(np.sort(one), np.sort(other))
        agree = float(np.mean(signature(np.sort(one)) == signature(np.sort(other))))
        assert abs(agree - true) < 4 * (true * (1 - true) / 128) ** 0.5 + 0.01


@pytest.mark.parametrize("near", [0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 1.0])
def test_bands_find_what_is_just_near_enough(near: float) -> None:
    bands = bands_for(near)
    assert bands.count * bands.size <= 128
    assert bands.found(near) >= 0.995 or bands == Bands(128, 1)
    assert len(set(bands.keys(shingles("some words that are said here")))) == bands.count


def test_words_are_what_counts_and_texts_without_words_are_told_apart() -> None:
    assert (shingles("The sky, is BLUE; today!") == shingles("the sky is blue today")).all()
    assert jaccard(shingles("天空为什么是蓝色的"), shingles("天空为什么是红色的")) < 1
    assert len(shingles("天空为什么是蓝色的")) > 1
    assert jaccard(shingles("+ -"), shingles("* /")) == 0
    assert len(shingles("  ")) == 0
    assert jaccard(shingles(""), shingles(" ")) == 1


def test_rows_that_mean_the_same_are_told_by_their_vectors(tmp_path: Path) -> None:
    make_encoder("bert", tmp_path / "encoder")
    texts = ["w1 w2 w3 w4 w5 w6", "w1 w2 w3 w4 w5 w6 w6", "w40 w41", " ", "", "w40 w41"]
    path = written(tmp_path / "set.jsonl", [{"text": text} for text in texts])
    with Embedder(tmp_path / "encoder", backend="cpu") as embedder:
        vectors = embedder.embed(texts[:3]).vectors
        near, far = (float(vectors[0] @ vectors[n]) for n in (1, 2))
        assert far < near
        meaning = Meaning(embedder, "all", (near + far) / 2)
        with Reader(path) as reader, duplicates(path, "all", None, meaning) as found:
            gone = [each for row in reader if (each := found.find(row)) is not None]
        meaning.close()
    assert [(each.line, each.of, each.why) for each in gone] == [(2, 1, "meaning"), (6, 3, "same")]
    assert gone[0].similarity == pytest.approx(near, abs=1e-5)
