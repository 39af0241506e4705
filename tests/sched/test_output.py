"""How a growing answer is shown: stop strings, and text that is held back."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvrt.engine.output import Output
from kvrt.engine.sampler import Chosen
from kvrt.engine.stops import StopStrings
from kvrt.sampling import SamplingParams


class Letters:
    """A detokenizer whose token ids are code points."""

    def push(self, token_id: int) -> str:
        return chr(token_id)

    def flush(self) -> str:
        return ""


def spoken(text: str, stop: list[str]) -> tuple[list[str], Output]:
    """Feed `text` letter by letter; the pieces that came out, until the answer ended."""
    output = Output(0, SamplingParams(), StopStrings(stop), Letters())
    pieces = []
    for at, letter in enumerate(text):
        ends = "length" if at == len(text) - 1 else None
        delta = output.push(Chosen(ord(letter)), ends=ends, visible=True)
        pieces.append(delta.text)
        if delta.finish_reason is not None:
            break
    return pieces, output


def test_text_ends_before_the_stop_string() -> None:
    pieces, output = spoken("one two three", ["two"])
    assert output.text == "one "
    assert output.finish_reason == "stop"
    assert "".join(pieces) == "one "


def test_what_may_begin_a_stop_string_is_held_back_until_it_is_known() -> None:
    pieces, output = spoken("abac!", ["abad"])
    assert pieces == ["", "", "", "abac", "!"]
    assert output.finish_reason == "length"


def test_the_end_gives_out_what_was_held_back() -> None:
    pieces, output = spoken("xyab", ["abad"])
    assert "".join(pieces) == output.text == "xyab"


@given(
    text=st.text("ab", min_size=1, max_size=30),
    stop=st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_the_answer_is_what_stands_before_the_first_stop_string(text: str, stop: list[str]) -> None:
    pieces, output = spoken(text, stop)
    assert "".join(pieces) == output.text
    # The first moment at which some stop string is complete decides.
    for end in range(1, len(text) + 1):
        found = [at for s in stop if (at := text[:end].find(s)) >= 0]
        if found:
            assert output.text == text[: min(found)]
            assert output.finish_reason == "stop"
            return
    assert output.text == text
    assert output.finish_reason == "length"


def test_tokens_are_counted_even_if_their_text_is_cut() -> None:
    _, output = spoken("one two", ["two"])
    assert len(output.token_ids) == len("one two")


class Pieces:
    """A detokenizer whose tokens are the numbers of pieces of text."""

    def __init__(self, pieces: list[str]) -> None:
        self._pieces = pieces

    def push(self, token_id: int) -> str:
        return self._pieces[token_id]

    def flush(self) -> str:
        return ""


def naive(pieces: list[str], stop: list[str]) -> list[tuple[str, bool]]:
    """What comes out for each piece, and whether it is the end, as plainly as it can be said."""
    came, held = [], ""
    for piece in pieces:
        held += piece
        found = [at for s in stop if (at := held.find(s)) >= 0]
        if found:
            return [*came, (held[: min(found)], True)]
        keep = max((n for s in stop for n in range(1, len(s)) if held.endswith(s[:n])), default=0)
        came.append((held[: len(held) - keep], False))
        held = held[len(held) - keep :]
    return came


@given(
    pieces=st.lists(st.text("ab", max_size=6), min_size=1, max_size=12),
    stop=st.lists(st.text("ab", min_size=1, max_size=9), min_size=1, max_size=6),
)
def test_pieces_come_as_soon_and_end_as_early_as_with_the_plain_search(
    pieces: list[str], stop: list[str]
) -> None:
    output = Output(0, SamplingParams(), StopStrings(stop), Pieces(pieces))
    came = []
    for token in range(len(pieces)):
        delta = output.push(Chosen(token), ends=None, visible=True)
        came.append((delta.text, delta.finish_reason == "stop"))
        if delta.finish_reason is not None:
            break
    assert came == naive(pieces, stop)


def test_the_earliest_stop_string_in_the_text_wins_not_the_first_one_listed() -> None:
    for stop in (["world", "lo"], ["lo", "world"], ["w", "lo wo"], ["lo wo", "w"]):
        output = Output(0, SamplingParams(), StopStrings(stop), Pieces(["hel", "lo world"]))
        output.push(Chosen(0), ends=None, visible=True)
        output.push(Chosen(1), ends=None, visible=True)
        assert output.text == "hel"


LONG = ["ab" * 450 + chr(300 + n) for n in range(64)]
SHORT = [chr(ord("a") + n % 8) + chr(ord("a") + n // 8) + "!" for n in range(64)]


class Incomplete(Letters):
    """It always has a part of a character left."""

    def flush(self) -> str:
        return "\ufffd"


def test_however_an_answer_ends_what_was_held_back_is_said() -> None:
    def begun() -> Output:
        output = Output(0, SamplingParams(), StopStrings(["abc"]), Incomplete())
        assert output.push(Chosen(ord("a")), ends=None, visible=True).text == ""
        return output

    last = begun().push(Chosen(ord("b")), ends="length", visible=True)
    assert (last.text, last.token_ids, last.finish_reason) == ("ab\ufffd", (ord("b"),), "length")
    last = begun().push(Chosen(ord("b")), ends="stop", visible=False)
    assert (last.text, last.token_ids, last.finish_reason) == ("a\ufffd", (ord("b"),), "stop")
    output = begun()
    last = output.finish("abort")
    assert (last.text, last.token_ids, last.finish_reason) == ("a\ufffd", (), "abort")
    assert (output.completion().text, output.completion().token_ids) == ("a\ufffd", (ord("a"),))
    last = begun().fail()
    assert (last.text, last.token_ids, last.finish_reason) == ("a", (), "error")


def test_stop_strings_are_not_looked_for_before_there_are_enough_tokens() -> None:
    output = Output(0, SamplingParams(min_tokens=3), StopStrings(["a"]), Letters())
    deltas = [output.push(Chosen(ord("a")), ends=None, visible=True) for _ in range(3)]
    assert [delta.finish_reason for delta in deltas] == [None, None, "stop"]
    assert output.text == "aa"


@pytest.mark.parametrize("text", ["foo(bar) ", "abababab", "aaaaaaaa"])
@pytest.mark.parametrize("many", [LONG, SHORT], ids=["long", "short"])
def test_many_stop_strings_cost_little_more_than_none(many: list[str], text: str) -> None:
    """Tried one by one, they cost up to sixty times as much."""
    seconds = {}
    for name, stop in (("none", []), ("many", many)):
        output = Output(0, SamplingParams(), StopStrings(stop), Pieces([text]))
        start = time.thread_time()
        for _ in range(1000):
            output.push(Chosen(0), ends=None, visible=True)
        seconds[name] = time.thread_time() - start
    assert seconds["many"] < 10 * seconds["none"]
