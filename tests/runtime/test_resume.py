"""An answer that was begun by one runtime goes on in another as if nothing had happened."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from kvrt.errors import RequestError
from kvrt.outputs import Delta
from kvrt.runtime import Runtime
from kvrt.sampling import SamplingParams
from kvrt.structured.constraint import Constraint
from tests.tiers.elsewhere import served, until

PROMPT = "def read_lines(path):\n    with open(path) as file:\n"
SCHEMA = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 12},
          "count": {"type": "integer"}}, "required": ["name", "count"]}  # fmt: skip
WAYS = {
    "greedy": SamplingParams(max_tokens=40, ignore_eos=True),
    "seeded": SamplingParams(max_tokens=40, temperature=0.9, top_p=0.9, seed=11, ignore_eos=True),
    "unseeded": SamplingParams(max_tokens=40, temperature=1.0, ignore_eos=True),
    "penalties": SamplingParams(
        max_tokens=40, temperature=0.8, seed=3, repetition_penalty=1.3, presence_penalty=0.4,
        frequency_penalty=0.3, ignore_eos=True,
    ),
    "stops": SamplingParams(max_tokens=60, temperature=0.7, seed=5, stop=["return", "\n\n"]),
    "least": SamplingParams(max_tokens=40, temperature=0.9, seed=2, min_tokens=20),
    "guesses": SamplingParams(max_tokens=40, temperature=0.5, seed=4, speculate=4, ignore_eos=True),
    "schema": SamplingParams(
        max_tokens=60, temperature=0.9, seed=8, constraint=Constraint.json_schema(SCHEMA)
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Runtime, Runtime]]:
    """Two that share their pages."""
    with served(key=b"") as address:
        shared = {"backend": "cpu", "memory_limit": "256MiB", "remote_store": str(address)}
        with Runtime("tiny", **shared) as one, Runtime("tiny", **shared) as two:  # type: ignore[arg-type]
            yield one, two


@pytest.mark.promise("P44")
@pytest.mark.parametrize("way", WAYS)
def test_it_goes_on_behind_any_token_as_it_would_have_where_it_began(
    pair: tuple[Runtime, Runtime], way: str
) -> None:
    one, two = pair
    params = WAYS[way]
    stream = one.stream(PROMPT, params)
    deltas = list(stream)
    whole = stream.result
    params = replace(params, seed=stream.seed)
    said: list[int] = []
    text = ""
    for delta in deltas[:-1]:
        said += delta.token_ids
        text += delta.text
        if len(said) % 7 > 1:
            continue
        with two.stream(PROMPT, params, said=said) as again:
            pieces = list(again)
        assert pieces[0] == Delta(0, text, tuple(said), again=True)
        assert not any(piece.again for piece in pieces[1:])
        assert again.result.token_ids == whole.token_ids
        assert again.result.text == whole.text
        assert again.result.finish_reason == whole.finish_reason
        assert again.result.usage.completion_tokens == len(whole.token_ids)


def test_what_was_computed_there_is_not_computed_again(pair: tuple[Runtime, Runtime]) -> None:
    one, two = pair
    params = SamplingParams(max_tokens=100, ignore_eos=True)
    prompt = "x = " + PROMPT
    (whole,) = one.generate(prompt, params)
    remote = two._worker.engine.memory.offload.stores.remote  # type: ignore[union-attr]
    assert remote is not None
    before = two.stats().offload
    pages = (len(whole.prompt_token_ids) + 90) // 16
    names = one._worker.engine.memory.reuse.index  # type: ignore[union-attr]
    assert until(lambda: remote.stats().pages >= len(names))
    (again,) = [two.stream(prompt, params, said=whole.token_ids[:90]).wait()]
    assert again.token_ids == whole.token_ids
    after = two.stats().offload
    assert before is not None
    assert after is not None
    assert after.fetched_pages - before.fetched_pages >= pages - 1


@pytest.mark.parametrize(
    ("said", "options", "message"),
    [
        ([-1], {}, "said"),
        ([10**6], {}, "token ids are from 0 to"),
        (["a"], {}, "said"),
        ([1, 2, 3, 4], {"max_tokens": 4}, "no room for another"),
        ([1], {"n": 2}, "only one completion"),
        ([1], {"beam_width": 2}, "only one completion"),
        ([1], {"logprobs": 0}, "only one completion"),
    ],
)
def test_what_cannot_have_been_said_is_refused(
    pair: tuple[Runtime, Runtime], said: list[object], options: dict[str, object], message: str
) -> None:
    params = SamplingParams(**{"max_tokens": 8, **options})  # type: ignore[arg-type]
    with pytest.raises(RequestError, match=message):
        pair[0].stream(PROMPT, params, said=said)  # type: ignore[arg-type]


def test_an_answer_that_had_ended_is_an_error_of_its_own(pair: tuple[Runtime, Runtime]) -> None:
    params = SamplingParams(max_tokens=60, stop=["return"])
    tokens = pair[0].model.encode("x\n    return 1\n", special=False)
    result = pair[0].stream(PROMPT, params, said=tokens).wait()
    assert isinstance(result.error, RequestError)
    assert "has ended there already" in str(result.error)
    assert pair[0].generate(PROMPT, params)[0].error is None
