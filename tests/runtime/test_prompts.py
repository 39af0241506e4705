"""What may be asked with: token ids as any library keeps them, and nothing that only looks so."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
import transformers

from kvrt.errors import RequestError
from kvrt.model.tokens.tokenizer import Tokenizer
from kvrt.runtime import Runtime
from kvrt.sampling import SamplingParams

GREEDY = SamplingParams(max_tokens=4)
IDS = [5, 6, 7]


@pytest.fixture(scope="module")
def tiny() -> Iterator[Runtime]:
    with Runtime("tiny", backend="cpu", memory_limit="64MiB") as runtime:
        yield runtime


def asked(runtime: Runtime, given: Any) -> list[list[int] | str]:
    """What was understood: the token ids of each prompt, or the error."""
    results = runtime.generate(given, SamplingParams(max_tokens=1))
    return [str(r.error) if r.error else [*r.prompt_token_ids] for r in results]


@pytest.mark.parametrize(
    "given",
    [
        IDS,
        tuple(IDS),
        range(5, 8),
        [np.int64(5), np.int32(6), np.uint8(7)],
        [torch.tensor(5), torch.tensor(6), torch.tensor(7)],
        np.array(IDS),
        np.array(IDS, np.uint16),
        np.array([IDS]),
        torch.tensor(IDS),
        torch.tensor([IDS], dtype=torch.int32),
        [IDS],
        [np.array(IDS)],
        [torch.tensor(IDS)],
        {"input_ids": IDS},
        {"input_ids": torch.tensor([IDS]), "attention_mask": torch.ones(1, 3)},
        {"input_ids": [0, 0, *IDS], "attention_mask": [0, 0, 1, 1, 1]},
        [{"input_ids": np.array(IDS)}],
        pytest.param((ids for ids in [IDS]), id="a generator"),
    ],
    ids=lambda given: repr(given)[:60],
)
def test_token_ids_of_any_library_are_one_prompt(given: object, tiny: Runtime) -> None:
    assert asked(tiny, given) == [IDS]


@pytest.mark.parametrize(
    "given",
    [
        [IDS, [8, 9]],
        [torch.tensor(IDS), np.array([8, 9])],
        {"input_ids": [IDS, [8, 9]]},
        {"input_ids": np.array([IDS, [8, 9, 0]]), "attention_mask": np.array([[1] * 3, [1, 1, 0]])},
        {"input_ids": torch.tensor([IDS, [0, 8, 9]]), "attention_mask": [[1, 1, 1], [0, 1, 1]]},
        [{"input_ids": IDS}, {"input_ids": [[8, 9]]}],
    ],
    ids=lambda given: repr(given)[:60],
)
def test_several_prompts_may_come_together_and_padding_is_no_token(
    given: object, tiny: Runtime
) -> None:
    assert asked(tiny, given) == [IDS, [8, 9]]


def test_tensors_of_one_token_are_prompts_and_not_tokens(tiny: Runtime) -> None:
    assert asked(tiny, [torch.tensor([8]), torch.tensor([9])]) == [[8], [9]]


def test_a_tokenizers_output_is_a_prompt(tiny: Runtime) -> None:
    texts = ["def add(a, b):", "import os"]
    want = [tiny.model.encode(text) for text in texts]
    folder = tiny.model.path
    library = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    library.enable_padding(pad_id=0)
    assert asked(tiny, library.encode(texts[0])) == want[:1]
    assert asked(tiny, library.encode_batch(texts)) == want
    fast = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    fast.pad_token_id = 0
    assert asked(tiny, fast(texts[0])) == want[:1]
    assert asked(tiny, fast(texts)) == want
    for side in ("left", "right"):
        fast.padding_side = side
        assert asked(tiny, fast(texts, padding=True, return_tensors="pt")) == want
    with tiny.stream(fast(texts[1], return_tensors="np"), GREEDY) as stream:
        assert [*stream.result.prompt_token_ids] == want[1]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (None, "is None"),
        (5, "is 5"),
        (b"abc", "is a bytes"),
        ([True, False], "token 0 of the prompt is True"),
        ([5, True], "token 1 of the prompt is True"),
        ([5, 6.0], "token 1 of the prompt is 6.0"),
        ([5, "secret"], "token 1 of the prompt is a str"),
        ([5, None], "token 1 of the prompt is None"),
        ([5, 10**400], "bits long"),
        ([torch.tensor(True), 5], "token 0 of the prompt is a Tensor"),
        ([np.bool_(True), 5], "token 0 of the prompt is a bool"),
        (np.array([True, False]), "token 0 of the prompt is True"),
        (np.array([1.5]), "token 0 of the prompt is 1.5"),
        (torch.tensor(5), "is a Tensor"),
        (np.zeros((1, 1, 1), int), "is a ndarray"),
        ({"role": "user", "content": "secret"}, "is a dict"),
        ({"input_ids": [[5], [6]]}, "2 rows"),
        ({"input_ids": [5, 6], "attention_mask": [1]}, "attention_mask"),
        ({"input_ids": "secret"}, "is a str"),
        ({1, 2}, "is a set"),
        ([], "empty"),
        ([[]], "token 0 of the prompt is a list"),
        ("", "empty"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_no_prompt_is_refused_by_its_type(given: Any, words: str, tiny: Runtime) -> None:
    for call in (tiny.stream, tiny.pin, tiny.unpin):
        with pytest.raises(RequestError) as caught:
            call(given)
        assert words in str(caught.value)
        assert "secret" not in str(caught.value) + caught.value.fix
        assert caught.value.param == "prompt"


def test_a_prompt_longer_than_any_context_is_refused_unread(
    tiny: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = tiny.model.tokenizer
    assert tokenizer is not None
    most = tiny.model.max_model_len * max(
        len(tokenizer.token(n) or "") for n in range(tiny.model.spec.vocab)
    )
    read: list[int] = []
    encode = type(tokenizer)._encode

    def reads(tokenizer: Tokenizer, text: str, **how: Any) -> list[int]:
        read.append(len(text))
        return encode(tokenizer, text, **how)

    monkeypatch.setattr(Tokenizer, "_encode", reads)
    with pytest.raises(RequestError, match="tokens; the context"):
        tiny.stream("x" * most)
    assert read == [most]
    parts = [{"type": "text", "text": "x" * most}]
    for prompt in (
        "x" * (most + 1),
        [{"role": "user", "content": "x" * most}, {"role": "user", "content": "x"}],
        [{"role": "user", "content": parts}, {"role": "user", "content": "x"}],
    ):
        with pytest.raises(RequestError, match=f"the prompt has {most + 1} characters"):
            tiny.stream(prompt)
    assert len(read) == 1
