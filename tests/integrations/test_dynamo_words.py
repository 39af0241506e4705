"""What Dynamo asks for becomes kvrt's sampling, or is refused by name."""

from typing import Any

import pytest

from kvrt.errors import RequestError
from kvrt.integrations.dynamo.words import chunk_of, params_of
from kvrt.outputs import Delta, TokenLogprobs
from kvrt.sampling import SamplingParams


def test_a_request_with_nothing_said_is_as_in_openais_api() -> None:
    empty = {
        "token_ids": [1],
        "sampling_options": {"temperature": None, "n": 1, "guided_decoding": None, "best_of": None},
        "stop_conditions": {"max_tokens": None, "stop": ["x"], "ignore_eos": False},
        "output_options": {},
    }
    assert params_of(empty) == SamplingParams(temperature=1.0)
    assert params_of({"token_ids": [1]}) == SamplingParams(temperature=1.0)


def test_what_is_said_is_done() -> None:
    asked = {
        "sampling_options": {"temperature": 0.0, "top_k": 7, "seed": 3, "presence_penalty": 0.5},
        "stop_conditions": {
            "max_tokens": 9, "ignore_eos": True, "stop_token_ids": [5],
            "stop_token_ids_hidden": [6, 7],
        },
        "output_options": {"logprobs": 2},
    }  # fmt: skip
    assert params_of(asked) == SamplingParams(
        temperature=0.0, top_k=7, seed=3, presence_penalty=0.5, max_tokens=9, ignore_eos=True,
        stop_token_ids=(5, 6, 7), logprobs=2,
    )  # fmt: skip
    assert params_of({"sampling_options": {"top_k": -1}}).top_k == 0


@pytest.mark.parametrize(
    ("part", "asked", "name"),
    [
        ("sampling_options", {"n": 2}, "n"),
        ("sampling_options", {"guided_decoding": {"regex": "a+"}}, "guided_decoding"),
        ("sampling_options", {"use_beam_search": True}, "use_beam_search"),
        ("stop_conditions", {"some_new_rule": 1}, "some_new_rule"),
        ("output_options", {"prompt_logprobs": 1}, "prompt_logprobs"),
        ("sampling_options", {"temperature": -1.0}, "temperature"),
        ("stop_conditions", {"max_tokens": 0}, "max_tokens"),
    ],
)
def test_what_is_not_offered_or_cannot_be_is_refused_by_its_name(
    part: str, asked: dict[str, Any], name: str
) -> None:
    with pytest.raises(RequestError, match=name) as caught:
        params_of({part: asked})
    assert caught.value.param == name


def test_chunks_have_dynamos_fields() -> None:
    logprobs = (TokenLogprobs(7, -0.5, ((7, -0.5), (9, -1.5))),)
    middle = chunk_of(Delta(0, "ab", (7,), logprobs=logprobs), 5, 1, 4, lambda token: f"<{token}>")
    assert middle == {
        "token_ids": [7], "index": 0, "log_probs": [-0.5],
        "top_logprobs": [[
            {"rank": 1, "token_id": 7, "token": "<7>", "logprob": -0.5},
            {"rank": 2, "token_id": 9, "token": "<9>", "logprob": -1.5},
        ]],
    }  # fmt: skip
    last = chunk_of(Delta(0, "", (), "length"), 5, 3, 4, str)
    assert last == {
        "token_ids": [], "index": 0, "finish_reason": "length",
        "completion_usage": {
            "prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8,
            "prompt_tokens_details": {"cached_tokens": 4},
        },
    }  # fmt: skip


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [("stop", "stop"), ("length", "length"), ("abort", "cancelled"), ("capacity", "error")],
)
def test_an_end_has_dynamos_word(ours: Any, theirs: str) -> None:
    assert chunk_of(Delta(0, "", (), ours), 1, 1, 0, str)["finish_reason"] == theirs
