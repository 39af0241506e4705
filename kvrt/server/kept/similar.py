"""Answers to questions that are nearly the same: the vectors of what was asked last in both
conversations are as near as the operator says.

Near is not the same: "is 7 prime?" and "is 9 prime?" are near. So nobody is told such an answer who
has not asked for it with this very request, and nothing else of the two requests may differ: not
the workspace, the model, the messages before, nor any parameter.
"""

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import numpy as np

from kvrt.errors import RequestError
from kvrt.model.chat.templates import Chat
from kvrt.outputs import Result
from kvrt.server.kept.exact import ENTRY_BYTES, is_whole, size_of
from kvrt.server.kept.source import Selection, Source

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kvrt.embedding.embedder import Embedder
    from kvrt.server.asking import Ask

    Vector = NDArray[np.float32]

MOST_COMPARED = 2048
"""Questions that have all else in common; of more, those that were wanted least recently go."""


class Question(NamedTuple):
    """What is asked.

    Args:
        place: a digest of whose it is, and of all but its last words.
        text: those words.
    """

    place: bytes
    text: str


@dataclass(slots=True, eq=False)
class _Kept:
    place: bytes
    source: Source
    vector: "Vector"
    results: Sequence[Result]
    nbytes: int
    until: float


class SimilarAnswers:
    """See the module. Belongs to the event loop.

    Args:
        embedder: makes vectors of texts, of length 1 or any other.
        near: the cosine of two of them, at least.
        most: bytes that answers and vectors may take, about.
        seconds: that an answer is told for.
        clock: seconds.
    """

    def __init__(
        self,
        embedder: "Embedder",
        near: float,
        most: int,
        seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._embedder = embedder
        self._near = near
        self._most = most
        self._seconds = seconds
        self._clock = clock
        self._places: dict[bytes, OrderedDict[_Kept, None]] = {}
        self._all: OrderedDict[_Kept, None] = OrderedDict()
        self.nbytes = self.hits = self.misses = 0

    def question(self, asks: "Sequence[Ask]", model: str, tenant: str) -> Question | None:
        """Of a request; None: it is none that another's answer would do for: no conversation that
        ends with words of its user, or one with tools, or whose answer tells of its prompt.

        Args:
            model: which, of all that there ever were.
            tenant: who asks.
        """
        if len(asks) != 1 or not isinstance(chat := asks[0].prompt, Chat):
            return None
        last = chat.messages[-1] if chat.messages else {}
        text = last.get("content")
        if last.get("role") != "user" or not isinstance(text, str) or not text.strip():
            return None
        if chat.tools or asks[0].params.prompt_logprobs is not None:
            return None
        rest = replace(chat, messages=[*chat.messages[:-1], {**last, "content": ""}])
        told = [model, tenant, replace(asks[0], prompt=rest)]
        place = hashlib.sha256(msgspec.json.encode(told, order="deterministic")).digest()
        return Question(place, text)

    async def vector(self, question: Question) -> "Vector | None":
        """Of its text, of length 1; None: the embedder takes none that is so long."""
        try:
            made = await asyncio.to_thread(self._embedder.embed, [question.text])
        except RequestError:
            return None
        vector = made.vectors[0]
        length = float(np.linalg.norm(vector))
        return vector / length if length > 0 else None

    def find(self, question: Question, vector: "Vector") -> tuple[Sequence[Result], float] | None:
        """The answer to the nearest question, and how near it is; None: none is near enough."""
        self._expire(question.place)
        known = list(self._places.get(question.place, ()))
        if known:
            nearness = np.stack([each.vector for each in known]) @ vector
            best = int(nearness.argmax())
            if nearness[best] >= self._near:
                self.hits += 1
                kept = known[best]
                self._all.move_to_end(kept)
                self._places[question.place].move_to_end(kept)
                return kept.results, min(1.0, float(nearness[best]))
        self.misses += 1
        return None

    def keep(
        self, question: Question, vector: "Vector", source: Source, results: Sequence[Result]
    ) -> None:
        """An answer, if it is whole and there is room for one like it."""
        nbytes = ENTRY_BYTES + vector.nbytes + size_of(results)
        if not is_whole(results) or nbytes > self._most:
            return
        until = self._clock() + self._seconds
        kept = _Kept(question.place, source, vector, tuple(results), nbytes, until)
        place = self._places.setdefault(kept.place, OrderedDict())
        place[kept] = self._all[kept] = None
        self.nbytes += nbytes
        if len(place) > MOST_COMPARED:
            self._drop(next(iter(place)))
        while self.nbytes > self._most:
            self._drop(next(iter(self._all)))

    def forget(self, selection: Selection) -> int:
        """Some answers; how many."""
        gone = [kept for kept in self._all if selection.has(kept.source)]
        for kept in gone:
            self._drop(kept)
        return len(gone)

    def _expire(self, place: bytes) -> None:
        now = self._clock()
        for kept in [kept for kept in self._places.get(place, ()) if kept.until <= now]:
            self._drop(kept)

    def _drop(self, kept: _Kept) -> None:
        del self._all[kept], self._places[kept.place][kept]
        if not self._places[kept.place]:
            del self._places[kept.place]
        self.nbytes -= kept.nbytes
