"""A folder of batches, and the one thread of this process that works on it."""

import asyncio
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import ParamSpec, TypeVar

from kvrt.batches.catalog import Batches
from kvrt.batches.claims import SharedWork
from kvrt.batches.database import Database
from kvrt.batches.deliveries import Deliveries
from kvrt.batches.files import Files
from kvrt.batches.postgres import Postgres
from kvrt.batches.sqlite import Sqlite
from kvrt.batches.work import Work

P = ParamSpec("P")
R = TypeVar("R")


class Store:
    """See the module. The loop asks it by `do`.

    Args:
        folder: made if it is missing.
        clock: seconds since the epoch.
        tells: deliveries are kept of each batch that is over.
        url: of a database of PostgreSQL, for several workers that all see the folder; None: SQLite
            keeps it, for one process.

    Raises:
        ConfigError: the folder or the database cannot be used, or another process has it.
    """

    def __init__(
        self,
        folder: Path,
        clock: Callable[[], float] = time.time,
        *,
        tells: bool = False,
        url: str | None = None,
    ) -> None:
        self.clock = clock
        self.database: Database = Sqlite(folder) if url is None else Postgres(folder, url)
        self.deliveries = Deliveries(self.database.sql, clock)
        self.batches = Batches(self.database, clock, self.deliveries if tells else None)
        self.shared = url is not None
        self.work = SharedWork(self.database) if self.shared else Work(self.database)
        self.files = Files(self.database, clock)
        self._thread = ThreadPoolExecutor(1, "kvrt-batches")
        self._sweep()

    async def do(self, call: Callable[P, R], *args: P.args, **named: P.kwargs) -> R:
        """A call of its parts, on its thread, in turn with all others.

        Raises:
            OSError: what it does cannot be kept, or not be read.
        """
        whole = partial(call, *args, **named)
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, whole)
        except sqlite3.Error as error:
            raise OSError(f"the database: {error}") from error

    def close(self) -> None:
        """What was begun ends first. Safe to call twice."""
        self._thread.shutdown()
        self.work.close()
        self.database.close()

    def _sweep(self) -> None:
        """What a kill may have left goes."""
        self.work.sweep(self.batches.unfinished)
        open = self.batches.open()
        self.files.sweep([name for each in open for name in (each.output, each.errors)])
