"""Copies between host and device: their bytes, their order, and their tickets."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Self

import pytest
import torch

from kvrt.spi import Device, Ticket
from kvrt.testing.paged import Case, PagedKV, randoms

SECONDS = 60.0
SIZES = [1, 127, 4096, 2**20 + 3, 2**24 + 5]


class Later:
    """A ticket of work that a thread does a little later. Done when it is done, and not before."""

    def __init__(self, work: Callable[[], object]) -> None:
        self._finished = threading.Event()
        self._work = work
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        time.sleep(0.05)
        self._work()
        self._finished.set()

    def done(self) -> bool:
        return self._finished.is_set()

    def wait(self, timeout: float | None = None) -> bool:
        return self._finished.wait(timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """A test that failed leaves no thread that uses the device."""
        self._thread.join()


class Gate:
    """A ticket, as of another device, that comes true when the test opens it."""

    def __init__(self) -> None:
        self._opened = threading.Event()

    def open(self) -> None:
        self._opened.set()

    def done(self) -> bool:
        return self._opened.is_set()

    def wait(self, timeout: float | None = None) -> bool:
        return self._opened.wait(timeout)


def noise(nbytes: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (nbytes,), generator=generator, dtype=torch.uint8)


def there(device: Device, tensor: torch.Tensor) -> torch.Tensor:
    """Those numbers on the device. They are there: a copy does not wait for compute."""
    moved = tensor.to(device.info.torch_device, copy=True)
    device.synchronize()
    return moved


def on_device(device: Device, nbytes: int) -> torch.Tensor:
    return there(device, torch.zeros(nbytes, dtype=torch.uint8))


def host_noise(device: Device, nbytes: int, seed: int = 0) -> torch.Tensor:
    buffer = device.copier.host_buffer(nbytes)
    buffer.copy_(noise(nbytes, seed))
    return buffer


@pytest.fixture(scope="module")
def defers(device: Device) -> bool:
    """Whether a copy behind another device's ticket returns while that is not done."""
    gate, target, source = Gate(), device.copier.host_buffer(1), on_device(device, 1)
    thread = threading.Thread(target=device.copier.to_host, args=(target, source, gate))
    thread.start()
    thread.join(1.0)
    returned = not thread.is_alive()
    gate.open()
    thread.join()
    device.synchronize()
    return returned


@pytest.fixture
def in_chunk(device: Device) -> Iterator[torch.Tensor]:
    """The bytes of one mapped chunk."""
    span = device.memory.reserve(device.info.granularity)
    chunk = device.memory.create()
    device.memory.map(span, 0, chunk)
    yield device.memory.tensor(span, "float32").view(torch.uint8)
    device.synchronize()
    device.memory.unmap(span, 0, chunk)
    device.memory.destroy(chunk)
    device.memory.release(span)


@pytest.mark.parametrize("nbytes", SIZES)
def test_bytes_go_to_the_device_and_come_back(device: Device, nbytes: int) -> None:
    sent, target = host_noise(device, nbytes), on_device(device, nbytes)
    assert device.copier.to_device(target, sent).wait(SECONDS)
    assert torch.equal(target.cpu(), sent)
    back = device.copier.host_buffer(nbytes)
    assert device.copier.to_host(back, target).wait(SECONDS)
    assert torch.equal(back, sent)


@pytest.mark.parametrize("nbytes", SIZES)
def test_bytes_are_copied_within_the_device(device: Device, nbytes: int) -> None:
    both = there(device, torch.cat((noise(nbytes), torch.zeros(nbytes, dtype=torch.uint8))))
    assert device.copier.within(both[nbytes:], both[:nbytes]).wait(SECONDS)
    assert torch.equal(both[nbytes:].cpu(), noise(nbytes))
    assert torch.equal(both[:nbytes].cpu(), noise(nbytes))


