"""The bundled model as a GGUF file: it is asked like any other, and answers as it does itself."""

from pathlib import Path

import pytest
from click.testing import CliRunner
from kvrt_cli.main import cli

import kvrt
from kvrt.model.files.resolve import resolve
from tests.model.ggufs import converted_tokenizer, keys_of, pack, tensors_of, write_gguf

PROMPT = "def read_lines(path):\n"
GREEDY = kvrt.SamplingParams(max_tokens=40, temperature=0, logprobs=1)


@pytest.fixture(scope="module")
def bundled() -> Path:
    return resolve("tiny")


def as_gguf(folder: Path, path: Path, kind: str) -> Path:
    keys = keys_of(folder) | converted_tokenizer(folder / "tokenizer.json")
    tensors = {name: pack(tensor, kind) for name, tensor in tensors_of(folder).items()}
    return write_gguf(path, keys, tensors)


def ask(model: Path | str, dtype: str = "auto") -> kvrt.Result:
    with kvrt.Runtime(model, dtype=dtype) as runtime:
        (result,) = runtime.generate([PROMPT], GREEDY)
        return result


def test_a_runtime_answers_from_a_file_as_from_the_folder(bundled: Path, tmp_path: Path) -> None:
    given = ask(as_gguf(bundled, tmp_path / "tiny.gguf", "BF16"))
    want = ask("tiny")
    assert given.completions == want.completions


def test_the_command_line_takes_a_file_or_the_folder_of_one(bundled: Path, tmp_path: Path) -> None:
    path = as_gguf(bundled, tmp_path / "tiny.gguf", "BF16")
    options = ["-n", "20", "--temp", "0"]
    answers = [
        CliRunner().invoke(cli, ["run", str(model), PROMPT, *options]).stdout
        for model in ("tiny", path, tmp_path)
    ]
    assert answers[0] == answers[1] == answers[2] != ""


def test_packed_in_eight_bits_it_is_as_sure_of_its_text_within_a_thousandth(
    bundled: Path, tmp_path: Path
) -> None:
    text = (bundled / "heldout.txt").read_text()[:3000]
    scores = kvrt.SamplingParams(max_tokens=0, prompt_logprobs=0)
    means = []
    for model in ("tiny", as_gguf(bundled, tmp_path / "tiny.gguf", "Q8_0")):
        with kvrt.Runtime(model, dtype="float32") as runtime:
            (result,) = runtime.generate([text], scores)
        assert result.prompt_logprobs is not None
        means.append(
            sum(one.logprob for one in result.prompt_logprobs) / len(result.prompt_logprobs)
        )
    assert means[0] != means[1]
    assert abs(means[0] - means[1]) < 1e-3 * abs(means[0])
