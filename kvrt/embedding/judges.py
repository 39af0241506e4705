"""How much a text says about a question, by the kinds of models that tell."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import torch

from kvrt.embedding.decoding import TextDecoder
from kvrt.errors import ModelError
from kvrt.model.config import is_decoder
from kvrt.model.encoder.encoder import load_encoder
from kvrt.model.encoder.families import ENCODERS
from kvrt.model.encoder.spec import read_encoder
from kvrt.model.encoder.weights import EncoderFiles
from kvrt.model.files.jsonfile import Fields, read_object, shown
from kvrt.model.tokens.tokenizer import Tokenizer, read_tokenizer
from kvrt.spi import Device, DType


class Pair(NamedTuple):
    """A question and a text as a model reads them: the ids of their tokens, and their types."""

    tokens: list[int]
    kinds: list[int]


class Judge(Protocol):
    """A model that tells."""

    longest: int
    """Tokens of a pair, at most."""

    def pair(self, query: str, text: str, instruction: str | None, *, cut: bool) -> Pair:
        """What the model reads of a pair; `cut`: at most `longest`, of the text only its
        beginning."""

    def scores(self, pairs: Sequence[Pair]) -> list[float]:
        """One for each pair, larger where the text says more."""

    def close(self) -> None:
        """Give the memory back."""


class CrossEncoder:
    """An encoder with a head that makes one number of the first token's state.

    Args:
        folder: of the model.
        device: it runs on.
        dtype: of its matrices.

    Raises:
        ModelError: it has no such head, or is damaged.
    """

    def __init__(self, folder: Path, device: Device, dtype: DType | Literal["auto"]) -> None:
        path = folder / "config.json"
        spec = read_encoder(path)
        if not ENCODERS[spec.architecture].head:
            raise ModelError(
                f"{path}: architectures names {spec.architecture}, which has no head that compares"
                " texts",
                fix="kvrt embed makes vectors of texts with it",
            )
        if spec.labels != 1:
            raise ModelError(f"{path}: the head has {spec.labels} labels; supported is 1")
        self._sigmoid = _ends_in_sigmoid(Fields(str(path), read_object(path)))
        self._first, self._last = EncoderFiles(folder, spec).head()
        self._encoder = load_encoder(folder, device, dtype=dtype)
        self._tokenizer = read_tokenizer(folder, spec.vocab)
        self.longest = self._encoder.positions

    def pair(self, query: str, text: str, instruction: str | None, *, cut: bool) -> Pair:
        first = query if instruction is None else f"{instruction} {query}"
        return Pair(*self._tokenizer.encode_pair(first, text, self.longest if cut else None))

    def scores(self, pairs: Sequence[Pair]) -> list[float]:
        states = self._encoder.states(
            [pair.tokens for pair in pairs], [pair.kinds for pair in pairs]
        )
        found = []
        for own in states:  # one after the other, so that a score depends on its pair alone
            wide = torch.tanh(self._first.weight @ own[0] + self._first.bias)
            score = self._last.weight @ wide + self._last.bias
            found.append(float(score.sigmoid() if self._sigmoid else score))
        return found

    def close(self) -> None:
        self._encoder.close()


def _ends_in_sigmoid(fields: Fields) -> bool:
    """Whether a score is from 0 to 1, by what sentence-transformers has written; it is, where it
    says nothing."""
    name = "sbert_ce_default_activation_function"
    said = fields.text(name) if fields.has(name) else ""
    if fields.has("sentence_transformers"):
        section = fields.section("sentence_transformers")
        said = section.text("activation_fn", said)
    kind = said.rpartition(".")[2] or "Sigmoid"
    if kind not in ("Sigmoid", "Identity"):
        raise fields.error("activation_fn", f"is {shown(kind)}; supported are Sigmoid, Identity")
    return kind == "Sigmoid"


BEFORE = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and"
    ' the Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n'
    "<|im_start|>user\n"
)
BEHIND = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
"""What Qwen3-Reranker was trained with."""


class YesOrNo:
    """A decoder that is asked whether a text answers a question: the share of yes.

    Args:
        folder: of the model.
        device: it runs on; closed by the caller after this.
        dtype: of its matrices.

    Raises:
        ModelError: it has no tokens for such a question, or is damaged.
    """

    def __init__(self, folder: Path, device: Device, dtype: DType | Literal["auto"]) -> None:
        self._decoder = TextDecoder(folder, device, dtype=dtype, head=True)
        try:
            found = self._decoder.model.tokenizer
            self._tokenizer: Tokenizer = found or read_tokenizer(folder, self._decoder.vocab)
            self._yes, self._no = self._token("yes"), self._token("no")
            self._token("<|im_start|>")
        except BaseException:
            self.close()
            raise
        self._before, self._behind = self._ids(BEFORE), self._ids(BEHIND)
        self.longest = self._decoder.positions

    def pair(self, query: str, text: str, instruction: str | None, *, cut: bool) -> Pair:
        asked = f"<Instruct>: {instruction or INSTRUCTION}\n<Query>: {query}\n<Document>: {text}"
        tokens = self._ids(asked)
        if cut:
            tokens = tokens[: max(0, self.longest - len(self._before) - len(self._behind))]
        return Pair([*self._before, *tokens, *self._behind], [])

    def scores(self, pairs: Sequence[Pair]) -> list[float]:
        logits = self._decoder.logits([pair.tokens for pair in pairs])
        return (logits[:, self._yes] - logits[:, self._no]).sigmoid().tolist()

    def close(self) -> None:
        self._decoder.close()

    def _ids(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, special=False)

    def _token(self, text: str) -> int:
        ids = self._ids(text)
        if len(ids) != 1:
            raise ModelError(
                f"{self._decoder.model.path}: has no token for {text}, so it cannot be asked as"
                " Qwen3-Reranker is",
                fix="take a reranker: an encoder with a head, or a model trained like that one",
            )
        return ids[0]


def open_judge(folder: Path, device: Device, dtype: DType | Literal["auto"]) -> Judge:
    """The reranker in a folder.

    Raises:
        ModelError: it is none that is supported, or is damaged.
        ConfigError: `dtype` cannot be used here.
        CapacityError: it does not fit in the device's free memory.
    """
    if is_decoder(folder / "config.json"):
        return YesOrNo(folder, device, dtype)
    return CrossEncoder(folder, device, dtype)
