"""Checks of `Copier`."""

from collections.abc import Callable

import torch

from kvrt.spi import Copier, Ticket
from kvrt.wrappers.memory import CheckedMemory
from kvrt.wrappers.rules import Facts, broken, whole

Copy = Callable[[torch.Tensor, torch.Tensor, Ticket | None], Ticket]


class CheckedCopier:
    """`Copier` that refuses tensors its rules do not allow."""

    def __init__(self, facts: Facts, memory: CheckedMemory, inner: Copier) -> None:
        self._facts = facts
        self._memory = memory
        self._inner = inner

    def host_buffer(self, nbytes: int) -> torch.Tensor:
        self._facts.check_open("copier.host_buffer")
        if not whole(nbytes) or nbytes <= 0:
            raise broken("nbytes", repr(nbytes), "must be a positive number of bytes")
        buffer = self._inner.host_buffer(nbytes)
        if not isinstance(buffer, torch.Tensor):
            raise self._facts.wrong("host_buffer()", repr(buffer), "must be a tensor")
        if buffer.device.type != "cpu":
            raise self._facts.wrong("host_buffer()", buffer, "must be in host memory")
        if buffer.dtype != torch.uint8 or buffer.shape != (nbytes,):
            rule = f"the device must give uint8 [{nbytes}]"
            raise self._facts.wrong("host_buffer()", buffer, rule)
        return buffer

    def to_host(self, dst: torch.Tensor, src: torch.Tensor, after: Ticket | None = None) -> Ticket:
        self._check_on_host("dst", dst)
        self._facts.check_on_device("src", src)
        return self._copied("copier.to_host", self._inner.to_host, dst, src, after)

    def to_device(
        self, dst: torch.Tensor, src: torch.Tensor, after: Ticket | None = None
    ) -> Ticket:
        self._facts.check_on_device("dst", dst)
        self._check_on_host("src", src)
        return self._copied("copier.to_device", self._inner.to_device, dst, src, after)

    def within(self, dst: torch.Tensor, src: torch.Tensor, after: Ticket | None = None) -> Ticket:
        self._facts.check_on_device("dst", dst)
        self._facts.check_on_device("src", src)
        return self._copied("copier.within", self._inner.within, dst, src, after)

    def _copied(
        self, method: str, copy: Copy, dst: torch.Tensor, src: torch.Tensor, after: Ticket | None
    ) -> Ticket:
        self._facts.check_open(method)
        for name, tensor in (("dst", dst), ("src", src)):
            if not tensor.is_contiguous():
                raise broken(name, tensor, "must be contiguous")
            self._memory.check_mapped(name, tensor)
        nbytes = dst.nbytes
        if nbytes != src.nbytes:
            raise broken("src", f"{src.nbytes} bytes", f"dst has {nbytes} bytes; sizes must agree")
        if dst.device == src.device and abs(dst.data_ptr() - src.data_ptr()) < nbytes:
            raise broken("src", src, "overlaps dst")
        if after is not None and not callable(getattr(after, "wait", None)):
            raise broken("after", after, "must be a ticket or None")
        return self._facts.ticket(f"{method}()", copy(dst, src, after))

    def _check_on_host(self, argument: str, tensor: torch.Tensor) -> None:
        if not isinstance(tensor, torch.Tensor):
            raise broken(argument, repr(tensor), "must be a tensor")
        if tensor.device.type != "cpu":
            raise broken(argument, tensor, "must be in host memory")
