"""Quantised weights that outlive the process: read when they are the same, and never trusted."""

import fcntl
import os
import resource
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from kvrt import registry
from kvrt.errors import ConfigError
from kvrt.model.loader import Model, load_model
from kvrt.model.packed import kept
from kvrt.model.packed.kept import ENDING, HEAD, NEW, KeptWeights
from kvrt.model.packed.quantize import Quantize
from kvrt.spi import Device, Matrix, WeightFormat
from kvrt.testing.packing import PackingDevice, TorchMatrices
from kvrt.wrappers import Checked
from tests.model.checkpoints import make_model, save_model

WEIGHTS = "model.safetensors"


@pytest.fixture
def device() -> Iterator[Device]:
    device = Checked(PackingDevice(registry.load("null", timeout=60).open(), exact=True))
    yield device
    device.close()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(make_model("llama-3"), tmp_path_factory.mktemp("floats"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "kvrt" / "weights"


def loaded(
    checkpoint: Path, device: Device, folder: Path | None, quantize: Quantize = "int4"
) -> Model:
    return load_model(checkpoint, device, quantize=quantize, quantized_dir=folder)


def was_read(model: Model) -> bool:
    return any("were read from" in note for note in model.notes)


def numbers(model: Model) -> list[torch.Tensor]:
    """The bytes of all weights."""
    weights = model.decoder.weights
    every = [weights.embedding, weights.head, weights.final_norm]
    for layer in weights.layers:
        every += (layer.attention_norm, layer.qkv, layer.o, layer.gate_up, layer.down)
    found = [
        [matrix.data for matrix in weight] if isinstance(weight, tuple) else [weight]
        for weight in every
    ]
    return [tensor for tensors in found for tensor in tensors]


def are_equal(one: Model, other: Model) -> bool:
    pairs = zip(numbers(one), numbers(other), strict=True)
    return one.fingerprint == other.fingerprint and all(torch.equal(*pair) for pair in pairs)


@pytest.fixture
def made(checkpoint: Path, device: Device) -> Model:
    return loaded(checkpoint, device, None)


def files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.exists() else []


def test_the_second_start_reads_what_the_first_has_made(
    checkpoint: Path, device: Device, folder: Path, made: Model, caplog: pytest.LogCaptureFixture
) -> None:
    first = loaded(checkpoint, device, folder)
    (file,) = files(folder)
    assert f"int4 weights are kept in {file}" in first.notes
    assert file.stat().st_size == HEAD + first.weight_bytes
    second = loaded(checkpoint, device, folder)
    assert f"int4 weights were read from {file}" in second.notes
    assert are_equal(first, made)
    assert are_equal(second, made)
    assert [file] == files(folder)
    assert not caplog.records
    assert folder.stat().st_mode & 0o077 == file.stat().st_mode & 0o077 == 0


def test_weights_are_known_by_their_content(
    checkpoint: Path, device: Device, folder: Path, tmp_path: Path
) -> None:
    loaded(checkpoint, device, folder)
    moved = tmp_path / "moved"
    moved.mkdir()
    (moved / "config.json").write_bytes((checkpoint / "config.json").read_bytes())
    tensors = load_file(checkpoint / WEIGHTS)
    save_file(tensors, moved / WEIGHTS)
    assert was_read(loaded(moved, device, folder))
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] += 1e-6  # of which no code need change
    save_file(tensors, moved / WEIGHTS)
    other = loaded(moved, device, folder)
    assert not was_read(other)
    assert are_equal(other, loaded(moved, device, None))
    assert len(files(folder)) == 2


class Reversed(TorchMatrices):
    """Lays matrices out the other way round."""

    def pack(
        self, format: WeightFormat, plain: torch.Tensor, width: int, into: torch.Tensor
    ) -> Matrix:
        return super().pack(format, plain.flip(0), width, into)


def test_formats_and_ways_to_lay_matrices_out_have_files_of_their_own(
    checkpoint: Path, device: Device, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for quantize in ("int8", "int5", "int4"):
        assert not was_read(loaded(checkpoint, device, folder, quantize))
    assert len(files(folder)) == 3
    monkeypatch.setattr("kvrt.testing.packing.TorchMatrices", Reversed)
    other = PackingDevice(registry.load("null", timeout=60).open(), exact=True)
    assert not was_read(loaded(checkpoint, other, folder))
    assert was_read(loaded(checkpoint, other, folder))
    assert was_read(loaded(checkpoint, device, folder))
    other.close()


def flipped(at: int) -> Callable[[Path], None]:
    def damage(file: Path) -> None:
        data = bytearray(file.read_bytes())
        data[at] ^= 64
        file.write_bytes(data)

    return damage


def linked(file: Path) -> None:
    file.rename(file.with_suffix(".elsewhere"))
    file.symlink_to(file.with_suffix(".elsewhere"))


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "magic": (flipped(3), "is damaged"),
    "key": (flipped(40), "is damaged"),
    "size": (flipped(66), "is damaged"),
    "digest": (flipped(75), "is damaged"),
    "filling": (flipped(HEAD - 1), "is damaged"),
    "first byte": (flipped(HEAD), "is damaged"),
    "last byte": (flipped(-1), "is damaged"),
    "cut off": (lambda file: os.truncate(file, file.stat().st_size - 1), "is not complete"),
    "too long": (lambda file: os.truncate(file, file.stat().st_size + 1), "is not complete"),
    "head cut off": (lambda file: os.truncate(file, HEAD - 1), "is damaged"),
    "empty": (lambda file: os.truncate(file, 0), "is damaged"),
    "nothing but zeros": (lambda file: file.write_bytes(bytes(1 << 16)), "is damaged"),
    "open to others": (lambda file: file.chmod(0o620), "can be written to by other users"),
    "a link": (linked, "Too many levels of symbolic links"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_file_that_is_not_what_was_written_is_said_and_made_again(
    kind: str,
    checkpoint: Path,
    device: Device,
    folder: Path,
    made: Model,
    caplog: pytest.LogCaptureFixture,
) -> None:
    loaded(checkpoint, device, folder)
    (file,) = files(folder)
    damage, says = DAMAGE[kind]
    damage(file)
    again = loaded(checkpoint, device, folder)
    assert are_equal(again, made)
    assert not was_read(again)
    (message,) = caplog.messages
    assert message == f"{file}: {says}; these weights are quantised again"
    assert was_read(loaded(checkpoint, device, folder))


def test_a_file_under_another_ones_name_is_not_read(
    checkpoint: Path, device: Device, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    loaded(checkpoint, device, folder)
    other = save_model(make_model("llama-3", seed=1), tmp_path / "other")
    (file,) = files(folder)
    right = loaded(other, device, folder)
    (another,) = set(files(folder)) - {file}
    another.write_bytes(file.read_bytes())
    again = loaded(other, device, folder)
    assert are_equal(again, right)
    assert "is of other weights than its name says" in caplog.text


def test_a_full_disk_costs_the_file_and_not_the_start(
    checkpoint: Path,
    device: Device,
    folder: Path,
    made: Model,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (HEAD + made.weight_bytes // 2, before[1]))
    try:
        model = loaded(checkpoint, device, folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert are_equal(model, made)
    assert f"{folder}: quantised weights cannot be kept here" in caplog.messages[-1]
    assert "File too large" in caplog.messages[-1]
    assert files(folder) == []
    monkeypatch.setattr(kept, "SPARE", 1 << 60)
    assert are_equal(loaded(checkpoint, device, folder), made)
    assert "No space left on device" in caplog.messages[-1]
    assert files(folder) == []


def test_a_folder_that_cannot_be_costs_the_file_and_not_the_start(
    checkpoint: Path,
    device: Device,
    tmp_path: Path,
    made: Model,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "a file").touch()
    for folder in (tmp_path / "a file", tmp_path / "a file" / "below"):
        assert are_equal(loaded(checkpoint, device, folder), made)
        assert f"{folder}: quantised weights cannot be kept here" in caplog.messages[-1]


def test_weights_that_are_refused_are_not_kept(
    checkpoint: Path, device: Device, folder: Path
) -> None:
    plain = registry.load("null", timeout=60).open()
    with pytest.raises(ConfigError):
        loaded(checkpoint, plain, folder)
    plain.close()
    assert files(folder) == []


def test_a_model_of_which_nothing_can_be_codes_is_not_kept(
    device: Device, folder: Path, tmp_path: Path
) -> None:
    narrow = make_model("llama-3", hidden_size=48, intermediate_size=80)
    save_model(narrow, tmp_path / "narrow")
    assert loaded(tmp_path / "narrow", device, folder).notes == (
        "int4 weights were made for this start",
    )
    assert files(folder) == []


def test_several_may_write_and_read_the_same_file_at_once(folder: Path) -> None:
    memory = (torch.arange(3 << 20) * 7919 >> 5).to(torch.uint8)
    wrong: list[int] = []

    def start(n: int) -> None:
        own = KeptWeights(folder, "one arrangement")
        found = torch.zeros_like(memory)
        for _ in range(6):
            if own.read("content", found) and not torch.equal(found, memory):
                wrong.append(n)
            if not own.write("content", memory):
                wrong.append(n)

    threads = [threading.Thread(target=start, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert [path.suffix for path in files(folder)] == [ENDING]


def test_what_killed_processes_left_is_removed_and_what_is_being_written_is_not(
    folder: Path,
) -> None:
    folder.mkdir(parents=True)
    left, held, young = (folder / f"{name}{NEW}" for name in ("left", "held", "young"))
    for path in (left, held, young):
        path.write_bytes(b"half")
    for path in (left, held):
        os.utime(path, (0, 0))
    with held.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert KeptWeights(folder, "").write("", torch.zeros(8, dtype=torch.uint8))
    assert {path for path in files(folder) if path.suffix == NEW} == {held, young}


def test_quantising_says_how_far_it_is(checkpoint: Path, device: Device, folder: Path) -> None:
    reports: list[tuple[int, int]] = []
    load_model(
        checkpoint,
        device,
        quantize="int4",
        quantized_dir=folder,
        progress=lambda done, total: reports.append((done, total)),
    )
    done, totals = zip(*reports, strict=True)
    assert list(done) == sorted(set(done))
    assert set(totals) == {done[-1]}
    assert len(done) > 10
