"""Host memory that the device copies from and to directly."""

import ctypes
import logging
import weakref

import torch

from kvrt.errors import KvrtError

from .calls import Context, call

log = logging.getLogger(__name__)

Buffer = ctypes.Array[ctypes.c_uint8]


class PinnedMemory:
    """Page-locked host memory, given back some time after the last tensor over it is gone.

    The runtime is never called by Python's garbage collector, which may run at any moment, also
    while a graph is recorded: what it finds unused waits for the next call here.
    """

    def __init__(self, index: int) -> None:
        self._index = index
        self._buffers: set[int] = set()  # addresses
        self._unused: list[int] = []
        self._context: Context | None = None
        self._closed = False

    def tensor(self, nbytes: int) -> torch.Tensor:
        """uint8 [nbytes]."""
        if self._context is None:
            # Its own hold on the context, which must outlive the device while a tensor lives.
            self._context = Context(self._index)
        self._free_unused()
        self._context.use()
        address = int(call("hipHostMalloc", nbytes, 0, needed=nbytes))
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
        context = self._context
        if context is None:
            return
        while True:
            # Off the list first: the collector, or another thread, may come in between.
            try:
                address = self._unused.pop()
            except IndexError:
                break
            try:
                context.use()
                call("hipHostFree", address)
            except KvrtError:
                self._unused.append(address)
                raise
            self._buffers.remove(address)
        if self._closed and not self._buffers:
            context.close()
            self._context = None
