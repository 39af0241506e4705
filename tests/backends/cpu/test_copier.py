import pytest
import torch
from kvrt_cpu.copier import HostCopier
from kvrt_cpu.host import HostMemory

from kvrt.errors import OutOfMemory


class Later:
    """A ticket that notes what the destination held when somebody waited for it."""

    def __init__(self, seen: torch.Tensor) -> None:
        self.seen = seen
        self.before: list[int] = []

    def done(self) -> bool:
        return bool(self.before)

    def wait(self, timeout: float | None = None) -> bool:
        self.before = self.seen.tolist()
        return True


@pytest.fixture
def copier():
    return HostCopier(HostMemory())


@pytest.mark.parametrize("method", ["to_host", "to_device", "within"])
def test_a_copy_is_done_when_its_method_returns(copier, method):
    source = torch.randint(0, 255, (100_003,), dtype=torch.uint8)
    target = copier.host_buffer(100_003)
    ticket = getattr(copier, method)(target, source)
    assert ticket.done()
    assert ticket.wait(0)
    assert torch.equal(target, source)


def test_bytes_are_copied_as_they_are_whatever_the_dtypes_and_shapes(copier):
    source = torch.randn(6, 35)
    target = copier.host_buffer(source.nbytes)
    copier.to_host(target, source)
    back = torch.zeros(210, dtype=torch.float32)
    copier.to_device(back, target)
    assert torch.equal(back, source.view(-1))


def test_a_copy_waits_for_the_ticket_before_it(copier):
    target = torch.zeros(3, dtype=torch.uint8)
    after = Later(target)
    copier.within(target, torch.tensor([1, 2, 3], dtype=torch.uint8), after)
    assert after.before == [0, 0, 0]
    assert target.tolist() == [1, 2, 3]


def test_host_buffers_begin_at_a_cache_line(copier):
    assert all(copier.host_buffer(n).data_ptr() % 64 == 0 for n in (1, 63, 4096, 3 << 20))


def test_a_buffer_that_does_not_fit_is_out_of_memory_and_not_a_crash(copier):
    with pytest.raises(OutOfMemory, match="host buffer") as error:
        copier.host_buffer(1 << 50)
    assert error.value.needed == 1 << 50
    assert 0 < error.value.free < 1 << 50
