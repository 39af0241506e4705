"""Host memory that the device copies from and to directly."""

import ctypes
import logging
import weakref

import torch

from kvrt.errors import KvrtError
from kvrt_kernels.driver.calls import Calls

log = logging.getLogger(__name__)

Buffer = ctypes.Array[ctypes.c_uint8]


class PinnedMemory:
    """Page-locked host memory, given back some time after the last tensor over it is gone.

    While the device is open, the driver is never called by Python's garbage collector, which may
    run at any moment, also while a graph is recorded: what it finds unused waits for the next call
    here. Once the device is closed there is no such call any more, and no graph of it either: what
    is found then is given back at once, by whoever let go of it.

    Args:
        calls: of the device.
    """

    def __init__(self, calls: Calls) -> None:
        self._device = calls
        self._buffers: set[int] = set()  # addresses
        self._unused: list[int] = []
        self._calls: Calls | None = None
        self._closed = False

    def tensor(self, nbytes: int) -> torch.Tensor:
        """uint8 [nbytes]."""
        if self._calls is None:
            # Its own hold on the device, which must outlive that of others while a tensor lives.
            self._calls = self._device.another()
        self._free_unused()
        address = self._calls.host_create(nbytes)
        self._buffers.add(address)
        buffer = (ctypes.c_uint8 * nbytes).from_address(address)
        weakref.finalize(buffer, self._lost, address).atexit = False
        return torch.frombuffer(buffer, dtype=torch.uint8)

    def close(self) -> None:
        """Give back what is not used; the rest follows when its last tensor is gone."""
        self._closed = True
        self._free_unused()

    def _lost(self, address: int) -> None:
        self._unused.append(address)
        if self._closed:
            try:
                self._free_unused()
            except KvrtError as error:
                log.warning("host memory could not be given back: %s", error)

    def _free_unused(self) -> None:
        calls = self._calls
        if calls is None:
            return
        while True:
            # Off the list first: the collector, or another thread, may come in between.
            try:
                address = self._unused.pop()
            except IndexError:
                break
            try:
                calls.host_destroy(address)
            except KvrtError:
                self._unused.append(address)
                raise
            self._buffers.remove(address)
        if self._closed and not self._buffers:
            calls.close()
            self._calls = None
