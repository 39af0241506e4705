"""Group commit: what comes within a moment is kept together, by one fsync."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Self

from kvrt.batches.words import Answered

WITHIN_S = 0.05
TOGETHER = 64
WAITING = 4 * TOGETHER
"""Answers, at most, that wait to be kept; others wait to wait."""


class Commits:
    """Keeps answers for good, soon. At the end of ``async with``, all are.

    Args:
        keep: does it.
    """

    def __init__(self, keep: Callable[[Sequence[Answered]], Awaitable[None]]) -> None:
        self._keep = keep
        self._waiting: list[Answered] = []
        self._changed = asyncio.Condition()
        self._ended = False
        self._error: BaseException | None = None

    async def put(self, answered: Answered) -> None:
        """It is to be kept.

        Raises:
            Exception: what keeping has failed with; nothing is kept any more.
        """
        async with self._changed:
            await self._changed.wait_for(lambda: self._error or len(self._waiting) < WAITING)
            if self._error is not None:
                raise self._error
            self._waiting.append(answered)
            self._changed.notify_all()

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._go_on())
        return self

    async def __aexit__(self, *_: object) -> None:
        async with self._changed:
            self._ended = True
            self._changed.notify_all()
        await self._task
        if self._error is not None:
            raise self._error

    async def _go_on(self) -> None:
        while not self._ended or self._waiting:
            async with self._changed:
                await self._changed.wait_for(lambda: self._waiting or self._ended)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(WITHIN_S):
                        await self._changed.wait_for(
                            lambda: len(self._waiting) >= TOGETHER or self._ended
                        )
                taken, self._waiting = self._waiting, []
            try:
                if taken:
                    await self._keep(taken)
            except Exception as error:
                self._error = error
                self._waiting.clear()
            async with self._changed:
                self._changed.notify_all()
            if self._error is not None:
                return
