"""What a batch is begun with: a file of requests, or the requests."""

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from kvrt.errors import RequestError

IN_MEMORY = 8 << 20
"""Bytes of requests; more are kept in a file until they are sent."""

Requests = str | Path | Iterable[Mapping[str, Any]]
"""A file's path, or objects with ``custom_id``, ``url`` and ``body``; ``method`` is POST."""


@contextmanager
def opened(requests: Requests) -> Iterator[tuple[str, BinaryIO]]:
    """The name of a file, and the file.

    Raises:
        RequestError: it cannot be read.
    """
    if isinstance(requests, str | Path):
        path = Path(requests)
        try:
            file = path.open("rb")
        except OSError as error:
            raise RequestError(f"{path}: it cannot be read: {error.strerror}") from None
        with file:
            yield path.name, file
        return
    with tempfile.SpooledTemporaryFile(IN_MEMORY) as made:
        for each in requests:
            made.write(msgspec.json.encode({"method": "POST", **each}) + b"\n")
        made.seek(0)
        yield "requests.jsonl", made  # type: ignore[misc]


def endpoint(file: BinaryIO) -> str:
    """What the first line asks; all others ask the same.

    Raises:
        RequestError: it is no request.
    """
    line = file.readline()
    file.seek(0)
    try:
        url = msgspec.json.decode(line)["url"]
    except (msgspec.MsgspecError, KeyError, TypeError):
        url = None
    if not isinstance(url, str):
        raise RequestError("the first line is no request: it has no url", param="url")
    return url
