"""What a model is read from: a folder in the Hugging Face layout, or a GGUF file."""

from pathlib import Path
from typing import Protocol

from kvrt.model.checkpoint import checkpoint
from kvrt.model.checkpoint.checkpoint import Checkpoint
from kvrt.model.config import read_config
from kvrt.model.files.jsonfile import Fields, read_object
from kvrt.model.generation import GenerationDefaults, read_generation
from kvrt.model.packed.config import read_method
from kvrt.model.packed.method import Method
from kvrt.model.spec import ModelSpec
from kvrt.model.tokens import tokenizer
from kvrt.model.tokens.tokenizer import TOKENIZER, Tokenizer


class Source(Protocol):
    """Where a model is, and what is there.

    Args:
        path: its folder or file.
        shape: the file that says its shape, for errors.
        spec: its shape, as that file has it.
        method: how its matrices are kept that are several tensors each, if any are.
    """

    @property
    def path(self) -> Path: ...

    @property
    def shape(self) -> Path: ...

    @property
    def spec(self) -> ModelSpec: ...

    @property
    def method(self) -> Method | None: ...

    def checkpoint(self) -> Checkpoint:
        """Its weights, with their headers checked."""

    def generation(self, spec: ModelSpec) -> GenerationDefaults:
        """What its author recommends for sampling."""

    def tokenizer(self, spec: ModelSpec) -> Tokenizer | None:
        """Its tokenizer, if it has one that kvrt reads."""


class Folder:
    """A folder in the Hugging Face layout.

    Args:
        head, predictor: see `read_config`.
    """

    def __init__(self, path: Path, *, head: bool = True, predictor: bool = False) -> None:
        self.path = path
        self.shape = path / "config.json"
        self.spec = read_config(self.shape, head=head, predictor=predictor)
        self.method = read_method(Fields(str(self.shape), read_object(self.shape)))

    def checkpoint(self) -> Checkpoint:
        return checkpoint.open_checkpoint(self.path, self.spec, self.method)

    def generation(self, spec: ModelSpec) -> GenerationDefaults:
        return read_generation(self.path, spec)

    def tokenizer(self, spec: ModelSpec) -> Tokenizer | None:
        there = (self.path / TOKENIZER).exists()
        return tokenizer.read_tokenizer(self.path, spec.vocab) if there else None


def open_source(path: Path, *, head: bool = True, predictor: bool = False) -> Source:
    """What is at a path: a GGUF file, or the folder of a checkpoint.

    Args:
        head: False: an output matrix is not needed.
        predictor: with the layer that predicts further tokens, if it has one.

    Raises:
        ModelError: it is damaged, or of no model that kvrt supports.
    """
    if path.is_dir():
        return Folder(path, head=head, predictor=predictor)
    from kvrt.model.gguf.source import GGUFSource  # a start from a folder is sooner without

    return GGUFSource(path, predictor=predictor)
