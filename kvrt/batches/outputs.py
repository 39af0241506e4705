"""The files that a batch ends with: each line of the input once, in its order, in one of them."""

import os
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Self

import msgspec

from kvrt.batches.lines import REQUEST
from kvrt.batches.words import Batch, End
from kvrt.batches.work import GOOD, WAITING, Work, sync_folder

IDS = random.Random()
"""Of ids that are no secret; the system's own takes the interpreter's lock twice for each."""

REASONS: Mapping[End, tuple[str, str]] = {
    "expired": ("batch_expired", "the batch's time was over before this line was answered"),
    "cancelled": ("batch_cancelled", "the batch was cancelled before this line was answered"),
}
"""What is said of lines that were not answered."""


class Outputs:
    """Two files, written beside their places and moved there once they are whole.

    Args:
        work: where the answers are.
        batch: that ends.
        input: its input.
        output, errors: the places; where a file would have no line there is none, but for an output
            that `always` is.
    """

    def __init__(
        self, work: Work, batch: Batch, input: Path, output: Path, errors: Path, *, always: bool
    ) -> None:
        self._work = work
        self._batch = batch
        self._paths = (output, errors)
        self._always = always
        self._mark = work.mark
        self._after = 0
        self._input = input.open("rb")
        self._files: list[BinaryIO] = []
        try:
            for path in self._paths:
                self._files.append(self._part(path).open("wb"))
        except BaseException:
            self._close()
            raise

    def step(self) -> bool:
        """Write some lines. False: there are no more."""
        rows = self._work.results(self._batch, self._after)
        for row in rows:
            if row.state == WAITING:
                self._files[1].write(self._unasked(row.at, row.size))
            else:
                self._files[0 if row.state == GOOD else 1].write(self._work.said(self._batch, row))
            self._after = row.number
        return bool(rows)

    def publish(self) -> list[int | None]:
        """Move the files to their places.

        Returns:
            The bytes of each; None: there is none.
        """
        sizes: list[int | None] = []
        for file, path, always in zip(self._files, self._paths, (self._always, False), strict=True):
            file.flush()
            os.fsync(file.fileno())
            size = file.tell()
            if size or always:
                os.replace(self._part(path), path)
                sizes.append(size)
            else:
                self._part(path).unlink()
                path.unlink(missing_ok=True)
                sizes.append(None)
        for folder in {path.parent for path in self._paths}:
            sync_folder(folder)
        return sizes

    def _unasked(self, at: int, size: int) -> bytes:
        """What is said of a line that was not answered."""
        self._input.seek(at)
        request = REQUEST.decode(self._input.read(size))
        assert self._batch.end is not None, "it ends"
        assert self._batch.end != "completed", "all lines have answers"
        code, message = REASONS[self._batch.end]
        return record(request.custom_id, error={"code": code, "message": message})

    def _part(self, path: Path) -> Path:
        """Where a file is written first."""
        return path.with_name(f".{path.name}{self._mark}.part")

    def _close(self) -> None:
        for file in (self._input, *self._files):
            file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()
        for path in self._paths:
            self._part(path).unlink(missing_ok=True)


def record(
    custom_id: str,
    *,
    status: int = 0,
    body: bytes = b"",
    error: Mapping[str, Any] | None = None,
) -> bytes:
    """A line of an output.

    Args:
        status, body: of the answer; the body is JSON.
        error: why there is none.
    """
    response = None
    if error is None:
        request = f"req-{IDS.getrandbits(96):024x}"
        response = {"status_code": status, "request_id": request, "body": msgspec.Raw(body)}
    line = {
        "id": f"batch_req_{IDS.getrandbits(96):024x}",
        "custom_id": custom_id,
        "response": response,
        "error": error,
    }
    return msgspec.json.encode(line) + b"\n"
