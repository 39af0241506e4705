"""What is no Hugging Face checkpoint, but stands where one should: told by its first bytes, or by
its neighbours.

Whoever gives such a file or folder does not lack a file; something else than kvrt reads it, or one
step is left to do. So the errors say what it is, and what to give in its place.
"""

from collections.abc import Sequence
from pathlib import Path

from kvrt.errors import ModelError

FIRST_BYTES: Sequence[tuple[bytes, str, str]] = (
    (
        b"version https://git-lfs.github.com/spec/",
        "is a Git LFS pointer, three lines that stand for the file",
        "run `git lfs install` and `git lfs pull` in its folder, or download the file itself",
    ),
    (
        b"GGUF",
        "is a GGUF file, not what its name says",
        "give the GGUF file itself as the model",
    ),
    (b"<!DOCTYPE html", "is a web page", "download the file itself, not the page that shows it"),
    (b"<html", "is a web page", "download the file itself, not the page that shows it"),
    (
        b"PK\x03\x04",
        "is a zip archive, as PyTorch's pickles are, which kvrt never loads",
        "convert it with transformers' save_pretrained where you trust it",
    ),
)
PEEK = max(len(first) for first, _, _ in FIRST_BYTES)
PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
OF_TRAINING = ("training_args", "optimizer", "scheduler", "rng_state")
"""What pickles beside a checkpoint are called that are no weights."""

ADAPTER = "adapter_config.json"


def told_by_first_bytes(path: Path, data: bytes) -> ModelError | None:
    """The error about a file that begins with `data`, if that says what it is."""
    for first, what, fix in FIRST_BYTES:
        if data.lower().startswith(first.lower()):
            return ModelError(f"{path}: {what}", fix=fix)
    return None


def told_by_neighbours(folder: Path) -> ModelError | None:
    """The error about a folder that lacks a checkpoint's files, if others say what it is."""
    if (folder / ADAPTER).exists():
        return ModelError(
            f"{folder}: is an adapter (LoRA), not a model: it has {ADAPTER}",
            fix=f"give the model that it was made for, and --adapter {folder}",
        )
    inner = _model_within(folder)
    if inner is not None:
        return ModelError(
            f"{folder}: is not a model's folder, but has one in it", fix=f"give {inner}"
        )
    for path in (path for pattern in PICKLES for path in sorted(folder.glob(pattern))):
        if not path.name.startswith(OF_TRAINING):
            return ModelError(
                f"{path}: is a pickle, which kvrt never loads because unpickling can run code,"
                " and there are no safetensors",
                fix="convert it where you trust it: python -c 'from transformers import"
                f' AutoModelForCausalLM as M; M.from_pretrained("{folder}")'
                f'.save_pretrained("{folder}-safetensors")\'',
            )
    return None


def _model_within(folder: Path) -> Path | None:
    """The model below this folder: in the hub's cache, in the snapshot that main means."""
    main = folder / "refs" / "main"
    if main.is_file():
        with main.open(errors="replace") as file:
            snapshot = folder / "snapshots" / file.read(40)
        if (snapshot / "config.json").exists():
            return snapshot
        for path in sorted(snapshot.glob("*.gguf")):
            return path
    for pattern in ("*/config.json", "snapshots/*/config.json"):
        for path in sorted(folder.glob(pattern)):
            return path.parent
    for pattern in ("*/*.gguf", "snapshots/*/*.gguf"):
        for path in sorted(folder.glob(pattern)):
            return path
    return None
