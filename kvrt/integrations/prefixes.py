"""What the prompts of a server begin with that it has computed before, as far as others know."""

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from itertools import takewhile

from kvrt.integrations.events.wire import AllBlocksCleared, BlockEvent, BlockRemoved, BlockStored

Key = bytes
"""A page, and all that comes before it."""

EVERYBODY = b""
"""Whose pages are told of: nobody's own."""

KEY_BYTES = 16


def keys_of(tokens: Sequence[int], page_size: int, whose: bytes = EVERYBODY) -> list[Key]:
    """Of the whole pages of a prompt, in order.

    Args:
        whose: who may share them. Equal pages of others are others.
    """
    keys = []
    last = whose
    whole = len(tokens) // page_size * page_size
    for start in range(0, whole, page_size):
        last = _next(last, tokens[start : start + page_size])
        keys.append(last)
    return keys


def _next(before: bytes, tokens: Sequence[int]) -> Key:
    page = array("q", tokens).tobytes()
    return hashlib.blake2b(before + page, digest_size=KEY_BYTES).digest()


class Prefixes:
    """What one server has cached.

    Two sources: what it tells by its events, which is so; and what it was asked before, which is
    likely for a while. The first lags behind, and leaves out what belongs to a single client.

    Args:
        most: pages that are remembered of the likely ones.
        seconds: for so long.
    """

    def __init__(self, most: int = 1 << 17, seconds: float = 600.0) -> None:
        self._most, self._seconds = most, seconds
        self._told: dict[int, Key] = {}
        self._copies: dict[Key, int] = {}  # a page may be told of by several names
        self._likely: OrderedDict[Key, float] = OrderedDict()
        self.page_size: int | None = None
        """Tokens of a page, as it tells; None: it has not told yet."""

    @property
    def pages(self) -> int:
        """That it has told of."""
        return len(self._copies)

    def hear(self, events: Iterable[BlockEvent]) -> None:
        """It tells."""
        for event in events:
            match event:
                case BlockStored():
                    self._store(event)
                case BlockRemoved(block_hashes=hashes):
                    for name in hashes:
                        self._remove(name)
                case AllBlocksCleared():
                    self.forget()

    def asked(self, keys: Iterable[Key], now: float) -> None:
        """It is asked for a prompt with these pages, and will have them."""
        for key in keys:
            self._likely[key] = now + self._seconds
            self._likely.move_to_end(key)
        while len(self._likely) > self._most:
            self._likely.popitem(last=False)

    def matched(self, keys: Sequence[Key], now: float) -> int:
        """How many of a prompt's first pages it has."""
        return sum(1 for _ in takewhile(lambda key: self._has(key, now), keys))

    def forget(self) -> None:
        """It has none any more, or nothing is known of it."""
        self._told.clear()
        self._copies.clear()
        self._likely.clear()

    def _has(self, key: Key, now: float) -> bool:
        return key in self._copies or self._likely.get(key, 0.0) > now

    def _store(self, event: BlockStored) -> None:
        """Pages whose parent was missed are left out: nothing says what comes before them."""
        parent: bytes | None = EVERYBODY
        if event.parent_block_hash is not None:
            parent = self._told.get(event.parent_block_hash)
        size = event.block_size
        if parent is None or size < 1 or len(event.token_ids) != size * len(event.block_hashes):
            return
        self.page_size = size
        for number, name in enumerate(event.block_hashes):
            self._remove(name)
            parent = _next(parent, event.token_ids[number * size : (number + 1) * size])
            self._told[name] = parent
            self._copies[parent] = self._copies.get(parent, 0) + 1

    def _remove(self, name: int) -> None:
        key = self._told.pop(name, None)
        if key is None:
            return
        self._likely.pop(key, None)
        self._copies[key] -= 1
        if not self._copies[key]:
            del self._copies[key]
