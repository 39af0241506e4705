"""An expression says of rows what Python would, and is never run."""

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvrt.data.expressions import expression
from kvrt.data.rows import Row, read_row
from kvrt.errors import RequestError


def row(**scores: Any) -> Row:
    return read_row(json.dumps({"text": "a", "scores": scores}).encode(), number=3)


ROW = row(chars=20, language="en", perplexity=None, good=True)


@pytest.mark.parametrize(
    ("where", "stays"),
    [
        ("chars > 19", True), ("chars>20", False), ("chars >= 2e1", True), ("chars < -1.5", False),
        ('language == "en"', True), ("language != 'en'", False), ('language in ("de", "en")', True),
        ('language not in ("de", "en")', False), ("perplexity < 5", False), ("5 < chars", True),
        ("perplexity == null", True), ("perplexity != null", False), ("good == true", True),
        ("not good == true", False), ("not (perplexity >= 5)", True), ("perplexity > 5", False),
        ("chars > 100 or chars > 10 and language == 'en'", True),
        ("(chars > 100 or chars > 10) and language == 'de'", False),
        ("not chars > 100 and not chars < 5", True), ("shape == 'text' and line == 3", True),
        ("has_answer == true", True), (r'"a\"b" == "a\"b"', True), ("'é' == 'é'", True),
    ],
)  # fmt: skip
def test_it_says_which_rows_stay(where: str, stays: bool) -> None:
    assert expression(where)(ROW) is stays


@pytest.mark.parametrize(
    ("where", "place"),
    [
        ("", 1), ("chars", 6), ("chars >", 8), ("chars > 1 chars", 11), ("(chars > 1", 11),
        ("chars = 1", 7), ("and", 1), ("chars in 5", 10), ("chars in (5", 12), ("chars not 5", 11),
        ("__import__('os')", 11), ("chars > 1; 2", 10), ("'a", 1), ("chars > 1 and", 14),
        ("(" * 101 + "1 == 1" + ")" * 101, 101),
    ],
)  # fmt: skip
def test_what_is_wrong_with_it_is_said_with_its_place(where: str, place: int) -> None:
    with pytest.raises(RequestError, match=f"character {place}:"):
        expression(where)


def test_a_row_without_a_score_that_is_named_is_no_silent_no() -> None:
    with pytest.raises(RequestError, match="line 3 has no score chras; it has chars") as caught:
        expression("chras > 5")(row(chars=1))
    assert "kvrt data score" in caught.value.fix
    with pytest.raises(RequestError, match="a number and a text"):
        expression("chars < 'a'")(ROW)


sign = st.sampled_from(["==", "!=", "<", "<=", ">", ">="])
value = st.sampled_from(["a", "b"]) | st.integers(-3, 3).map(str)
tests = st.recursive(
    st.tuples(value, sign, value).map(" ".join),
    lambda inner: st.one_of(
        inner.map("not ({})".format),
        st.lists(inner, min_size=2, max_size=3).map(" or ".join),
        st.lists(inner.map("({})".format), min_size=2, max_size=3).map(" and ".join),
    ),
    max_leaves=8,
)


@given(tests, st.integers(-3, 3), st.integers(-3, 3))
def test_it_binds_as_python_does(where: str, a: int, b: int) -> None:
    assert expression(where)(row(a=a, b=b)) == bool(eval(where, {"a": a, "b": b}))


@given(st.text(st.sampled_from("ab <>=()'\"\\,1.e-andornotin"), max_size=30))
def test_any_text_is_an_expression_or_is_refused_as_one(where: str) -> None:
    with suppress(RequestError):
        assert expression(where)(row(a=1, b="x", an="y")) in (True, False)