@pytest.mark.parametrize("nbytes", [5, 1000, 2**24 + 5])
@pytest.mark.parametrize("offset", [1, 7])
def test_addresses_may_be_odd(device: Device, nbytes: int, offset: int) -> None:
    """Not one byte before or behind the target is touched, either."""
    part, size = slice(offset, offset + nbytes), nbytes + 2 * offset
    sent = host_noise(device, size)
    first, second = on_device(device, size), on_device(device, size + 2)
    back = device.copier.host_buffer(size)
    back.fill_(0)
    assert device.copier.to_device(first[part], sent[part]).wait(SECONDS)
    assert device.copier.within(second[part], first[part]).wait(SECONDS)
    assert device.copier.to_host(back[part], second[part]).wait(SECONDS)
    expected = torch.zeros(size, dtype=torch.uint8)
    expected[part] = sent[part]
    assert torch.equal(first.cpu(), expected), "to the device"
    assert torch.equal(second[:size].cpu(), expected), "within the device"
    assert torch.equal(back, expected), "to the host"


def test_a_mapped_chunk_is_copied_to_and_from(device: Device, in_chunk: torch.Tensor) -> None:
    sent = host_noise(device, len(in_chunk))
    assert device.copier.to_device(in_chunk, sent).wait(SECONDS)
    half = len(in_chunk) // 2
    assert device.copier.within(in_chunk[:half], in_chunk[half:]).wait(SECONDS)
    back = device.copier.host_buffer(len(in_chunk))
    assert device.copier.to_host(back, in_chunk).wait(SECONDS)
    assert torch.equal(back, torch.cat((sent[half:], sent[half:])))


def test_only_sizes_in_bytes_need_to_agree(device: Device) -> None:
    source = there(device, torch.rand(3, 5))
    back = torch.zeros(3 * 5 * 2, dtype=torch.bfloat16)
    assert device.copier.to_host(back, source).wait(SECONDS)
    assert torch.equal(back.view(torch.float32), source.cpu().view(-1))


def test_ordinary_host_memory_will_do(device: Device) -> None:
    target, back = on_device(device, 1000), torch.zeros(1000, dtype=torch.uint8)
    assert device.copier.to_device(target, noise(1000)).wait(SECONDS)
    assert device.copier.to_host(back, target).wait(SECONDS)
    assert torch.equal(back, noise(1000))


@pytest.mark.parametrize("method", ["to_host", "to_device", "within"])
def test_a_copy_starts_after_the_ticket_it_was_given(device: Device, method: str) -> None:
    """`after` may be any ticket, also one of another device: here, of a thread on the host."""
    source = host_noise(device, 4096) if method == "to_device" else on_device(device, 4096)
    target = device.copier.host_buffer(4096) if method == "to_host" else on_device(device, 4096)
    source.fill_(1)
    target.fill_(0)
    device.synchronize()
    copy = getattr(device.copier, method)

    def write() -> None:
        source.fill_(2)
        device.fence().wait(SECONDS)

    with Later(write) as later:
        ticket: Ticket = copy(target, source, later)
        assert ticket.wait(SECONDS)
        assert (target == 2).all(), "the copy did not wait for `after`"


def test_a_copy_after_a_fence_sees_what_compute_has_stored(device: Device) -> None:
    compute, kv = device.info.compute_dtypes[0], device.info.kv_formats[0]
    case = Case(contexts=(40,), queries=(40,), layers=1, compute=compute, kv=kv)
    with PagedKV(device, case.layout, 3) as pages:
        batch = pages.batch([pages.take(40)], case.contexts, case.queries)
        k, v = (randoms(device, compute, 40, 2, 64, seed=seed) for seed in (1, 2))
        plan = device.attention.plan(batch)
        device.attention.append(plan, 0, k, v)
        start = int(batch.page_table[0, 0]) * case.layout.page_stride
        keys = pages.tensor[start : start + 16 * 64]  # the first page's keys of head 0
        back = torch.zeros_like(keys, device="cpu")
        assert device.copier.to_host(back, keys, device.fence()).wait(SECONDS)
        assert torch.equal(back.view(16, 64), k[:16, 0].cpu().to(back.dtype))


def test_copies_form_a_chain_by_their_tickets(device: Device) -> None:
    sent, back = host_noise(device, 5000), device.copier.host_buffer(5000)
    here, beside = on_device(device, 5000), on_device(device, 5000)
    first = device.copier.to_device(here, sent)
    second = device.copier.within(beside, here, first)
    third = device.copier.to_host(back, beside, second)
    assert third.wait(SECONDS)
    assert first.done()
    assert second.done()
    assert torch.equal(back, sent)


