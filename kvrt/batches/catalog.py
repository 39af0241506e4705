"""Batches in the database: what there is, and what becomes of each."""

import json
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from kvrt.batches.database import Database
from kvrt.batches.deliveries import Deliveries
from kvrt.batches.words import Batch, End, Problem, Status, Tokens

COLUMNS = (
    'id, owner, endpoint, input, output, errors, period, created, expires, status, "end", times,'
    " metadata, problems, total, done, failed, prompt_tokens, cached_tokens, said_tokens,"
    " fingerprint, files_expire, priority, num"
)


class Batches:
    """All batches. Not for several threads at once.

    Args:
        database: where they are.
        clock: seconds since the epoch.
        deliveries: is told of each batch that is over.
    """

    def __init__(
        self,
        database: Database,
        clock: Callable[[], float] = time.time,
        deliveries: Deliveries | None = None,
    ) -> None:
        self._database = database
        self._deliveries = deliveries
        self._sql = database.sql
        self._clock = clock

    def create(
        self,
        owner: str,
        endpoint: str,
        input: str,
        outputs: tuple[str, str],
        *,
        window: str = "",
        seconds: int | None = None,
        metadata: Mapping[str, str] | None = None,
        files_expire: int | None = None,
        priority: int = 0,
    ) -> Batch:
        """A new one.

        Args:
            outputs: names of the files to be: of answers, and of errors.
            window, seconds: how long it may take, as it was said, and in seconds.
        """
        now = int(self._clock())
        batch = Batch(
            id=f"batch_{secrets.token_hex(12)}",
            owner=owner,
            endpoint=endpoint,
            input=input,
            output=outputs[0],
            errors=outputs[1],
            window=window,
            created=now,
            expires=None if seconds is None else now + seconds,
            metadata=metadata,
            files_expire=files_expire,
            priority=priority,
        )
        with self._database.transaction():
            self._sql.execute(
                "INSERT INTO batches (id, owner, endpoint, input, output, errors, period, created,"
                " expires, status, times, metadata, problems, total, done, failed, prompt_tokens,"
                " cached_tokens, said_tokens, fingerprint, files_expire, priority,"
                " journal_end) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, '{}', ?, '[]', 0, 0, 0, 0, 0,"
                " 0, ?, ?, ?, 0)",
                (
                    batch.id, owner, endpoint, input, *outputs, window, now, batch.expires,
                    batch.status, None if metadata is None else json.dumps(dict(metadata)),
                    b"", files_expire, priority,
                ),
            )  # fmt: skip
            found = self._sql.execute("SELECT num FROM batches WHERE id = ?", (batch.id,))
            (num,) = found.fetchone()
        return replace(batch, num=num)

    def get(self, id: str, owner: str | None = None) -> Batch | None:
        """One by its name; None: there is none, or it is not of `owner`."""
        rows = self._sql.execute(f"SELECT {COLUMNS} FROM batches WHERE id = ?", (id,))
        found = [_batch(row) for row in rows]
        return found[0] if found and owner in (None, found[0].owner) else None

    def page(self, owner: str, after: str | None, limit: int) -> list[Batch]:
        """The newest of an owner, or those before the one named."""
        last = 2**62 if after is None else getattr(self.get(after, owner), "num", 0)
        rows = self._sql.execute(
            f"SELECT {COLUMNS} FROM batches WHERE owner = ? AND num < ? ORDER BY num DESC LIMIT ?",
            (owner, last, limit),
        )
        return [_batch(row) for row in rows]

    def open(self) -> list[Batch]:
        """Those that are not over, the oldest first."""
        rows = self._sql.execute(
            f"SELECT {COLUMNS} FROM batches WHERE status IN"
            " ('validating', 'in_progress', 'finalizing', 'cancelling') ORDER BY num"
        )
        return [_batch(row) for row in rows]

    def unfinished(self) -> list[Batch]:
        """Those with lines that have no good answer: their journals are needed again, if these are
        asked once more."""
        rows = self._sql.execute(
            f'SELECT {COLUMNS} FROM batches WHERE done < total OR "end" IS NULL'
            " OR status = 'failed'"
        )
        found = map(_batch, rows)
        return [each for each in found if each.status != "failed" or each.total]

    def open_count(self, owner: str) -> int:
        return sum(batch.owner == owner for batch in self.open())

    def uses(self, file: str) -> bool:
        """Whether a batch that is not over needs a file."""
        return any(file in (each.input, each.output, each.errors) for each in self.open())

    def fail(self, batch: Batch, problems: Sequence[Problem]) -> None:
        """It cannot be begun; its lines are forgotten."""
        with self._database.transaction():
            self.forget_lines(batch)
            self._update(
                batch,
                status="failed",
                times=self._reached(batch, "failed"),
                problems=json.dumps([asdict(each) for each in problems]),
                total=0,
            )
            self._tell(batch, "failed")

    def give_up(self, id: str, problem: Problem) -> None:
        """Something is wrong that is no line's fault: what was answered stays, for `reopen`. One
        that was not begun is forgotten, as by `fail`."""
        batch = self.get(id)
        if batch is None or batch.over:
            return
        if batch.status == "validating" or not batch.total:
            self.fail(batch, [problem])
            return
        with self._database.transaction():
            self._update(
                batch,
                status="failed",
                times=self._reached(batch, "failed"),
                problems=json.dumps([asdict(problem)]),
            )
            self._tell(batch, "failed")

    def begin(self, batch: Batch, total: int, fingerprint: bytes) -> None:
        """All lines are there. One that ends already does."""
        with self._database.transaction():
            self._update(batch, total=total, fingerprint=fingerprint)
            now = self.get(batch.id)
            if now is not None and now.status == "validating":
                reached = self._reached(now, "in_progress")
                self._update(batch, status="in_progress", times=reached)

    def end(self, id: str, end: End) -> Batch | None:
        """No line is asked any more. A batch that ends already, or is over, stays as it is.

        Args:
            end: what it is to become.
        """
        with self._database.transaction():
            batch = self.get(id)
            if batch is not None and batch.status in ("validating", "in_progress"):
                status: Status = "cancelling" if end == "cancelled" else "finalizing"
                self._update(batch, status=status, end=end, times=self._reached(batch, status))
        return self.get(id)

    def finish(self, batch: Batch) -> None:
        """Within a transaction: its outputs are there."""
        assert batch.end is not None, "it ends"
        self._update(batch, status=batch.end, times=self._reached(batch, batch.end))
        self._tell(batch, batch.end)

    def reopen(self, batch: Batch, seconds: int | None = None) -> None:
        """Ask again what has no good answer.

        Args:
            seconds: how long that may take.
        """
        expires = None if seconds is None else int(self._clock()) + seconds
        with self._database.transaction():
            self._sql.execute(
                "UPDATE lines SET state = 0, worker = 0 WHERE batch = ? AND state = 2", (batch.num,)
            )
            self._update(
                batch, status="in_progress", end=None, failed=0, expires=expires, problems="[]"
            )

    def remove(self, batch: Batch) -> None:
        """Forget it, and its lines."""
        with self._database.transaction():
            self.forget_lines(batch)
            self._sql.execute("DELETE FROM batches WHERE num = ?", (batch.num,))

    def forget_lines(self, batch: Batch) -> None:
        """Within a transaction."""
        for table in ("lines", "kinds"):
            self._sql.execute(f"DELETE FROM {table} WHERE batch = ?", (batch.num,))

    def _tell(self, batch: Batch, status: Status) -> None:
        if self._deliveries is not None:
            self._deliveries.add(f"batch.{status}", batch.id)

    def _reached(self, batch: Batch, status: Status) -> str:
        return json.dumps({**batch.times, status: int(self._clock())})

    def _update(self, batch: Batch, **columns: Any) -> None:
        names = ", ".join(f'"{name}" = ?' for name in columns)
        values = (*columns.values(), batch.num)
        self._sql.execute(f"UPDATE batches SET {names} WHERE num = ?", values)


def _batch(row: Sequence[Any]) -> Batch:
    (id, owner, endpoint, input, output, errors, window, created, expires, status, end, times,
     metadata, problems, total, done, failed, prompt, cached, said, fingerprint, files_expire,
     priority, num) = row  # fmt: skip
    return Batch(
        id, owner, endpoint, input, output, errors, window, created, expires, status, end,
        json.loads(times), None if metadata is None else json.loads(metadata),
        tuple(Problem(**each) for each in json.loads(problems)), total, done, failed,
        Tokens(prompt, cached, said), fingerprint, files_expire, priority, num,
    )  # fmt: skip
