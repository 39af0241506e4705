"""Models that lack something, or of which a part is broken: who does not need it is served."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from kvrt.runtime import Runtime
from kvrt.sampling import SamplingParams
from tests.model.checkpoints import VOCAB, make_model, save_model, save_tokenizer

GREEDY = SamplingParams(max_tokens=12, ignore_eos=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tokenizer(save_model(make_model("llama-2"), tmp_path))


def opened(folder: Path) -> Runtime:
    return Runtime(folder, backend="cpu", memory_limit="64MiB")


def test_a_token_whose_row_is_not_finite_ends_the_request_that_has_it_and_no_other(
    folder: Path,
) -> None:
    good = [[3, 4, 5], list(range(40)), [9] * 20]
    with opened(folder) as runtime:
        right = [result.token_ids for result in runtime.generate(good, GREEDY)]
    broken = max(set(range(VOCAB)) - {token for answer in right for token in answer})
    path = folder / "model.safetensors"
    content = load_file(path)
    content["model.embed_tokens.weight"][broken] = torch.nan
    save_file(content, path)
    with opened(folder) as runtime:
        prompts = [[broken, 3], good[0], [*good[1], broken], good[1], good[2], [broken]]
        results = runtime.generate(prompts, GREEDY)
        assert [result.token_ids for result in results if result.error is None] == right
        errors = [str(result.error) for result in results if result.error is not None]
        assert len(errors) == 3
        assert all("not finite" in error for error in errors)


def test_a_model_without_a_tokenizer_continues_token_ids_and_refuses_text(folder: Path) -> None:
    with opened(folder) as runtime:
        right = runtime.generate([[3, 4, 5]], GREEDY)[0].token_ids
    (folder / "tokenizer.json").unlink()
    with opened(folder) as runtime:
        ids, text = runtime.generate([[3, 4, 5], "hello"], GREEDY)
    assert (ids.error, ids.token_ids, ids.text) == (None, right, "")
    assert "no tokenizer.json" in str(text.error)
