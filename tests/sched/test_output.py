"""How a growing answer is shown: stop strings, and text that is held back."""

from hypothesis import given
from hypothesis import strategies as st

from kvrt.request import Output
from kvrt.sampler import Chosen
from kvrt.sampling import SamplingParams


class Letters:
    """A detokenizer whose token ids are code points."""

    def push(self, token_id: int) -> str:
        return chr(token_id)

    def flush(self) -> str:
        return ""


def spoken(text: str, stop: list[str]) -> tuple[list[str], Output]:
    """Feed `text` letter by letter; the pieces that came out, until the answer ended."""
    output = Output(0, SamplingParams(stop=stop), Letters())
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