def test_tickets_may_be_asked_in_any_order_and_stay_done(device: Device) -> None:
    count = 16
    sources = [there(device, noise(1000, seed=n)) for n in range(count)]
    targets = [device.copier.host_buffer(1000) for _ in range(count)]
    tickets = [device.copier.to_host(t, s) for t, s in zip(targets, sources, strict=True)]
    for ticket in reversed(tickets):
        assert ticket.wait(SECONDS)
        assert ticket.done()
        assert ticket.wait(0)
    assert all(ticket.done() for ticket in tickets)
    for n, target in enumerate(targets):
        assert torch.equal(target, noise(1000, seed=n))


def test_a_ticket_comes_true_for_one_who_only_polls(device: Device) -> None:
    target, source = device.copier.host_buffer(4096), there(device, noise(4096))
    ticket = device.copier.to_host(target, source)
    deadline = time.monotonic() + SECONDS
    while not ticket.done():
        assert time.monotonic() < deadline, "done() never became true"
        time.sleep(0.001)
    assert torch.equal(target, noise(4096))


@pytest.mark.parametrize("method", ["to_host", "to_device", "within"])
def test_a_ticket_does_not_come_true_before_the_copy(
    device: Device, defers: bool, method: str
) -> None:
    """A zero timeout asks; the answer is that of done()."""
    if not defers:
        pytest.skip("the device waits for other devices' tickets on the host")
    nbytes = 2**20 + 5
    source = host_noise(device, nbytes) if method == "to_device" else there(device, noise(nbytes))
    target = device.copier.host_buffer(nbytes) if method == "to_host" else on_device(device, nbytes)
    copy, gate = getattr(device.copier, method), Gate()
    ticket: Ticket = copy(target, source, gate)
    asked = ticket.done(), ticket.wait(0), ticket.wait(0.01), ticket.wait(0), ticket.done()
    gate.open()
    assert asked == (False,) * 5
    assert ticket.wait(SECONDS)
    assert torch.equal(target.cpu(), noise(nbytes))


@pytest.mark.parametrize("nbytes", [2**20, 2**24 + 5])
def test_what_a_ticket_promised_is_there(device: Device, nbytes: int) -> None:
    """For one who only polls, and for one who waits."""
    expected = noise(nbytes)
    source = there(device, expected)
    for seconds in (0.0, SECONDS):
        target = device.copier.host_buffer(nbytes)
        target.fill_(0)
        ticket = device.copier.to_host(target, source)
        while not ticket.wait(seconds):
            assert seconds == 0, "a minute was not enough"
        assert torch.equal(target, expected)


@pytest.mark.parametrize("method", ["to_host", "to_device", "within"])
def test_copies_in_flight_at_once_keep_their_own_bytes(
    device: Device, defers: bool, method: str
) -> None:
    count, nbytes = 4, 5000
    contents = [noise(nbytes, seed=n) for n in range(count)]
    sources = [
        host_noise(device, nbytes, n) if method == "to_device" else there(device, content)
        for n, content in enumerate(contents)
    ]
    targets = [
        device.copier.host_buffer(nbytes) if method == "to_host" else on_device(device, nbytes)
        for _ in range(count)
    ]
    copy, gate = getattr(device.copier, method), Gate()
    after = gate if defers else None
    tickets = [copy(*pair, after) for pair in zip(targets, sources, strict=True)]
    gate.open()
    assert all(ticket.wait(SECONDS) for ticket in tickets)
    for target, content in zip(targets, contents, strict=True):
        assert torch.equal(target.cpu(), content)


def test_synchronize_waits_for_copies(device: Device) -> None:
    target, source = device.copier.host_buffer(2**20), there(device, noise(2**20))
    ticket = device.copier.to_host(target, source)
    device.synchronize()
    assert ticket.done()
    assert torch.equal(target, noise(2**20))


def test_a_fence_after_compute_is_done_in_time(device: Device) -> None:
    fence = device.fence()
    assert fence.wait(SECONDS)
    assert fence.done()
