"""Answers that are kept: who asks the very same again is told the same, and nothing is computed.

Only for what would be said again anyway: greedy requests, and those with a seed. What a key's owner
is told comes from what that owner has asked.
"""

import hashlib
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import TYPE_CHECKING

import msgspec

from kvrt.outputs import Delta, Result, TokenLogprobs
from kvrt.server.kept.source import Selection, Source

if TYPE_CHECKING:
    from kvrt.server.asking import Ask

ENTRY_BYTES = 512
TOKEN_BYTES = 40
LOGPROB_BYTES = 200
"""What Python takes for each, about."""

HEADER = "x-kvrt-cache"
"""Of a request: ``on``, ``off`` or ``similar``; of an answer: ``hit``, ``similar`` or ``miss``."""

SIMILAR = "similar"
"""An answer to nearly the same will do, too."""


class KeptAnswers:
    """Those of last time, the least recently wanted given up first. Belongs to the event loop.

    Args:
        most: bytes that they may take, about.
        always: for requests that do not say whether they want it.
    """

    def __init__(self, most: int, *, always: bool) -> None:
        self._most = most
        self._always = always
        self._all: OrderedDict[bytes, tuple[Sequence[Result], int, Source]] = OrderedDict()
        self.nbytes = self.hits = self.misses = 0

    def key(self, asks: "Sequence[Ask]", owner: str, wanted: Sequence[str]) -> bytes | None:
        """What an answer is found by; None: it is not to be kept, or would not be said again.

        Args:
            owner: who asks.
            wanted: what the request says of it.
        """
        on = wanted[-1].lower() in ("on", SIMILAR) if wanted else self._always
        if not on or not asks or not all(_repeats(ask) for ask in asks):
            return None
        told = msgspec.json.encode(list(asks), order="deterministic")
        return hashlib.sha256(owner.encode()).digest() + hashlib.sha256(told).digest()

    def find(self, key: bytes) -> Sequence[Result] | None:
        """An answer of before."""
        if key not in self._all:
            self.misses += 1
            return None
        self._all.move_to_end(key)
        self.hits += 1
        return self._all[key][0]

    def keep(self, key: bytes, source: Source, results: Sequence[Result]) -> None:
        """An answer, if it is whole and there is room for one like it."""
        size = ENTRY_BYTES + size_of(results)
        if not is_whole(results) or size > self._most or key in self._all:
            return
        self._all[key] = (results, size, source)
        self.nbytes += size
        while self.nbytes > self._most:
            _, (_, gone, _) = self._all.popitem(last=False)
            self.nbytes -= gone

    def forget(self, selection: Selection) -> int:
        """Some answers; how many."""
        gone = [key for key, (_, _, source) in self._all.items() if selection.has(source)]
        for key in gone:
            self.nbytes -= self._all.pop(key)[1]
        return len(gone)


class Told(AsyncIterator[Delta]):
    """The stream of an answer of before: each completion as one piece.

    Args:
        result: that answer.
    """

    request_id = ""
    tokens = 0
    """That were said: none had to be."""
    first = None
    seed = 0

    def __init__(self, result: Result) -> None:
        self._result = result
        self.prompt_token_ids: Sequence[int] = result.prompt_token_ids
        self.cached_tokens = len(result.prompt_token_ids)
        self._pieces = self._told()

    def _told(self) -> Iterator[Delta]:
        for each in self._result.completions:
            yield Delta(each.index, each.text, each.token_ids, each.finish_reason, each.logprobs)

    async def __anext__(self) -> Delta:
        for delta in self._pieces:
            return delta
        raise StopAsyncIteration

    async def result(self) -> Result:
        return self._result

    def close(self) -> None:
        """There is nothing to end."""


def _repeats(ask: "Ask") -> bool:
    return ask.params.greedy or ask.params.seed is not None


def is_whole(results: Sequence[Result]) -> bool:
    """Whether they ended as answers do."""
    reasons = {each.finish_reason for result in results for each in result.completions}
    return not reasons - {"stop", "length"}


def size_of(results: Sequence[Result]) -> int:
    """Bytes that they take, about."""
    return sum(map(_size, results))


def _size(result: Result) -> int:
    tokens = len(result.prompt_token_ids) + sum(len(e.token_ids) for e in result.completions)
    text = sum(4 * len(each.text) for each in result.completions)
    entries: list[TokenLogprobs] = [*(result.prompt_logprobs or ())]
    for each in result.completions:
        entries += each.logprobs or ()
    return TOKEN_BYTES * tokens + text + LOGPROB_BYTES * sum(1 + len(e.top) for e in entries)
