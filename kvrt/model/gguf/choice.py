"""Which GGUF file of several is meant."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from kvrt.errors import ModelError
from kvrt.model.gguf.files import SPLIT
from kvrt.model.jsonfile import few
from kvrt.model.shards import INDEX, SINGLE

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
