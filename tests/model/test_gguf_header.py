"""GGUF headers: what breaks a rule is refused by file and field, at once and in little memory."""

import random
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvrt.errors import ModelError
from kvrt.model.gguf.checkpoint import open_checkpoint
from kvrt.model.gguf.files import open_gguf
from kvrt.model.gguf.header import read_header
from kvrt.model.gguf.spec import read_spec
from kvrt.model.gguf.tokens import read_tokenizer
from tests.model.checkpoints import make_model, save_model
from tests.model.ggufs import (
    keys_of,
    pack,
    piece_keys,
    string,
    tensors_of,
    tokenizer_keys,
    write_gguf,
)
from tests.model.test_checkpoint import peak, reset_peak

HUGE = (2**31, 2**32 - 1, 2**63, 2**63 - 1, 2**64 - 1, 2**64 // 8)
TENSOR = ("F32", (4,), bytes(16))


@pytest.fixture(scope="module", params=[tokenizer_keys, piece_keys], ids=["pairs", "pieces"])
def good(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model with a tokenizer."""
    folder = save_model(make_model("qwen-3"), tmp_path_factory.mktemp("good"))
    tensors = {name: pack(tensor, "F32") for name, tensor in tensors_of(folder).items()}
    return write_gguf(folder / "good.gguf", keys_of(folder) | request.param(), tensors)


def read(path: Path) -> None:
    """Everything that is read before memory is taken for weights."""
    gguf = open_gguf(path)
    spec = read_spec(gguf)
    open_checkpoint(gguf, spec)
    read_tokenizer(gguf, spec.vocab)


def error_of(path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(str(path), "")


# --- what is good -------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [2, 3])
def test_every_kind_of_value_is_read(tmp_path: Path, version: int) -> None:
    values: dict[str, Any] = {
        "flag": True, "text": "é ▁", "empty": "", "count": 7, "less": -7, "part": 0.5,
        "large": struct.pack("<IQ", 10, 2**64 - 1), "double": struct.pack("<Id", 12, 0.1),
        "flags": struct.pack("<IIQ3B", 9, 7, 3, 0, 1, 1),
        "words": ["a", "", "ß"], "none": np.array([], np.int32),
        **{
            f"array of {kind.__name__}": np.array([0, 1, 100], kind)
            for kind in (np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32, np.uint64,
                         np.int64, np.float32, np.float64)
        },
    }  # fmt: skip
    header = read_header(write_gguf(tmp_path / "x.gguf", values, {"t": TENSOR}, version=version))
    want = values | {"large": 2**64 - 1, "double": 0.1, "flags": [False, True, True]}
    for key, value in want.items():
        assert header.keys[key] == (value.tolist() if isinstance(value, np.ndarray) else value), key
    assert header.tensors["t"].shape == (4,)


def test_a_vocabulary_of_a_quarter_million_words_is_opened_in_half_a_second(tmp_path: Path) -> None:
    words = [f"token {number}" for number in range(262_144)]
    path = write_gguf(
        tmp_path / "x.gguf", {"tokenizer.ggml.tokens": words, "scores": [0.5] * 262_144}
    )
    started = time.process_time()
    header = read_header(path)
    assert time.process_time() - started < 0.5
    assert header.keys["tokenizer.ggml.tokens"] == words


@pytest.mark.parametrize("alignment", [1, 8, 32, 256])
def test_tensors_lie_where_the_alignment_puts_them(tmp_path: Path, alignment: int) -> None:
    sizes = {"a": 5, "b": 40, "c": 3}
    tensors = {name: ("I8", (size,), bytes([size] * size)) for name, size in sizes.items()}
    path = write_gguf(tmp_path / "x.gguf", {"general.alignment": alignment}, tensors)
    data = path.read_bytes()
    for name, (_, _, raw) in tensors.items():
        entry = read_header(path).tensors[name]
        assert data[entry.start : entry.end] == raw


# --- what is not --------------------------------------------------------------------------------

LIES: dict[str, tuple[dict[str, Any], str]] = {
    "a string without end": ({"k": struct.pack("<IQ", 8, 2**63)}, "key 'k': length of the value"),
    "an array without end": ({"k": struct.pack("<IIQ", 9, 4, 2**62)}, "key 'k': array's count"),
    "strings without end": ({"k": struct.pack("<IIQ", 9, 8, 2**61)}, "key 'k': array's count"),
    "a string in an array without end": (
        {"k": struct.pack("<IIQQ", 9, 8, 1, 2**64 - 1)}, "key 'k': its last item"),
    "an item behind one without end": (
        {"k": struct.pack("<IIQQQ", 9, 8, 2, 2**40, 1)}, "key 'k': item 1"),
    "nested arrays": ({"k": struct.pack("<I", 9) * 5000}, "key 'k': is an array of arrays"),
    "an unknown type": ({"k": struct.pack("<I", 13)}, "key 'k': type is 13"),
    "an array of an unknown type": ({"k": struct.pack("<IIQ", 9, 99, 1)}, "array's type is 99"),
    "text that is none": ({"k": struct.pack("<IQ", 8, 2) + b"\xff\xff"}, "key 'k' is not UTF-8"),
    "an alignment that is none": ({"general.alignment": struct.pack("<II", 4, 48)}, "is 48"),
    "no alignment": ({"general.alignment": struct.pack("<II", 4, 0)}, "general.alignment: is 0"),
}  # fmt: skip


@pytest.mark.promise("P23")
@pytest.mark.parametrize("lie", LIES)
def test_a_key_that_lies_is_named(tmp_path: Path, lie: str) -> None:
    keys, words = LIES[lie]
    path = tmp_path / "x.gguf"
    path.write_bytes(header_of(keys))
    assert words in error_of(path)


def header_of(keys: dict[str, Any], tensors: bytes = b"", count: int = 0) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", 3, count, len(keys))
    return head + b"".join(string(key) + item for key, item in keys.items()) + tensors


def info(name: str, *sizes: int, kind: int = 0, offset: int = 0) -> bytes:
    packed = struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, kind, offset)
    return string(name) + packed


TENSORS: dict[str, tuple[bytes, str]] = {
    "sizes of 2^63": (info("t", 2**63), "tensor 't': offset 0"),
    "sizes whose product wraps": (info("t", 2**32, 2**32), "tensor 't': offset 0"),
    "a size of 0": (info("t", 0), "tensor 't': sizes"),
    "no dimensions": (info("t"), "tensor 't': dimensions is 0"),
    "five dimensions": (info("t", 1, 1, 1, 1, 1), "tensor 't': dimensions is 5"),
    "2^32 - 1 dimensions": (string("t") + struct.pack("<I", 2**32 - 1), "dimensions is"),
    "an unknown type": (info("t", 4, kind=77), "tensor 't': type is 77"),
    "a type that was removed": (info("t", 32, kind=4), "tensor 't': type is 4"),
    "a row that is no whole block": (info("t", 48, 64, kind=2), "blocks of 32"),
    "an offset of 2^63": (info("t", 4, offset=2**63), "gap"),
    "an odd offset": (info("t", 4, offset=4), "no multiple"),
    "data beyond the end": (info("t", 400), "cut short"),
    "a name without end": (struct.pack("<Q", 2**63), "length of the name"),
    "a name that is no text": (struct.pack("<Q", 1) + b"\xff" + bytes(60), "name is not UTF-8"),
    "nothing": (b"", "count of tensors"),
}


@pytest.mark.promise("P23")
@pytest.mark.parametrize("lie", TENSORS)
def test_a_tensor_that_lies_is_named(tmp_path: Path, lie: str) -> None:
    tensor, words = TENSORS[lie]
    path = tmp_path / "x.gguf"
    path.write_bytes(header_of({}, tensor, 1) + (bytes(64) if tensor else b""))
    assert words in error_of(path)


def test_tensors_that_overlap_or_have_one_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(header_of({}, info("a", 64) + info("b", 64, offset=224), 2) + bytes(1024))
    assert "tensor 'b': offset is 224, where tensor 'a' still is" in error_of(path)
    path.write_bytes(header_of({}, info("a", 64) + info("a", 64, offset=256), 2) + bytes(1024))
    assert "tensor 'a': appears twice" in error_of(path)


@pytest.mark.parametrize("count", HUGE)
def test_a_count_that_lies_is_named(tmp_path: Path, count: int) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, count, 0) + bytes(100))
    assert f"count of tensors is {count}" in error_of(path)
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, count) + bytes(100))
    assert f"count of keys is {count}" in error_of(path)


@pytest.mark.parametrize(
    ("version", "words"),
    [(1, "is 1; supported are 2 and 3"), (4, "is 4;"), (0, "is 0;"), (0x03000000, "big-endian"),
     (0x02000000, "big-endian")],
)  # fmt: skip
def test_another_version_is_refused_by_name(tmp_path: Path, version: int, words: str) -> None:
    path = write_gguf(tmp_path / "x.gguf", {}, version=version)
    assert words in error_of(path)


def test_a_key_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    item = string("k") + struct.pack("<II", 4, 1)
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + item + item)
    assert "key 'k': appears twice" in error_of(path)


@pytest.mark.promise("P23")
@pytest.mark.parametrize("last", ["xyz", ["xyz"], np.full(3, 0xFFFF, np.uint16), 0xFFFFFFFF])
@pytest.mark.parametrize("tensors", [{"a": TENSOR, "b": ("F32", (2, 4), b"x" * 32)}, {}])
def test_a_file_that_was_cut_is_refused_wherever(
    tmp_path: Path, tensors: dict[str, Any], last: Any
) -> None:
    keys = {"word": "text", "words": ["a", "", "three"], "flag": True, "last": last}
    path = write_gguf(tmp_path / "x.gguf", keys, tensors)
    data = path.read_bytes().rstrip(b"\0")  # up to the last byte that means something
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(ModelError, match=r"x\.gguf"):
            read_header(path)
    path.write_bytes(data)
    read_header(path)


# --- damage -------------------------------------------------------------------------------------


def numbers(data: bytearray, at: int, rng: random.Random) -> bytearray:
    width = rng.choice([1, 4, 8])
    value = rng.choice([0, 1, 8, 9, rng.getrandbits(8 * width), *HUGE]) % 256**width
    data[at : at + width] = value.to_bytes(width, "little")
    return data


def bits(data: bytearray, at: int, rng: random.Random) -> bytearray:
    data[at] ^= 1 << rng.randrange(8)
    return data


def cut_out(data: bytearray, at: int, rng: random.Random) -> bytearray:
    del data[at : at + rng.randrange(1, 64)]
    return data


def put_in(data: bytearray, at: int, rng: random.Random) -> bytearray:
    data[at:at] = rng.choice([rng.randbytes(8), data[at : at + 64], bytes(32)])
    return data


def swapped(data: bytearray, at: int, rng: random.Random) -> bytearray:
    other = rng.randrange(len(data) - 16)
    data[at : at + 8], data[other : other + 8] = data[other : other + 8], data[at : at + 8]
    return data


KINDS: tuple[Callable[[bytearray, int, random.Random], bytearray], ...] = (
    numbers, numbers, bits, cut_out, put_in, swapped,
)  # fmt: skip


def assert_refused_or_read(good: Path, folder: Path, seed: int) -> None:
    """One mutation of the header: an error that names the file on one line, or a model."""
    rng = random.Random(seed)
    data = bytearray(good.read_bytes())
    header = min(entry.start for entry in read_header(good).tensors.values())
    for _ in range(rng.choice([1, 1, 3])):
        data = rng.choice(KINDS)(data, rng.randrange(4, header), rng)
    path = folder / "x.gguf"
    path.write_bytes(data)
    before, started = reset_peak(), time.process_time()
    message = str(path)
    try:
        read(path)
    except ModelError as error:
        message = str(error)
    assert str(path) in message, seed
    assert "\n" not in message, seed
    assert time.process_time() - started < 1, seed
    assert peak() - before < 2 * len(data) + (64 << 20), seed


@pytest.mark.promise("P23")
@pytest.mark.parametrize("start", range(0, 150, 50))
def test_a_damaged_header_is_refused_by_name_or_read(
    good: Path, tmp_path: Path, start: int
) -> None:
    for seed in range(start, start + 50):
        assert_refused_or_read(good, tmp_path, seed)


@pytest.mark.extra
@pytest.mark.promise("P23")
def test_two_thousand_damaged_headers_are_refused_or_read(good: Path, tmp_path: Path) -> None:
    for seed in range(1000, 2000):
        assert_refused_or_read(good, tmp_path, seed)
