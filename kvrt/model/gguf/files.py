"""A GGUF model's files: one, or several that were split off one, ``-00001-of-00003.gguf``."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kvrt.errors import ModelError
from kvrt.model.checkpoint.header import TensorEntry
from kvrt.model.files.jsonfile import Fields, shown
from kvrt.model.gguf.header import Header, Keys, read_header

SPLIT = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")
MAX_FILES = 1 << 10
AGAIN = "download the file again, or convert the model again with a newer llama.cpp"

OTHERS: Mapping[str, tuple[str, str]] = {
    "adapter": (
        "is an adapter (LoRA), not a model",
        "give the model that it was made for, and this file with --adapter",
    ),
    "mmproj": (
        "is the image or sound encoder of a model (mmproj), not the model",
        "give the other GGUF file, of which this is a companion",
    ),
    "imatrix": (
        "holds statistics for quantising a model (imatrix), not the model",
        "give the model's own GGUF file",
    ),
}
"""What else a GGUF file may be, by ``general.type``."""


@dataclass(frozen=True, slots=True)
class GGUF:
    """A model's files, with their headers checked.

    Args:
        path: the file, or the first.
        keys: what it says of the model.
        tensors: each with the file it is in.
    """

    path: Path
    keys: Keys
    tensors: Mapping[str, tuple[Path, TensorEntry]]

    def fields(self, prefix: str = "") -> Fields:
        """The keys that begin with `prefix`, without it, to be read with types and ranges."""
        return Fields(str(self.path), self.keys.under(prefix), prefix, missing=AGAIN)


def open_gguf(path: Path) -> GGUF:
    """Read the headers of a model's files. `path` is that of any of them.

    Raises:
        ModelError: a file is missing, damaged, or no model. The message names it.
    """
    header = read_header(path)
    _check_kind(header)
    count = Fields(str(path), header.keys).integer("split.count", 1, MAX_FILES, 1)
    if count == 1:
        return GGUF(path, header.keys, {n: (path, e) for n, e in header.tensors.items()})
    headers = [read_header(part) for part in split_paths(path, count)]
    tensors: dict[str, tuple[Path, TensorEntry]] = {}
    for number, part in enumerate(headers):
        fields = Fields(str(part.path), part.keys, missing=AGAIN)
        for name, expected in (("split.no", number), ("split.count", count)):
            if (value := fields.integer(name, 0, MAX_FILES)) != expected:
                raise fields.error(name, f"is {value}, but the file's name makes it {expected}")
        for name, entry in part.tensors.items():
            if name in tensors:
                raise ModelError(
                    f"{part.path}: tensor {shown(name)} is also in {tensors[name][0].name}"
                )
            tensors[name] = part.path, entry
    first = Fields(str(headers[0].path), headers[0].keys)
    whole = first.integer("split.tensors.count", 0, 1 << 31, len(tensors))
    if whole != len(tensors):
        raise first.error(
            "split.tensors.count", f"is {whole}, but the {count} files have {len(tensors)}"
        )
    return GGUF(headers[0].path, headers[0].keys, tensors)


def split_paths(path: Path, count: int) -> Sequence[Path]:
    """All files of a model that was split, by one of them.

    Raises:
        ModelError: the name says nothing of the others, or one of them is not there.
    """
    match = SPLIT.fullmatch(path.name)
    if match is None or int(match[3]) != count:
        raise ModelError(
            f"{path}: split.count is {count}, but the name is not that of one file of {count}",
            fix=f"give it its name back, which ends in -00001-of-{count:05}.gguf for the first",
        )
    paths = [path.with_name(f"{match[1]}-{n:05}-of-{count:05}.gguf") for n in range(1, count + 1)]
    missing = [part.name for part in paths if not part.exists()]
    if missing:
        raise ModelError(
            f"{path}: {missing[0]} is not beside it ({len(missing)} of {count} files are missing)",
            fix="the download is not complete: download the other files to the same folder",
        )
    return paths


def _check_kind(header: Header) -> None:
    kind = header.keys.get("general.type", "model")
    if isinstance(kind, str) and kind in OTHERS:
        what, fix = OTHERS[kind]
        raise ModelError(f"{header.path}: {what}", fix=fix)
    if header.keys.get("general.architecture") == "clip":
        what, fix = OTHERS["mmproj"]
        raise ModelError(f"{header.path}: {what}", fix=fix)
