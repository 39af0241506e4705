"""Files and folders that are something else than a checkpoint: the error says what they are."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from kvrt.errors import ModelError
from kvrt.model.files.resolve import resolve
from kvrt.model.loader import load_model
from kvrt.spi import Device
from tests.model.checkpoints import make_model, save_model, save_tokenizer
from tests.model.ggufs import write_gguf

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d4d\nsize 12345\n"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    return save_tokenizer(save_model(make_model("llama-2"), folder, shard="100KB"))


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Path:
    return shutil.copytree(good, tmp_path / "model")


def error_of(model: Path | str, device: Device) -> ModelError:
    with pytest.raises(ModelError) as caught:
        load_model(model, device)
    assert caught.value.fix
    return caught.value


# --- files --------------------------------------------------------------------------------------

FILES = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
         "model.safetensors.index.json", "model-00001-of-00003.safetensors"]  # fmt: skip
CONTENTS = {
    "Git LFS": POINTER,
    "GGUF": b"GGUF\x03\0\0\0" + bytes(100),
    "web page": b"<!doctype HTML><html lang=en>",
    "zip": b"PK\x03\x04" + bytes(100),
}


@pytest.mark.parametrize("what", CONTENTS)
@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_something_else_is_named_with_what_it_is(
    folder: Path, name: str, what: str, cpu: Device
) -> None:
    (path,) = folder.glob(name.replace("00003", "0*"))
    path.write_bytes(CONTENTS[what])
    message = str(error_of(folder, cpu))
    assert str(path) in message
    assert what in message


def test_a_file_given_in_place_of_its_folder_says_what_it_is(tmp_path: Path, cpu: Device) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(POINTER)
    assert "Git LFS" in str(error_of(path, cpu))
    path.write_bytes(b"something")
    assert "is a file, not the folder" in str(error_of(path, cpu))


# --- folders ------------------------------------------------------------------------------------


def adapter(folder: Path) -> str:
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    (folder / "adapter_model.safetensors").write_bytes(b"")
    return "is an adapter"


def pickle(folder: Path) -> str:
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02")
    return "is a pickle"


@pytest.mark.parametrize("with_config", [False, True])
@pytest.mark.parametrize("fill", [adapter, pickle])
def test_a_folder_of_something_else_says_what_it_has(
    folder: Path, fill: Callable[[Path], str], with_config: bool, cpu: Device
) -> None:
    config = (folder / "config.json").read_text()
    shutil.rmtree(folder)
    folder.mkdir()
    if with_config:
        (folder / "config.json").write_text(config)
    expected = fill(folder)
    assert expected in str(error_of(folder, cpu))


def test_a_model_with_an_adapter_beside_it_is_a_model(folder: Path, cpu: Device) -> None:
    adapter(folder)
    load_model(folder, cpu)


@pytest.mark.parametrize("refs", [COMMIT, "none such", None])
def test_a_folder_of_the_hubs_cache_names_its_snapshot(
    good: Path, tmp_path: Path, refs: str | None, cpu: Device
) -> None:
    repository = tmp_path / "models--someone--model"
    snapshot = repository / "snapshots" / COMMIT
    shutil.copytree(good, snapshot)
    (repository / "snapshots" / "f").mkdir()
    if refs is not None:
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(refs)
    assert str(snapshot) in error_of(repository, cpu).fix
    assert str(snapshot) in error_of(snapshot.parent, cpu).fix
    load_model(snapshot, cpu)


def test_of_several_snapshots_the_one_that_main_means_is_named(
    good: Path, tmp_path: Path, cpu: Device
) -> None:
    repository = tmp_path / "models--someone--model"
    others = [f"{digit}{COMMIT[1:]}" for digit in "1f"]
    for commit in (COMMIT, *others):
        shutil.copytree(good, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    for commit in (COMMIT, *others):
        (repository / "refs" / "main").write_text(f"{commit}\n")
        assert str(repository / "snapshots" / commit) in error_of(repository, cpu).fix


@pytest.mark.parametrize("refs", [COMMIT, None])
@pytest.mark.parametrize("place", [f"snapshots/{COMMIT}", "model-GGUF"])
def test_a_folder_with_gguf_models_in_folders_names_one(
    tmp_path: Path, refs: str | None, place: str, cpu: Device
) -> None:
    (tmp_path / place).mkdir(parents=True)
    path = tmp_path / place / "model-Q8_0.gguf"
    write_gguf(path, {"general.architecture": "llama"})
    if refs is not None:
        (tmp_path / "refs").mkdir()
        (tmp_path / "refs" / "main").write_text(refs)
    assert str(path) in error_of(tmp_path, cpu).fix


def test_the_folder_of_a_training_names_the_checkpoint_in_it(
    good: Path, tmp_path: Path, cpu: Device
) -> None:
    for name in ("training_args.bin", "optimizer.pt", "rng_state_0.pth"):
        (tmp_path / name).write_bytes(b"\x80\x02")
    assert "config.json" in str(error_of(tmp_path, cpu)), "there is no pickle of weights"
    shutil.copytree(good, tmp_path / "checkpoint-500")
    assert str(tmp_path / "checkpoint-500") in error_of(tmp_path, cpu).fix


def test_a_folder_without_anything_says_what_is_missing(tmp_path: Path, cpu: Device) -> None:
    assert "config.json" in str(error_of(tmp_path, cpu))


# --- names that are none ------------------------------------------------------------------------


@pytest.mark.promise("P41")
@pytest.mark.parametrize(
    "name",
    [
        "Please write me a poem about the sea",
        "secret " * 1000,
        "secret" * 100,
        "secret/" * 1000,
        "/" + "secret" * 60,
        "~nobody/" + "secret" * 60,
        "secret\0",
        "two\nlines",
    ],
)
def test_what_may_be_a_prompt_is_no_model_and_is_not_quoted(name: str) -> None:
    with pytest.raises(ModelError, match=f"of {len(name)} characters") as caught:
        resolve(name)
    assert not {"secret", "poem", "lines"} & set(str(caught.value).replace("/", " ").split())
    assert "secret" not in str(caught.value)
    assert len(str(caught.value)) < 200


def test_somebodys_home_that_is_not_there_is_no_model() -> None:
    with pytest.raises(ModelError, match="no such folder"):
        resolve("~nobody-of-this-name/model")
