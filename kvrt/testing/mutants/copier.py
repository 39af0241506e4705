"""Faults of copies."""

import threading
import time

import torch
from torch import Tensor

from kvrt.spi import Done, Ticket
from kvrt.wrappers.wrapper import WrappedCopier


class CopiesBeforeTheFence(WrappedCopier):
    def to_host(self, dst: Tensor, src: Tensor, after: Ticket | None = None) -> Ticket:
        return super().to_host(dst, src)

    def to_device(self, dst: Tensor, src: Tensor, after: Ticket | None = None) -> Ticket:
        return super().to_device(dst, src)

    def within(self, dst: Tensor, src: Tensor, after: Ticket | None = None) -> Ticket:
        return super().within(dst, src)


class TicketsComeTrueTooEarly(WrappedCopier):
    def to_host(self, dst: Tensor, src: Tensor, after: Ticket | None = None) -> Ticket:
        def work() -> None:
            time.sleep(0.05)
            self.inner.to_host(dst, src, after).wait()

        threading.Thread(target=work).start()
        return Done()


class DropsTheLastByte(WrappedCopier):
    def to_device(self, dst: Tensor, src: Tensor, after: Ticket | None = None) -> Ticket:
        dst, src = (tensor.view(-1).view(torch.uint8)[:-1] for tensor in (dst, src))
        return super().to_device(dst, src, after)
