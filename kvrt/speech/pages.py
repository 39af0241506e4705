"""Sounds and texts in pages, under one limit.

    sounds    a: 3 8 9 .. 2      written once, read by all texts that are about it
    texts     x: 7               about a, growing
              y: 5 1             about a as well

A sound is a row of pages as a text is, of another group of pages: with a span and a page table of
its own, since it is as long as it is, however long the texts about it are. What one group gives
back the other may take. A sound that no text is about any more stays until its memory is needed, or
it is forgotten: who asks about the same one again finds it by its name.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count

from torch import Tensor

from kvrt.errors import CapacityError, KvrtError
from kvrt.executor.local import LocalPages
from kvrt.kv.cache import KVCache
from kvrt.kv.pages.lanes import SeqId, Shortage
from kvrt.kv.pages.table import Change
from kvrt.kv.stats import CacheStats
from kvrt.model.speech.decoder import SpeechDecoder
from kvrt.spi import AttentionBatch, Device, KVLayout

MOST_PAGES = 2**31 - 1
"""That addresses may be asked for: as many as the device could ever hold."""


@dataclass(slots=True)
class Sound:
    """A sound whose keys and values are in pages.

    Args:
        name: of what it is: the same for the same sound.
        row: in the page table.
        users: how many hold it.
        used: when it was held last, as the clock says.
    """

    name: bytes
    row: int
    users: int = 0
    used: float = 0.0


@dataclass(frozen=True, slots=True)
class SpeechMemory:
    """Where the pages stand.

    Args:
        sounds: those of sounds.
        texts: those of texts.
        held_bytes: physical memory that is taken, of both together.
        limit_bytes: that may be.
    """

    sounds: CacheStats
    texts: CacheStats
    held_bytes: int
    limit_bytes: int


class _Group:
    """Pages of one kind of rows."""

    def __init__(self, device: Device, layout: KVLayout, limit_bytes: int) -> None:
        self.executor = LocalPages(device, [layout], MOST_PAGES)
        self.cache = KVCache(self.executor, limit_bytes=limit_bytes)
        self._steps = 0

    def begin_step(self) -> None:
        """What was free in the last step may be unmapped from here on."""
        self.executor.finish()
        self.cache.end_step(self._steps)
        self._steps += 1

    def grow(self, tokens: Mapping[SeqId, int], limit_bytes: int) -> KvrtError | None:
        """Make room for so many more tokens of each row; or the reason why that cannot be."""
        try:
            self.cache.set_memory_limit(limit_bytes)
        except CapacityError as error:
            return error
        change = self.cache.table.grow(tokens)
        if isinstance(change, Shortage):
            return CapacityError(
                f"memory_limit has {change.free} pages for what is computed now, which needs"
                f" {change.needed}",
                free=limit_bytes,
                fix="raise memory_limit, or give fewer sounds at once",
            )
        failed = self.cache.commit(change)
        return None if failed is None else failed.error

    def free(self, rows: Sequence[int]) -> None:
        """Forget some rows."""
        change = Change(self.cache.table)
        for row in rows:
            change = change.then(change.table.free(row))
        failed = self.cache.commit(change)
        if failed is not None:
            raise failed.error

    def batch(self, rows: Sequence[int], tokens: Sequence[int]) -> AttentionBatch:
        """What attention is asked."""
        [batch] = self.executor.batches(self.cache.step(rows, tokens))
        assert isinstance(batch, AttentionBatch), "keys and values are kept"
        return batch


class SpeechPages:
    """The pages of a model of speech.

    Args:
        device: closed by its owner after this.
        layout: of a page, of either group.
        decoder: reads and writes them.
        limit_bytes: of physical memory, for all.
        clock: seconds, from anywhere.

    Raises:
        CapacityError: the limit has no room for a single page.
    """

    def __init__(
        self,
        device: Device,
        layout: KVLayout,
        decoder: SpeechDecoder,
        limit_bytes: int,
        clock: Callable[[], float],
    ) -> None:
        self._decoder = decoder
        self.limit = limit_bytes
        """May be changed at any time, from any thread; see `shrink`."""
        self._clock = clock
        self._rows = count()
        self._held: dict[bytes, Sound] = {}  # the one that was held longest ago first
        self._sounds = _Group(device, layout, limit_bytes)
        try:
            self._texts = _Group(device, layout, limit_bytes)
        except BaseException:
            self._sounds.cache.close()
            raise

    # --- sounds --------------------------------------------------------------------------------

    def hold(self, name: bytes, states: Callable[[], Tensor], frames: int) -> Sound:
        """A sound, which stays until it is let go.

        Args:
            states: makes what the encoder has of it, [frames, hidden]; called if it is not here.

        Raises:
            CapacityError: there is no room for it beside those that are held.
        """
        sound = self._held.pop(name, None)
        if sound is None:
            sound = Sound(name, next(self._rows))
            made = states()
            self._grow(self._sounds, self._texts, {sound.row: frames})
            try:
                plan = self._decoder.plan(self._sounds.batch([sound.row], [frames]))
                self._decoder.hear(plan, made)
            except BaseException:
                self._sounds.free([sound.row])
                raise
        self._held[name] = sound
        sound.users += 1
        sound.used = self._clock()
        return sound

    def let_go(self, sound: Sound) -> None:
        """One holder less. It stays as long as there is room."""
        sound.users -= 1
        sound.used = self._clock()

    def forget(self, before: float) -> bool:
        """Give up what nobody holds and was used before a time, and all memory that no page needs.
        Returns whether any sound is left."""
        self._drop([sound for sound in self._unused() if sound.used <= before])
        for group in (self._sounds, self._texts):
            group.cache.idle()
        return bool(self._held)

    def shrink(self) -> None:
        """Give up as much as the limit says, of what can be given up now: what no page needs, then
        sounds that nobody holds, the one that was held longest ago first."""
        unused = self._unused()
        for group in (self._sounds, self._texts):
            group.cache.give_spare()
        while unused and self._is_over():
            self._drop([unused.pop(0)])
            self._sounds.cache.give_spare()

    # --- texts ---------------------------------------------------------------------------------

    def begin(self) -> int:
        """A text without tokens."""
        return next(self._rows)

    def grow(
        self, texts: Sequence[int], sounds: Sequence[Sound], tokens: Sequence[int]
    ) -> tuple[object, object]:
        """Make room for so many more tokens of each text; the plans that `SpeechDecoder.forward`
        needs to compute them.

        Args:
            sounds: what each text is about.

        Raises:
            CapacityError: there is no room for them.
        """
        self._grow(self._texts, self._sounds, dict(zip(texts, tokens, strict=True)))
        about = [sound.row for sound in sounds]
        return (
            self._decoder.plan(self._texts.batch(texts, tokens)),
            self._decoder.plan(self._sounds.batch(about, tokens)),
        )

    def end(self, texts: Sequence[int]) -> None:
        """Forget some texts; no harm if they are forgotten already."""
        self._texts.free([text for text in texts if text in self._texts.cache.table])

    # --- all -----------------------------------------------------------------------------------

    def stats(self) -> SpeechMemory:
        """From any thread, at any time."""
        sounds, texts = self._sounds.cache, self._texts.cache
        held = sounds.held_bytes + texts.held_bytes
        return SpeechMemory(sounds.stats(), texts.stats(), held, self.limit)

    def check_integrity(self) -> None:
        """See `KVCache.check_integrity`."""
        for group in (self._sounds, self._texts):
            group.cache.check_integrity()

    def close(self) -> None:
        """Give all memory and addresses back. Safe to call twice."""
        self._texts.cache.close()
        self._sounds.cache.close()

    def _grow(self, group: _Group, other: _Group, tokens: Mapping[SeqId, int]) -> None:
        """What is spare in the other group makes room, then sounds that nobody holds, the one that
        was held longest ago first."""
        group.begin_step()
        if self._is_over():
            self.shrink()
        while True:
            error = group.grow(tokens, self.limit - other.cache.held_bytes)
            if error is None:
                return
            if other.cache.held_bytes > other.cache.needed_bytes:
                other.cache.give_spare()
                if other.cache.held_bytes == other.cache.needed_bytes:
                    continue
            if not (unused := self._unused()):
                raise error
            self._drop(unused[:1])

    def _is_over(self) -> bool:
        return self._sounds.cache.held_bytes + self._texts.cache.held_bytes > self.limit

    def _unused(self) -> list[Sound]:
        return [sound for sound in self._held.values() if not sound.users]

    def _drop(self, sounds: Sequence[Sound]) -> None:
        for sound in sounds:
            del self._held[sound.name]
        self._sounds.free([sound.row for sound in sounds])
