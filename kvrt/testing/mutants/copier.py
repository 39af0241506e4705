"""Faults of copies."""

import threading
import time
from collections.abc import Callable

import torch
from torch import Tensor

from kvrt.spi import Done, Ticket
from kvrt.testing.mutants.mutant import Mutant
from kvrt.wrappers.parts import WrappedCopier

Copy = Callable[[Tensor, Tensor, Ticket | None], Ticket]


class Late:
    """A ticket of work that a thread does a little later."""

    def __init__(self, work: Callable[[], Ticket]) -> None:
        self._finished = threading.Event()
        self._work = work
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        time.sleep(0.05)
        self._work().wait()
        self._finished.set()

    def done(self) -> bool:
        return self._finished.is_set()

    def wait(self, timeout: float | None = None) -> bool:
        return self._finished.wait(timeout)


class CopiesBeforeTheFence(WrappedCopier):
    def to_host(self, dst: Tensor, src: Tensor, after: Ticket | None = None) -> Ticket:
        return super().to_host(dst, src)

    def to_device(self, dst: Tensor, src: Tensor, after: Ticket | None = None) -> Ticket:
        return super().to_device(dst, src)

    def within(self, dst: Tensor, src: Tensor, after: Ticket | None = None) -> Ticket:
        return super().within(dst, src)


class LateCopier(WrappedCopier):
    """Copies run on threads of their own, a little later, correctly but that the device's
    `synchronize` does not know of them."""

    def to_host(self, dst: Tensor, src: Tensor, after: Ticket | None = None) -> Ticket:
        return self.late(self.inner.to_host, dst, src, after)

    def to_device(self, dst: Tensor, src: Tensor, after: Ticket | None = None) -> Ticket:
        return self.late(self.inner.to_device, dst, src, after)

    def within(self, dst: Tensor, src: Tensor, after: Ticket | None = None) -> Ticket:
        return self.late(self.inner.within, dst, src, after)

    def late(self, copy: Copy, dst: Tensor, src: Tensor, after: Ticket | None) -> Ticket:
        return Late(lambda: copy(dst, src, after))


class TicketsComeTrueTooEarly(LateCopier):
    def late(self, copy: Copy, dst: Tensor, src: Tensor, after: Ticket | None) -> Ticket:
        super().late(copy, dst, src, after)
        return Done()


class LargeTicketsComeTrueTooEarly(LateCopier):
    """Of copies of more than a mebibyte."""

    def late(self, copy: Copy, dst: Tensor, src: Tensor, after: Ticket | None) -> Ticket:
        ticket = super().late(copy, dst, src, after)
        return Done() if dst.nbytes > 2**20 else ticket


class TakesNoPatienceForDone(LateCopier):
    """A ticket that is waited for with a timeout of zero says True at once."""

    def late(self, copy: Copy, dst: Tensor, src: Tensor, after: Ticket | None) -> Ticket:
        return _Hasty(super().late(copy, dst, src, after))


class _Hasty:
    def __init__(self, inner: Ticket) -> None:
        self.done = inner.done
        self._inner = inner

    def wait(self, timeout: float | None = None) -> bool:
        return timeout == 0 or self._inner.wait(timeout)


class HasOneStagingBuffer(LateCopier):
    """All copies to the device go through the same host memory, whether it is in use or not."""

    staging: Tensor | None = None

    def to_device(self, dst: Tensor, src: Tensor, after: Ticket | None = None) -> Ticket:
        if self.staging is None or self.staging.nbytes < src.nbytes:
            self.staging = torch.empty(src.nbytes, dtype=torch.uint8)
        staged = self.staging[: src.nbytes]
        staged.copy_(src.view(-1).view(torch.uint8))
        return super().to_device(dst, staged, after)


class LosesWhatIsBeyond(WrappedCopier):
    """Copies at most `most` bytes."""

    most = 2**16

    def to_host(self, dst: Tensor, src: Tensor, after: Ticket | None = None) -> Ticket:
        return super().to_host(*self._cut(dst, src), after)

    def to_device(self, dst: Tensor, src: Tensor, after: Ticket | None = None) -> Ticket:
        return super().to_device(*self._cut(dst, src), after)

    def _cut(self, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        dst, src = (tensor.view(-1).view(torch.uint8)[: self.most] for tensor in tensors)
        return dst, src


class LosesWhatIsBeyondAMebibyte(LosesWhatIsBeyond):
    most = 2**20 + 3


class RoundsAddressesDown(WrappedCopier):
    """Reads device memory from a multiple of 16 on."""

    def to_host(self, dst: Tensor, src: Tensor, after: Ticket | None = None) -> Ticket:
        src = src.view(-1).view(torch.uint8)
        back = min(src.data_ptr() % 16, src.storage_offset())
        return super().to_host(
            dst, src.as_strided(src.shape, (1,), src.storage_offset() - back), after
        )


class DropsTheLastByte(WrappedCopier):
    def to_device(self, dst: Tensor, src: Tensor, after: Ticket | None = None) -> Ticket:
        dst, src = (tensor.view(-1).view(torch.uint8)[:-1] for tensor in (dst, src))
        return super().to_device(dst, src, after)


MUTANTS = {
    "copies_before_the_fence": Mutant("copier", copier=CopiesBeforeTheFence),
    "tickets_come_true_too_early": Mutant("copier", copier=TicketsComeTrueTooEarly),
    "large_tickets_come_true_too_early": Mutant(
        "copier::test_what_a_ticket_promised_is_there", copier=LargeTicketsComeTrueTooEarly
    ),
    "takes_no_patience_for_done": Mutant(
        "copier::test_a_ticket_does_not_come_true_before_the_copy", copier=TakesNoPatienceForDone
    ),
    "has_one_staging_buffer": Mutant(
        "copier::test_copies_in_flight_at_once_keep_their_own_bytes", copier=HasOneStagingBuffer
    ),
    "synchronizes_without_copies": Mutant(
        "copier::test_synchronize_waits_for_copies", copier=LateCopier
    ),
    "drops_the_last_byte": Mutant("copier", copier=DropsTheLastByte),
    "loses_what_is_beyond_64_kib": Mutant(
        "copier::test_bytes_go_to_the_device_and_come_back", copier=LosesWhatIsBeyond
    ),
    "loses_what_is_beyond_a_mebibyte": Mutant(
        "copier::test_bytes_go_to_the_device_and_come_back", copier=LosesWhatIsBeyondAMebibyte
    ),
    "rounds_addresses_down": Mutant(
        "copier::test_addresses_may_be_odd", copier=RoundsAddressesDown
    ),
}
