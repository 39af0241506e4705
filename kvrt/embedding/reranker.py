"""`Reranker`: texts are sorted by how much they say about a question.

with kvrt.Reranker("BAAI/bge-reranker-v2-m3") as reranker:
    best = reranker.rank("How warm is it?", texts).order[0]
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kvrt.checks import Checks, Flag, Maybe, Text, check_options, check_request
from kvrt.embedding.closing import Closing
from kvrt.embedding.decoding import batches_of
from kvrt.embedding.embedder import CHOICES
from kvrt.embedding.judges import Judge, Pair, open_judge
from kvrt.embedding.opening import device_of, folder_of
from kvrt.errors import RequestError
from kvrt.spi import DType

OPENING: Checks = {
    name: check for name, check in CHOICES.items() if name not in ("pooling", "normalize")
}
LONGEST = 1 << 20
"""Characters of a question."""

RANK: Checks = {"query": Text(LONGEST), "instruction": Maybe(Text()), "truncate": Flag()}
"""Of each argument, what it may be."""


@dataclass(frozen=True, slots=True)
class Ranking:
    """How much texts say.

    Args:
        scores: of each, in the order that they were given in.
        tokens: how many the model read of each, the question's and what stands around included.
    """

    scores: tuple[float, ...]
    tokens: tuple[int, ...]

    @property
    def order(self) -> tuple[int, ...]:
        """Their numbers, the best first; of equals the first."""
        return tuple(sorted(range(len(self.scores)), key=lambda number: -self.scores[number]))


class Reranker(Closing):
    """A model that tells how much a text says about a question. Any thread may ask it; questions
    are taken in turn.

    Args:
        model: a folder in the Hugging Face layout, or a hub id.
        backend, device, dtype, threads, offline, revision: as of `RuntimeConfig`.

    Attributes:
        longest: tokens of a question and a text, at most.

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
        threads: int | None = None,
        offline: bool = False,
        revision: str | None = None,
    ) -> None:
        checked = check_options(
            OPENING,
            model=model,
            backend=backend,
            device=device,
            dtype=dtype,
            threads=threads,
            offline=offline,
            revision=revision,
        )
        self.name = str(model)
        folder = folder_of(model, "encoder", offline=offline, revision=revision)
        self._device = device_of(backend, checked["device"], threads)
        try:
            self._judge: Judge = open_judge(folder, self._device, dtype)
        except BaseException:
            self._device.close()
            raise
        self.longest = self._judge.longest
        super().__init__("reranker", self._judge, self._device)

    def rank(
        self,
        query: str,
        texts: Sequence[str],
        *,
        instruction: str | None = None,
        truncate: bool = False,
    ) -> Ranking:
        """How much each text says about a question, which depends on nothing but the two.

        Args:
            query: the question.
            texts: one or more.
            instruction: what is looked for, for models that are told so; None: what the model was
                trained with.
            truncate: leave out what is beyond the longest that there can be, at a text's end.

        Raises:
            RequestError: a text is too long, or an argument cannot be used.
            ConfigError: it is closed.
        """
        checked = check_request(RANK, query=query, instruction=instruction, truncate=truncate)
        listed: Any = texts
        if not isinstance(listed, list | tuple) or not all(isinstance(one, str) for one in listed):
            raise RequestError("texts is no list of texts", param="texts")
        pairs = [self._pair(checked, text) for text in listed]
        scores = [0.0] * len(pairs)
        with self._asked():
            for some in batches_of([len(pair.tokens) for pair in pairs]):
                told = self._judge.scores([pairs[number] for number in some])
                for number, score in zip(some, told, strict=True):
                    scores[number] = score
        return Ranking(tuple(scores), tuple(len(pair.tokens) for pair in pairs))

    def _pair(self, asked: dict[str, Any], text: str) -> Pair:
        pair = self._judge.pair(asked["query"], text, asked["instruction"], cut=asked["truncate"])
        if len(pair.tokens) > self.longest:
            raise RequestError(
                f"the question and a text have {len(pair.tokens)} tokens; the model takes"
                f" {self.longest}",
                param="query" if asked["truncate"] else "texts",
                fix="make them shorter, or ask for what is beyond to be left out",
            )
        return pair
