"""Damaged checkpoints: one mutation of a good one for each seed.

Every mutation says which words the error must have: the file, and the tensor or field at fault.
Only a flipped bit makes no such promise, because the header has bytes without meaning; it must
either be refused or change nothing.
"""

import json
import random
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WEIGHTS = "model.safetensors"
SIZES = (-1, 2**31, 2**63, 2**64 - 1, 10**30, 1.5, "8", None, True)
Entries = dict[str, Any]


@dataclass(frozen=True)
class Mutation:
    """What was done, and what the error must mention; `harmless` if it may also be accepted."""

    kind: str
    words: tuple[str, ...]
    harmless: bool = False


def read_file(path: Path) -> tuple[Entries, bytes]:
    data = path.read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def write_file(path: Path, header: str, data: bytes) -> None:
    raw = header.encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)


def damage(good: Path, folder: Path, seed: int) -> Mutation:
    """Copy the checkpoint in `good` to `folder`, and break it in one way."""
    shutil.copytree(good, folder)
    rng = random.Random(seed)
    kind = KINDS[seed % len(KINDS)]
    return Mutation(kind.__name__, *kind(folder, rng))


def _tensor(entries: Entries, rng: random.Random) -> str:
    return rng.choice([name for name in entries if name != "__metadata__"])


def _edit(folder: Path, rng: random.Random, change: Callable[[Entries, str], None]) -> str:
    entries, data = read_file(folder / WEIGHTS)
    name = _tensor(entries, rng)
    change(entries, name)
    write_file(folder / WEIGHTS, json.dumps(entries), data)
    return name


Words = tuple[tuple[str, ...], bool] | tuple[tuple[str, ...]]


def truncated(folder: Path, rng: random.Random) -> Words:
    data = (folder / WEIGHTS).read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    left = rng.randrange(rng.choice([8, 8 + length, len(data)]))
    (folder / WEIGHTS).write_bytes(data[:left])
    return ((WEIGHTS, "header length") if left < 8 + length else (WEIGHTS,),)


def cut_in_the_data(folder: Path, rng: random.Random) -> Words:
    entries, data = read_file(folder / WEIGHTS)
    write_file(folder / WEIGHTS, json.dumps(entries), data[: rng.randrange(len(data))])
    return ((WEIGHTS, "tensor", "data_offsets"),)


def padded(folder: Path, rng: random.Random) -> Words:
    with open(folder / WEIGHTS, "ab") as file:
        file.write(rng.randbytes(rng.randrange(1, 100)))
    return ((WEIGHTS, "data_offsets"),)


def bit_flipped(folder: Path, rng: random.Random) -> Words:
    data = bytearray((folder / WEIGHTS).read_bytes())
    (length,) = struct.unpack_from("<Q", data)
    data[rng.randrange(8 + length)] ^= 1 << rng.randrange(8)
    (folder / WEIGHTS).write_bytes(data)
    return ((WEIGHTS,), True)


def header_length(folder: Path, rng: random.Random) -> Words:
    data = (folder / WEIGHTS).read_bytes()
    length = rng.choice([0, 1, len(data), 2**31, 2**63, 2**64 - 1])
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", length) + data[8:])
    return ((WEIGHTS, "header"),)


def offsets_overlap(folder: Path, rng: random.Random) -> Words:
    def change(entries: Entries, name: str) -> None:
        begin, end = entries[name]["data_offsets"]
        shift = -2 if begin else 2
        entries[name]["data_offsets"] = [begin + shift, end + shift]

    _edit(folder, rng, change)
    return ((WEIGHTS, "tensor", "data_offsets"),)


def offsets_are_not(folder: Path, rng: random.Random) -> Words:
    def change(entries: Entries, name: str) -> None:
        begin, end = entries[name]["data_offsets"]
        bad = rng.choice(SIZES)
        entries[name]["data_offsets"] = rng.choice(
            [[end, begin], [bad, end], [begin, bad], [begin], [], bad, [begin, end, end]]
        )

    return ((WEIGHTS, _edit(folder, rng, change), "data_offsets"),)


def shape_is_not(folder: Path, rng: random.Random) -> Words:
    def change(entries: Entries, name: str) -> None:
        shape = list(entries[name]["shape"])
        bad = rng.choice(SIZES)
        entries[name]["shape"] = rng.choice(
            [[bad, *shape[1:]], [*shape, bad], bad, shape[:-1], [1] * 100 + shape]
        )

    return ((WEIGHTS, _edit(folder, rng, change), "shape"),)


def shape_wraps_around(folder: Path, rng: random.Random) -> Words:
    """The number of elements is right modulo 2^64."""

    def change(entries: Entries, name: str) -> None:
        shape = entries[name]["shape"]
        entries[name]["shape"] = [shape[0] + 2**64, *shape[1:]]

    return ((WEIGHTS, _edit(folder, rng, change), "shape"),)


