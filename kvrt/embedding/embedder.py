"""`Embedder`: texts become vectors.

with kvrt.Embedder("all-MiniLM-L6-v2") as embedder:
    vectors = embedder.embed(["a text", "another"]).vectors
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kvrt.checks import Checks, Flag, Maybe, Of, OneOf, Text, Whole, check_options, check_request
from kvrt.config import OPTIONS
from kvrt.embedding.closing import Closing
from kvrt.embedding.decoding import batches_of, open_texts
from kvrt.embedding.dense import Dense, read_dense
from kvrt.embedding.opening import device_of, folder_of
from kvrt.embedding.pooling import finished, pooled
from kvrt.embedding.recipe import POOLINGS, Pooling, read_recipe
from kvrt.errors import RequestError
from kvrt.model.config import is_decoder
from kvrt.model.tokens.tokenizer import read_tokenizer
from kvrt.spi import DType

CHOICES: Checks = {
    "model": Of((str, Path)),
    "pooling": Maybe(OneOf(POOLINGS)),
    "normalize": Maybe(Flag()),
    **{name: OPTIONS[name] for name in ("backend", "device", "dtype", "threads", "offline")},
    "revision": OPTIONS["revision"],
}
EMBED: Checks = {
    "prompt": Maybe(Text()),
    "truncate": Flag(),
    "dimensions": Maybe(Whole(1, 1 << 20)),
}
"""Of each argument, what it may be."""


@dataclass(frozen=True, slots=True)
class Embeddings:
    """What texts have become.

    Args:
        vectors: float32 [texts, dimensions].
        tokens: how many each text has.
    """

    vectors: NDArray[np.float32]
    tokens: tuple[int, ...]


class Embedder(Closing):
    """A model that makes vectors of texts. Any thread may ask it; texts are taken in turn.

    Args:
        model: a folder in the Hugging Face layout, or a hub id.
        backend, device, dtype, threads, offline, revision: as of `RuntimeConfig`.
        pooling: of token states; None: as the model's files say, else an encoder's mean, and a
            decoder's last.
        normalize: vectors to the length 1; None: as the files say, else yes.

    Attributes:
        dimensions: of a vector, where no fewer are asked for.
        longest: tokens of a text, at most.
        prompts: what the model puts before texts, by names.

    Raises:
        ConfigError: an option has a bad value.
        BackendUnavailable: the backend cannot be used here.
        ModelError: the model is missing, damaged or not supported.
        CapacityError: it does not fit in the memory there is.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        backend: str = "auto",
        device: int = 0,
        dtype: DType | Literal["auto"] = "auto",
        pooling: Pooling | None = None,
        normalize: bool | None = None,
        threads: int | None = None,
        offline: bool = False,
        revision: str | None = None,
    ) -> None:
        given = {
            "model": model,
            "backend": backend,
            "device": device,
            "dtype": dtype,
            "pooling": pooling,
            "normalize": normalize,
            "threads": threads,
            "offline": offline,
            "revision": revision,
        }
        checked = check_options(CHOICES, **given)
        self.name = str(model)
        folder = folder_of(model, "encoder", offline=offline, revision=revision)
        recipe = read_recipe(folder, "last" if is_decoder(folder / "config.json") else "mean")
        self.pooling: Pooling = checked["pooling"] or recipe.pooling
        self.normalize = recipe.normalize if normalize is None else checked["normalize"]
        self.prompts = recipe.prompts
        self._prompt = recipe.prompt
        self._without_prompt = recipe.without_prompt
        self._device = device_of(backend, checked["device"], threads)
        try:
            self._encoder = open_texts(folder, self._device, dtype)
            self._vocab = self._encoder.vocab
            self._tokenizer = read_tokenizer(folder, self._vocab)
            self.dimensions = self._encoder.width
            self._dense: list[Dense] = []
            for path in recipe.dense:
                self._dense.append(read_dense(path, self.dimensions))
                self.dimensions = len(self._dense[-1].weight)
        except BaseException:
            self._device.close()
            raise
        self.longest = min(recipe.longest or self._encoder.positions, self._encoder.positions)
        super().__init__("embedder", self._encoder, self._device)

    def embed(
        self,
        texts: str | Sequence[str | Sequence[int]],
        *,
        prompt: str | None = None,
        truncate: bool = False,
        dimensions: int | None = None,
    ) -> Embeddings:
        """The vectors of some texts, which depend on nothing but the text itself.

        Args:
            texts: one or more, or the token ids of each.
            prompt: the name of what is put before them, of the model's `prompts`; None: what its
                files say.
            truncate: leave out what is beyond the longest text there can be.
            dimensions: of a vector, the first ones; for models that are trained for that.

        Raises:
            RequestError: a text is too long or has no tokens, or an argument cannot be used.
            ConfigError: it is closed.
        """
        checked = check_request(EMBED, prompt=prompt, truncate=truncate, dimensions=dimensions)
        wanted: int = checked["dimensions"] or self.dimensions
        if wanted > self.dimensions:
            raise RequestError(
                f"dimensions is {wanted}; the model has {self.dimensions}", param="dimensions"
            )
        before = self._before(checked["prompt"])
        listed: Sequence[Any] = [texts] if isinstance(texts, str) else texts
        if not isinstance(listed, list | tuple):
            raise RequestError("texts is no list of texts", param="texts")
        tokens = [self._tokens(text, before, cut=checked["truncate"]) for text in listed]
        vectors = np.empty((len(tokens), wanted), np.float32)
        skipped = self._length_of(before) if before and self._without_prompt else 0
        with self._asked():
            for some in batches_of([len(own) for own in tokens]):
                states = self._encoder.states([tokens[number] for number in some])
                for number, own in zip(some, states, strict=True):
                    vector = pooled(own[min(skipped, len(own) - 1) :], self.pooling)
                    for dense in self._dense:
                        vector = dense.of(vector)
                    vector = finished(vector, normalize=self.normalize, dimensions=wanted)
                    vectors[number] = vector.numpy()
        return Embeddings(vectors, tuple(map(len, tokens)))

    def _before(self, name: str | None) -> str:
        """What is put before texts."""
        if name is None:
            name = self._prompt
        if name is None:
            return ""
        if name not in self.prompts:
            known = ", ".join(self.prompts) or "none"
            raise RequestError(f"prompt is no name that the model has: {known}", param="prompt")
        return self.prompts[name]

    def _tokens(self, text: object, before: str, *, cut: bool) -> list[int]:
        tokens = self._ids(text, before)
        if len(tokens) > self.longest:
            if not cut:
                raise RequestError(
                    f"a text has {len(tokens)} tokens; the model takes {self.longest}",
                    param="texts",
                    fix="make it shorter, or ask for what is beyond to be left out",
                )
            # The token that ends a text stays, if its tokenizer puts one there.
            end = tokens[-1:] if self._ends(tokens[-1]) else []
            tokens = [*tokens[: self.longest - len(end)], *end]
        if not tokens:
            raise RequestError("a text has no tokens", param="texts")
        return tokens

    def _length_of(self, prompt: str) -> int:
        """Tokens of a prompt in front of a text."""
        tokens = self._tokenizer.encode(prompt)
        return len(tokens) - self._ends(tokens[-1])

    def _ends(self, token: int) -> bool:
        return self._tokenizer.encode("")[-1:] == [token]

    def _ids(self, text: object, before: str) -> list[int]:
        if isinstance(text, str):
            return self._tokenizer.encode(before + text)
        vocab = self._vocab
        if not isinstance(text, list | tuple) or any(
            type(token) is not int or not 0 <= token < vocab for token in text
        ):
            raise RequestError(
                f"texts has one that is neither text nor token ids below {vocab}", param="texts"
            )
        return list(text)
