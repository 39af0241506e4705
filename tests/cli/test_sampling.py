"""Which sampling parameters a request gets, of what its user and its model's author want."""

from typing import Any

import pytest
from kvrt_cli.options.sampling import PLAIN_MAX_TOKENS, resolve

from kvrt.model.generation import GenerationDefaults

SILENT = GenerationDefaults()
AUTHOR = GenerationDefaults(
    sample=True, temperature=0.7, top_k=20, top_p=0.8, min_p=0.1, repetition_penalty=1.1
)


@pytest.mark.parametrize(
    ("wishes", "chat", "limit"),
    [({}, False, PLAIN_MAX_TOKENS), ({}, True, None), ({"max_tokens": 7}, False, 7)],
)
def test_a_plain_text_ends_after_a_while_and_a_conversation_by_itself(
    wishes: dict[str, Any], chat: bool, limit: int | None
) -> None:
    assert resolve(wishes, SILENT, chat=chat).max_tokens == limit


def test_what_the_user_wants_goes_before_what_the_author_recommends() -> None:
    resolved = resolve({"temperature": 0.2, "top_k": 5}, AUTHOR, chat=True)
    assert (resolved.temperature, resolved.top_k) == (0.2, 5)
    assert (resolved.top_p, resolved.min_p, resolved.repetition_penalty) == (0.8, 0.1, 1.1)


def test_an_author_who_does_not_draw_is_taken_at_the_penalty_alone() -> None:
    resolved = resolve({}, GenerationDefaults(temperature=0.7, repetition_penalty=1.1), chat=True)
    assert resolved.greedy
    assert resolved.repetition_penalty == 1.1


def test_who_names_how_to_draw_draws() -> None:
    assert resolve({"top_p": 0.9}, SILENT, chat=True).temperature == 1.0
    assert resolve({"top_p": 0.9, "temperature": 0}, SILENT, chat=True).greedy


def test_beams_take_nothing_that_the_author_recommends() -> None:
    resolved = resolve({"beam_width": 2}, AUTHOR, chat=False)
    assert resolved.greedy
    assert resolved.repetition_penalty == 1.0
    assert resolved.max_tokens == PLAIN_MAX_TOKENS
