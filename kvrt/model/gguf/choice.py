"""Which GGUF file of several is meant."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from kvrt.errors import ModelError
from kvrt.model.checkpoint.shards import INDEX, SINGLE
from kvrt.model.files.jsonfile import few
from kvrt.model.gguf.files import SPLIT

DEFAULTS = ("Q4_K_M", "Q8_0")
"""Taken where no quantisation is named: the first of them that is there."""

COMPANIONS = ("mmproj", "imatrix")
"""In the names of files that go with a model, and are none."""


def file_within(folder: Path) -> Path | None:
    """The GGUF file of a folder that has no safetensors; None if there is none.

    Raises:
        ModelError: there are several.
    """
    if (folder / SINGLE).exists() or (folder / INDEX).exists():
        return None
    names = models(path.name for path in folder.glob("*.gguf"))
    if len(names) > 1:
        raise ModelError(
            f"{folder}: has {len(names)} GGUF models: {few(names)}",
            fix=f"name one of them, such as {folder / names[0]}",
        )
    return folder / names[0] if names else None


def models(names: Iterable[str]) -> Sequence[str]:
    """The models among the names of GGUF files, in their order: each by its first file."""
    return sorted(
        name
        for name in names
        if not any(word in name.lower() for word in COMPANIONS)
        and not ((match := SPLIT.fullmatch(name)) and match[2] != "00001")
    )


def choose(repository: str, names: Iterable[str], quantization: str | None) -> list[str]:
    """The files of a repository's model in one quantisation, the one to be opened first.

    Args:
        names: of all its GGUF files; they may be in subfolders.
        quantization: as it stands in the name of the file, such as Q4_K_M; None: one of `DEFAULTS`,
            or the only one there is.

    Raises:
        ModelError: there is none, or there are several; the message names them.
    """
    there = models(names)
    tags = DEFAULTS if quantization is None else (quantization,)
    found = next((some for tag in tags if (some := _tagged(there, tag))), None)
    if found is None:
        found = there if quantization is None else []
    if len(found) != 1:
        what = f"no GGUF model{'' if quantization is None else f' {quantization}'}"
        listed = few([Path(name).name for name in found or there])
        raise ModelError(
            f"{repository}: has {f'{len(found)} GGUF models' if found else what}"
            + (f": {listed}" if found else f", but {listed}" if there else ""),
            fix=f"name one by what is in its name: {repository}:{DEFAULTS[0]}"
            if there
            else "look for a repository with GGUF files",
        )
    first = found[0]
    if match := SPLIT.fullmatch(first):
        count = int(match[3])
        return [f"{match[1]}-{n:05}-of-{count:05}.gguf" for n in range(1, count + 1)]
    return [first]


def _tagged(names: Sequence[str], tag: str) -> Sequence[str]:
    """Those whose name has a quantisation, which is a word of its own: Q4_K is not Q4_K_M. Of
    UD-Q4_K_M and Q4_K_M, the first is found by its whole name only."""
    word = re.compile(rf"(?<![A-Za-z0-9])(?<!UD-){re.escape(tag)}(?![A-Za-z0-9_])", re.IGNORECASE)
    return [name for name in names if word.search(Path(name).name)]
