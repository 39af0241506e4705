"""Host memory that another process maps as well: pages are copied to and from it there."""

import mmap
import os

import torch
from torch import Tensor

from kvrt.errors import DeviceError, OutOfMemory


class Region:
    """Memory that is taken as it is written to, and goes with the processes that map it.

    Args:
        nbytes: of it.
    """

    def __init__(self, nbytes: int) -> None:
        self._file = os.memfd_create("kvrt-pages", os.MFD_CLOEXEC)
        os.ftruncate(self._file, nbytes)
        self.nbytes = nbytes
        self.path = f"/proc/{os.getpid()}/fd/{self._file}"
        """Where other processes of the same user find it."""
        self._tensor = _mapped(self._file, nbytes)
        self._given = False

    def host_buffer(self, nbytes: int) -> Tensor:
        """All of it, once: as `kvrt.kv.tiers.host.Buffers` wants it."""
        if self._given or nbytes > self.nbytes:
            raise OutOfMemory(f"there are {self.nbytes} bytes, and they are given once")
        self._given = True
        return self._tensor

    def place_of(self, data: Tensor) -> int:
        """Where something in it begins, in bytes."""
        return data.data_ptr() - self._tensor.data_ptr()

    def close(self) -> None:
        """Nobody can map it from now on. Safe to call twice."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def open_region(path: str, nbytes: int) -> Tensor:
    """The memory of a `Region` of another process: uint8 [nbytes].

    Raises:
        DeviceError: it is not there.
    """
    try:
        file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise DeviceError(
            f"memory for pages of another process, {path}: {error.strerror}",
            fix="run both processes as one user, where each sees the other's /proc",
        ) from None
    try:
        return _mapped(file, nbytes)
    finally:
        os.close(file)


def _mapped(file: int, nbytes: int) -> Tensor:
    return torch.frombuffer(mmap.mmap(file, nbytes), dtype=torch.uint8)
