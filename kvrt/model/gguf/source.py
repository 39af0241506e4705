"""A GGUF file as the source of a model; see `kvrt.model.source`."""

from pathlib import Path

from kvrt.model.checkpoint.checkpoint import Checkpoint
from kvrt.model.generation import GenerationDefaults
from kvrt.model.gguf import checkpoint, tokens
from kvrt.model.gguf.files import open_gguf
from kvrt.model.gguf.spec import read_spec
from kvrt.model.spec import ModelSpec
from kvrt.model.tokens.tokenizer import Tokenizer


class GGUFSource:
    """A GGUF file, or several that were split off one.

    Args:
        predictor: see `read_spec`.
    """

    method = None

    def __init__(self, path: Path, *, predictor: bool = False) -> None:
        self._gguf = open_gguf(path)
        self.path = self.shape = self._gguf.path
        self.spec = read_spec(self._gguf, predictor=predictor)

    def checkpoint(self) -> Checkpoint:
        return checkpoint.open_checkpoint(self._gguf, self.spec)

    def generation(self, spec: ModelSpec) -> GenerationDefaults:
        fields = self._gguf.fields("general.sampling.")

        def number(name: str, low: float, high: float) -> float | None:
            return fields.number(name, low, high) if fields.has(name) else None

        top_k = fields.integer("top_k", -1, 1 << 31) if fields.has("top_k") else None
        temperature = number("temp", 0.0, 1e4)
        return GenerationDefaults(
            eos=spec.eos,
            sample=None if temperature is None else temperature > 0,
            temperature=temperature,
            top_k=None if top_k is None else max(top_k, 0),  # -1: all, as 0
            top_p=number("top_p", 0.0, 1.0),
            min_p=number("min_p", 0.0, 1.0),
            repetition_penalty=number("penalty_repeat", 1e-6, 1e6),
            file=str(self.path),
        )

    def tokenizer(self, spec: ModelSpec) -> Tokenizer | None:
        return tokens.read_tokenizer(self._gguf, spec.vocab)
