"""The headers of GGUF files on the Hugging Face hub, without the weights behind them.

A header is fetched to a file as long as the whole one, in which all else is a hole: it takes the
header's bytes on the disk, and is read as the file would be.
"""

import os
import re
from pathlib import Path

from huggingface_hub import hf_hub_url
from huggingface_hub.utils import (  # type: ignore[attr-defined]
    build_hf_headers,
    get_session,
    hf_raise_for_status,
)

from kvrt.errors import ModelError
from kvrt.model.gguf.header import read_header

FIRST, TIMES = 4 << 20, 4
"""Bytes that are asked for first, and how many times as many each next time: most of a header is
its vocabulary."""

TOTAL = re.compile(r"bytes 0-\d+/(\d+)")


def fetch_header(repository: str, name: str, commit: str, folder: Path) -> Path:
    """A file with the header of a GGUF file in a repository, in a folder.

    Raises:
        ModelError: it is no GGUF file, or a damaged one.
        Exception: what the library raises where the hub does not answer.
    """
    path = folder / Path(name).name
    size = FIRST
    while True:
        total = _fetch(hf_hub_url(repository, name, revision=commit), size, path)
        try:
            starts = [entry.start for entry in read_header(path).tensors.values()]
        except ModelError:
            if size >= total:
                raise
        else:
            if min(starts, default=0) <= size:
                return path
        size *= TIMES


def _fetch(url: str, size: int, path: Path) -> int:
    """Write the first bytes of what is at an address; returns how long all of it is."""
    headers = build_hf_headers(headers={"Range": f"bytes=0-{size - 1}"})
    with get_session().stream("GET", url, headers=headers, follow_redirects=True) as response:
        hf_raise_for_status(response)
        found = TOTAL.fullmatch(response.headers.get("Content-Range", ""))
        left = size
        with open(path, "wb") as file:
            for data in response.iter_bytes():
                file.write(data[:left])
                left -= min(left, len(data))
                if not left:
                    break
            total = int(found[1]) if found else size - left
            os.truncate(file.fileno(), max(total, file.tell()))
    return total
