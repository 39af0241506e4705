"""Names of models: folders, hub ids, and the bundled one."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from kvrt.embedding.embedder import Embedder
from kvrt.errors import ModelError
from kvrt.model.checkpoint.checkpoint import open_checkpoint
from kvrt.model.config import read_config
from kvrt.model.files.resolve import resolve
from kvrt.model.gguf.choice import choose
from kvrt.model.source import open_source
from kvrt.speech.transcriber import Transcriber
from tests.embedding.encoders import make_encoder, save_recipe
from tests.model.checkpoints import make_model, save_model, save_tokenizer
from tests.model.fakehub import REPOSITORY, FakeHub
from tests.model.ggufs import save_gguf
from tests.speech.speakers import make_speaker

SMALL = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sharded checkpoint, among other files that a repository has."""
    folder = save_model(make_model("llama-2"), tmp_path_factory.mktemp("model"), shard="150KB")
    for name in ("pytorch_model.bin", "consolidated.safetensors", "modeling.py", "README.md"):
        (folder / name).write_bytes(b"not to be downloaded")
    return save_tokenizer(folder)


@pytest.fixture
def hub(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub with that repository, and an empty cache."""
    with FakeHub(folder) as hub:
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE
        monkeypatch.setattr(
            constants,
            "HUGGINGFACE_CO_URL_TEMPLATE",
            template.replace(constants.ENDPOINT, hub.url),
        )
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        # What has arrived is kept in whole pieces of this size.
        monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
        yield hub


@pytest.fixture
def gguf_hub(hub: FakeHub) -> FakeHub:
    """The hub, whose repository has GGUF files in their place."""
    names = ("model-Q4_K_M.gguf", "model-Q8_0.gguf", "BF16/model-BF16-00001-of-00002.gguf",
             "BF16/model-BF16-00002-of-00002.gguf", "mmproj-model-f16.gguf")  # fmt: skip
    hub.files = {"README.md": b"#", **{name: b"GGUF" + name.encode() for name in names}}
    return hub


def downloads(hub: FakeHub) -> set[str]:
    return {name for name, _ in hub.asked if name.endswith(".gguf")}


def shards(hub: FakeHub) -> list[str]:
    return sorted(name for name in hub.files if name.startswith("model-"))


# --- names ------------------------------------------------------------------------------------


def test_a_folder_is_itself(tmp_path: Path) -> None:
    assert resolve(tmp_path) == tmp_path
    assert resolve(str(tmp_path)) == tmp_path


def test_tiny_is_the_bundled_model() -> None:
    assert resolve("tiny").parts[-3:] == ("model", "bundled", "tiny")


@pytest.mark.parametrize("name", ["./none/here", "/none/here", "~/none", "none", "a/b/c"])
def test_a_name_that_means_nothing_is_refused_with_what_could_be_given(name: str) -> None:
    with pytest.raises(ModelError, match="no such folder") as caught:
        resolve(name)
    assert name in str(caught.value)
    assert "tiny" in caught.value.fix


@pytest.mark.parametrize("name", ["~no-such-user/model", "a\0b", "x" * 5000, "/" + "x" * 5000])
def test_a_name_that_can_be_no_path_is_refused_like_others(name: str) -> None:
    with pytest.raises(ModelError, match="no such folder"):
        resolve(name)


def test_a_file_is_refused_with_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.touch()
    with pytest.raises(ModelError, match="is a file") as caught:
        resolve(path)
    assert str(tmp_path) in caught.value.fix


def test_a_configuration_can_be_named_by_itself_where_it_is_all_that_is_wanted(
    tmp_path: Path,
) -> None:
    path = tmp_path / "config.json"
    path.touch()
    assert resolve(path, want="config") == tmp_path
    with pytest.raises(ModelError, match="is a file"):
        resolve(path)


# --- the hub ----------------------------------------------------------------------------------


def test_of_an_encoder_what_stands_around_it_is_downloaded_too(
    hub: FakeHub, tmp_path: Path
) -> None:
    make_encoder("bert", tmp_path / "encoder")
    save_recipe(tmp_path / "encoder", {"pooling_mode": "cls"})
    around = {path for path in (tmp_path / "encoder").rglob("*") if path.is_file()}
    hub.files = {str(path.relative_to(tmp_path / "encoder")): path.read_bytes() for path in around}
    hub.files |= {"onnx/config.json": b"{}", "openvino/model.bin": b"{}"}
    with Embedder(REPOSITORY, backend="cpu") as embedder:
        assert embedder.pooling == "cls"
    wanted = {name for name in hub.files if not name.startswith(("onnx", "openvino"))}
    assert {name for name, _ in hub.asked} == wanted
    with pytest.raises(ModelError, match="an encoder, which says nothing") as refused:
        resolve(REPOSITORY)
    assert "kvrt embed" in refused.value.fix


def test_a_model_of_speech_is_downloaded_and_nothing_else_takes_it(
    hub: FakeHub, tmp_path: Path
) -> None:
    make_speaker(tmp_path / "whisper")
    around = {path for path in (tmp_path / "whisper").rglob("*") if path.is_file()}
    hub.files = {path.name: path.read_bytes() for path in around} | {"onnx/config.json": b"{}"}
    with Transcriber(REPOSITORY, backend="cpu") as transcriber:
        assert transcriber.languages == ("de", "en", "fr")
    assert {name for name, _ in hub.asked} == {*hub.files} - {"onnx/config.json"}
    with pytest.raises(ModelError, match="writes what is said") as refused:
        resolve(REPOSITORY)
    assert "kvrt transcribe" in refused.value.fix


@pytest.mark.promise("P25")
def test_a_download_takes_what_is_needed_and_nothing_that_could_run(hub: FakeHub) -> None:
    found = resolve(REPOSITORY)
    here = {path.name for path in found.iterdir()}
    assert here == SMALL | {"model.safetensors.index.json"} | set(shards(hub))
    open_checkpoint(found, read_config(found / "config.json"))


def test_of_subfolders_only_chat_templates_are_downloaded(hub: FakeHub) -> None:
    template = "additional_chat_templates/tool_use.jinja"
    hub.files[template] = b"{{ tools }}"
    for name in ("config.json", "model.safetensors", "tokenizer.json", "run.py"):
        hub.files[f"original/{name}"] = b"{}"
    found = resolve(REPOSITORY)
    deep = {str(path.relative_to(found)) for path in found.glob("*/*")}
    assert deep == {template}


def test_a_download_reports_its_bytes(hub: FakeHub) -> None:
    reports: list[tuple[int, int]] = []
    resolve(REPOSITORY, progress=lambda done, total: reports.append((done, total)))
    weights = sum(len(hub.files[name]) for name in shards(hub))
    assert reports[-1] == (weights, weights)


def test_what_is_in_the_cache_needs_no_hub(hub: FakeHub) -> None:
    found = resolve(REPOSITORY)
    hub.asked.clear()
    hub.paths.clear()
    assert resolve(REPOSITORY, offline=True) == found
    assert hub.paths == [], "nor whether it is there"
    assert resolve(REPOSITORY) == found
    assert hub.asked == []


@pytest.mark.parametrize("answer", ["refused", "none", "429", "503"])
def test_what_is_in_the_cache_serves_at_once_where_the_hub_does_not(
    hub: FakeHub,
    tmp_path: Path,
    answer: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    found = resolve(REPOSITORY)
    for listing in (tmp_path / "hub").glob("*/trees/*"):
        listing.unlink()  # caches of older versions of the library have none
    monkeypatch.setattr("kvrt.model.files.hub.ANSWER_SECONDS", 0.2)
    caplog.clear()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1] if answer == "none" else 9
        if answer.isdigit():
            hub.down = int(answer)
        else:
            monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
        assert resolve(REPOSITORY) == found
        assert resolve(REPOSITORY, revision=found.name) == found
        (found / shards(hub)[0]).unlink()
        with pytest.raises(ModelError) as caught:
            resolve(REPOSITORY)
    assert "the hub cannot be reached" in str(caught.value) or "are missing" in str(caught.value)
    assert not [record for record in caplog.records if "Retry" in record.getMessage()]


def test_a_configuration_alone_leaves_out_the_weights(hub: FakeHub) -> None:
    found = resolve(REPOSITORY, want="config")
    assert (found / "config.json").exists()
    assert not list(found.glob("*.safetensors"))


def test_an_unsupported_model_is_refused_before_its_weights_are_downloaded(hub: FakeHub) -> None:
    hub.files["config.json"] = json.dumps({"architectures": ["BloomForCausalLM"]}).encode()
    with pytest.raises(ModelError, match="BloomForCausalLM"):
        resolve(REPOSITORY)
    assert not any(name.endswith(".safetensors") for name, _ in hub.asked)


def test_one_that_transformers_is_to_compute_is_downloaded_whatever_it_is(hub: FakeHub) -> None:
    hub.files["config.json"] = json.dumps({"architectures": ["BloomForCausalLM"]}).encode()
    assert list(resolve(REPOSITORY, want="foreign").glob("*.safetensors"))


@pytest.mark.promise("P24")
def test_a_file_whose_connection_is_lost_goes_on_from_where_it_ended(hub: FakeHub) -> None:
    cut = shards(hub)[1]
    hub.cut[cut] = 10_500
    found = resolve(REPOSITORY)
    assert (found / cut).read_bytes() == hub.files[cut]
    assert [start for name, start in hub.asked if name == cut] == [0, 10_000]


@pytest.mark.promise("P24")
def test_a_download_that_failed_is_not_used_and_the_next_one_fetches_the_rest(
    hub: FakeHub,
) -> None:
    failing = shards(hub)[1]
    hub.status[failing] = 503
    with pytest.raises(ModelError, match=r"download failed.*503") as caught:
        resolve(REPOSITORY)
    assert "run it again" in caught.value.fix
    with pytest.raises(ModelError, match="not completely in the cache"):
        resolve(REPOSITORY, offline=True)
    hub.status.clear()
    hub.asked.clear()
    resolve(REPOSITORY)
    again = {name for name, _ in hub.asked}
    assert failing in again
    assert not again & (SMALL | {"model.safetensors.index.json"})


@pytest.mark.promise("P24")
def test_a_file_with_another_hash_than_announced_is_refused_and_not_kept(hub: FakeHub) -> None:
    name = shards(hub)[2]
    hub.forged[name] = hub.files[name][:-1] + b"!"
    with pytest.raises(ModelError, match=f"{name}.*SHA-256"):
        resolve(REPOSITORY)
    with pytest.raises(ModelError, match="not completely in the cache"):
        resolve(REPOSITORY, offline=True)
    hub.forged.clear()
    assert (resolve(REPOSITORY) / name).read_bytes() == hub.files[name]


@pytest.mark.promise("P24")
def test_a_file_of_another_length_than_announced_is_refused(hub: FakeHub) -> None:
    name = shards(hub)[2]
    hub.forged[name] = hub.files[name][:-100]
    with pytest.raises(ModelError, match="SHA-256"):
        resolve(REPOSITORY)
    with pytest.raises(ModelError, match="not completely in the cache"):
        resolve(REPOSITORY, offline=True)


@pytest.mark.promise("P24")
def test_a_partial_snapshot_is_never_used_as_complete(hub: FakeHub) -> None:
    found = resolve(REPOSITORY)
    (found / shards(hub)[0]).unlink()
    with pytest.raises(ModelError, match="not completely in the cache") as caught:
        resolve(REPOSITORY, offline=True)
    assert "without --offline" in caught.value.fix


def test_a_repository_without_safetensors_is_refused(hub: FakeHub) -> None:
    for name in [*shards(hub), "model.safetensors.index.json"]:
        del hub.files[name]
    with pytest.raises(ModelError, match=r"has no model\.safetensors"):
        resolve(REPOSITORY)


def test_a_repository_that_does_not_exist_is_refused(hub: FakeHub) -> None:
    with pytest.raises(ModelError, match="no hub repository of this name"):
        resolve("someone/else")


def test_a_hub_that_cannot_be_reached_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match="the hub cannot be reached"):
        resolve(REPOSITORY)
    with pytest.raises(ModelError, match="--offline forbids"):
        resolve(REPOSITORY, offline=True)


# --- repositories of GGUF files -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("tag", "files"),
    [
        ("", {"model-Q4_K_M.gguf"}),
        (":Q4_K_M", {"model-Q4_K_M.gguf"}),
        (":q8_0", {"model-Q8_0.gguf"}),
        (":BF16", {f"BF16/model-BF16-0000{n}-of-00002.gguf" for n in (1, 2)}),
    ],
)
def test_the_gguf_file_of_a_quantisation_is_downloaded_and_no_other(
    gguf_hub: FakeHub, tag: str, files: set[str]
) -> None:
    found = resolve(REPOSITORY + tag)
    assert downloads(gguf_hub) == files
    assert found.read_bytes() == gguf_hub.files[min(files)]
    gguf_hub.asked.clear()
    assert resolve(REPOSITORY + tag) == found
    assert resolve(REPOSITORY + tag, offline=True) == found
    gguf_hub.down = 503
    assert resolve(REPOSITORY + tag) == found
    assert gguf_hub.asked == []


def test_a_quantisation_that_is_not_there_is_told_with_those_that_are(gguf_hub: FakeHub) -> None:
    with pytest.raises(ModelError, match="no GGUF model Q5_K_M, but") as caught:
        resolve(f"{REPOSITORY}:Q5_K_M")
    assert "model-Q8_0.gguf" in str(caught.value)
    assert "mmproj" not in str(caught.value)
    assert downloads(gguf_hub) == set()


@pytest.mark.parametrize("first", [1 << 10, 4 << 20])
def test_the_header_of_a_gguf_file_is_read_without_its_weights(
    hub: FakeHub, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: int
) -> None:
    one = save_model(make_model("llama-2", vocab_size=80_000), tmp_path / "one")
    file = save_gguf(one, tmp_path / "model-Q8_0.gguf", general__name="a" * 5000)
    hub.files = {file.name: file.read_bytes(), "README.md": b"#"}
    monkeypatch.setattr("kvrt.model.files.hubheader.FIRST", first)
    headers = tmp_path / "headers"
    headers.mkdir()
    found = resolve(REPOSITORY, want="config", headers=headers)
    assert found.parent == headers
    assert found.stat().st_size == file.stat().st_size
    assert found.stat().st_blocks * 512 < file.stat().st_size // 2
    given, want = open_source(found), open_source(file)
    assert given.spec == want.spec
    places = [
        {name: entry for name, (_, entry) in source.checkpoint().tensors.items()}
        for source in (given, want)
    ]
    assert places[0] == places[1]
    hub.files[file.name] = b"GGUF" + bytes(100)
    with pytest.raises(ModelError, match="version"):
        resolve(REPOSITORY, want="config", headers=headers)


def test_what_was_not_downloaded_cannot_be_had_offline(gguf_hub: FakeHub) -> None:
    resolve(f"{REPOSITORY}:Q8_0")
    with pytest.raises(ModelError, match="model-Q8_0"):
        resolve(f"{REPOSITORY}:Q4_K_M", offline=True)


def test_a_gguf_file_that_arrived_wrongly_is_deleted(gguf_hub: FakeHub) -> None:
    right = gguf_hub.files["model-Q8_0.gguf"]
    gguf_hub.forged["model-Q8_0.gguf"] = bytes(len(right))
    with pytest.raises(ModelError, match="another SHA-256"):
        resolve(f"{REPOSITORY}:Q8_0")
    gguf_hub.forged.clear()
    assert resolve(f"{REPOSITORY}:Q8_0").read_bytes() == right


def test_gguf_files_beside_a_config_are_taken_where_there_are_no_safetensors(
    gguf_hub: FakeHub, folder: Path
) -> None:
    gguf_hub.files["config.json"] = (folder / "config.json").read_bytes()
    assert resolve(REPOSITORY).name == "model-Q4_K_M.gguf"


def test_safetensors_go_before_gguf_files_of_the_same_repository(
    hub: FakeHub,
) -> None:
    hub.files["model-Q8_0.gguf"] = b"GGUF"
    assert resolve(REPOSITORY).is_dir()
    assert resolve(f"{REPOSITORY}:Q8_0").name == "model-Q8_0.gguf"


@pytest.mark.parametrize(
    ("tag", "names", "want"),
    [
        ("Q4_K", ["a-Q4_K_M.gguf", "a-Q4_K.gguf"], "a-Q4_K.gguf"),
        ("Q4_K_M", ["a-UD-Q4_K_M.gguf", "a-Q4_K_M.gguf"], "a-Q4_K_M.gguf"),
        ("UD-Q4_K_M", ["a-UD-Q4_K_M.gguf", "a-Q4_K_M.gguf"], "a-UD-Q4_K_M.gguf"),
        ("f16", ["a.F16.gguf", "a.BF16.gguf"], "a.F16.gguf"),
        (None, ["a-Q8_0.gguf", "a-Q2_K.gguf"], "a-Q8_0.gguf"),
        (None, ["a-IQ2_M.gguf"], "a-IQ2_M.gguf"),
    ],
)
def test_a_quantisation_is_a_word_of_a_files_name(
    tag: str | None, names: list[str], want: str
) -> None:
    assert choose("a/b", names, tag) == [want]
    assert choose("a/b", names[::-1], tag) == [want]


def test_two_files_that_may_be_meant_are_both_named() -> None:
    with pytest.raises(ModelError, match=r"has 2 GGUF models: 'a-Q2_K.gguf', 'b-Q2_K.gguf'"):
        choose("a/b", ["a-Q2_K.gguf", "b-Q2_K.gguf"], "Q2_K")