def shape_is_folded(folder: Path, rng: random.Random) -> Words:
    """As many elements, in another shape: only the model's configuration can tell."""

    def change(entries: Entries, name: str) -> None:
        shape = entries[name]["shape"]
        entries[name]["shape"] = [shape[0] // 2, 2, *shape[1:]]

    return ((WEIGHTS, _edit(folder, rng, change), "shape"),)


def dtype_is_another(folder: Path, rng: random.Random) -> Words:
    def change(entries: Entries, name: str) -> None:
        others = {"F32", "BF16", "F16", "I16", "F64", "I8", "F8_E4M3", "Q4_0", "", None, 7}
        # Between the two 16-bit types no size tells, and some checkpoints do mix them.
        others -= {"F16", "BF16"} if "16" in entries[name]["dtype"] else {entries[name]["dtype"]}
        entries[name]["dtype"] = rng.choice(sorted(others, key=str))

    return ((WEIGHTS, _edit(folder, rng, change), "dtype"),)


def field_is_missing(folder: Path, rng: random.Random) -> Words:
    field = rng.choice(["dtype", "shape", "data_offsets"])
    name = _edit(folder, rng, lambda entries, name: entries[name].pop(field))
    return ((WEIGHTS, name, field),)


def field_is_unknown(folder: Path, rng: random.Random) -> Words:
    name = _edit(folder, rng, lambda entries, name: entries[name].update(alignment=2**63))
    return ((WEIGHTS, name, "alignment"),)


def entry_is_not(folder: Path, rng: random.Random) -> Words:
    bad = rng.choice([None, [], 7, "x"])
    return ((WEIGHTS, _edit(folder, rng, lambda entries, name: entries.update({name: bad}))),)


def tensor_is_renamed(folder: Path, rng: random.Random) -> Words:
    def change(entries: Entries, name: str) -> None:
        entries[name + "x"] = entries.pop(name)

    return ((WEIGHTS, _edit(folder, rng, change), "missing"),)


def tensor_is_there_twice(folder: Path, rng: random.Random) -> Words:
    entries, data = read_file(folder / WEIGHTS)
    name = _tensor(entries, rng)
    text = json.dumps(entries)[:-1] + f", {json.dumps(name)}: {json.dumps(entries[name])}}}"
    write_file(folder / WEIGHTS, text, data)
    return ((WEIGHTS, name, "twice"),)


def header_is_not_an_object(folder: Path, rng: random.Random) -> Words:
    _, data = read_file(folder / WEIGHTS)
    text = rng.choice(["", "[]", "null", "{" * 9000, "[" * 200_000, "{}x", '{"a": }', "\x00"])
    write_file(folder / WEIGHTS, text, data)
    return ((WEIGHTS, "header"),)


def header_is_huge(folder: Path, rng: random.Random) -> Words:
    _, data = read_file(folder / WEIGHTS)
    filler = rng.choice(["[],", "{},", "0,", '"a",'])
    text = f'{{"__metadata__": [{filler * (1 << rng.randrange(17, 22))}0]}}'
    write_file(folder / WEIGHTS, text, data)
    return ((WEIGHTS,),)


def value_is_not_finite(folder: Path, rng: random.Random) -> Words:
    entries, data = read_file(folder / WEIGHTS)
    # A row of an embedding may be one that nobody ever asks for.
    name = _tensor({k: v for k, v in entries.items() if "embed_tokens" not in k}, rng)
    begin, end = entries[name]["data_offsets"]
    at = rng.randrange(begin, end, 2)
    # In bfloat16: NaN, infinity, minus infinity.
    bad = rng.choice([b"\xc0\x7f", b"\x80\x7f", b"\x80\xff"])
    write_file(folder / WEIGHTS, json.dumps(entries), data[:at] + bad + data[at + 2 :])
    return ((WEIGHTS, name, "not finite"),)


def config_does_not_fit(folder: Path, rng: random.Random) -> Words:
    field = rng.choice(["vocab_size", "hidden_size", "intermediate_size"])
    config = json.loads((folder / "config.json").read_text())
    if rng.random() < 0.5:
        config[field] = rng.choice([bad for bad in SIZES if bad is not None])
        words: tuple[str, ...] = ("config.json", field)
    else:  # a size that some model could have, but not this one
        config[field] = config[field] * 2
        words = (WEIGHTS, "tensor")
    (folder / "config.json").write_text(json.dumps(config))
    return (words,)


KINDS = (
    truncated,
    cut_in_the_data,
    padded,
    bit_flipped,
    header_length,
    offsets_overlap,
    offsets_are_not,
    shape_is_not,
    shape_wraps_around,
    shape_is_folded,
    dtype_is_another,
    field_is_missing,
    field_is_unknown,
    entry_is_not,
    tensor_is_renamed,
    tensor_is_there_twice,
    header_is_not_an_object,
    header_is_huge,
    value_is_not_finite,
    config_does_not_fit,
    bit_flipped,
)
