"""The lines of a batch that have no good answer, and why."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from kvrt.batches.lines import REQUEST
from kvrt.batches.outputs import REASONS
from kvrt.batches.words import Batch
from kvrt.batches.work import BAD, Work


@dataclass(frozen=True, slots=True)
class Failure:
    """One line.

    Args:
        line: its number in the input, from 1.
        custom_id: its name; None: the input is gone.
        status_code: of its answer; None: it was not answered.
        code: for programs.
        message: for people.
        param: the field at fault.
    """

    line: int
    custom_id: str | None
    status_code: int | None
    code: str | None
    message: str
    param: str | None = None


class _Error(msgspec.Struct):
    message: str = ""
    code: str | int | None = None
    param: str | None = None


class _Body(msgspec.Struct):
    error: _Error


class _Response(msgspec.Struct):
    status_code: int
    body: _Body


class _Record(msgspec.Struct):
    custom_id: str
    response: _Response


RECORD = msgspec.json.Decoder(_Record)


def failures(work: Work, batch: Batch, input: Path, after: int, most: int) -> list[Failure]:
    """Lines in the order of the input: those whose answer is an error, and if the batch is over,
    those that were not asked.

    Args:
        input: where it is, if it still is.
        after: the number of the last line that is not wanted.
        most: as many, at most.

    Raises:
        OSError: the answers cannot be read.
    """
    try:
        return [*_failures(work, batch, input, after, most)]
    finally:
        if batch.over:
            work.close_journal(batch)


def _failures(work: Work, batch: Batch, input: Path, after: int, most: int) -> Iterator[Failure]:
    for result in work.bad(batch, after, most, unasked=batch.over):
        if result.state == BAD:
            record = RECORD.decode(work.said(batch, result))
            error, code = record.response.body.error, record.response.body.error.code
            yield Failure(
                result.number,
                record.custom_id,
                record.response.status_code,
                None if code is None else str(code),
                error.message,
                error.param,
            )
        else:
            assert batch.end not in (None, "completed"), "all lines have answers"
            name = _name(input, result.at, result.size)
            yield Failure(result.number, name, None, *REASONS[batch.end])


def _name(input: Path, at: int, size: int) -> str | None:
    try:
        with input.open("rb") as file:
            file.seek(at)
            return REQUEST.decode(file.read(size)).custom_id
    except OSError:
        return None
