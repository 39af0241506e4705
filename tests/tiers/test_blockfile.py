"""A file that is read and written in place."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from kvrt.kv.tiers.blockfile import BLOCK, BlockFile


@pytest.fixture(params=[True, False], ids=["direct", "through the cache"])
def direct(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def aligned(nbytes: int) -> np.ndarray:
    """Memory that a disk may access itself."""
    whole = np.zeros(nbytes + BLOCK, np.uint8)
    start = -whole.ctypes.data % BLOCK
    return whole[start : start + nbytes]


def test_the_page_cache_is_passed_by_only_where_that_is_asked_for(
    tmp_path: Path, direct: bool
) -> None:
    file = BlockFile(tmp_path / "file", writable=True, direct=direct)
    flags = Path(f"/proc/self/fdinfo/{file._file}").read_text().split("flags:")[1].split()[0]
    assert bool(int(flags, 8) & os.O_DIRECT) == file.direct
    assert direct or not file.direct
    file.close()


@pytest.mark.parametrize("nbytes", [1, 100, BLOCK, BLOCK + 1, 3 * BLOCK])
@pytest.mark.parametrize("shift", [0, 8])
def test_what_is_written_is_read_wherever_its_memory_is(
    tmp_path: Path, direct: bool, nbytes: int, shift: int
) -> None:
    file = BlockFile(tmp_path / "file", writable=True, direct=direct)
    wrote = aligned(nbytes + shift)[shift:]
    wrote[:] = np.arange(nbytes) % 251 + 1
    file.write(np.full(4 * BLOCK, 255, np.uint8), 0)
    file.write(wrote, BLOCK)
    read = aligned(nbytes + shift)[shift:]
    file.read(read, BLOCK)
    assert (read == wrote).all()
    file.read(read[:BLOCK], 0)
    assert (read[:BLOCK] == 255).all(), "what is beside it stays"
    file.close()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("at", [0, BLOCK, 2 * BLOCK, 9 * BLOCK])
def test_past_its_end_a_file_cannot_be_read(tmp_path: Path, direct: bool, at: int) -> None:
    file = BlockFile(tmp_path / "file", writable=True, direct=direct)
    file.write(np.zeros(2 * BLOCK, np.uint8), 0)
    for into in (aligned(3 * BLOCK), aligned(3 * BLOCK)[8:]):
        with pytest.raises(OSError, match="the file ends too early") as caught:
            file.read(into, at)
        assert caught.value.errno == errno.EIO
    file.close()
