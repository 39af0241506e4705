"""Copies between host and device: their bytes, their order, and their tickets."""

import threading
import time
from collections.abc import Callable, Iterator

import pytest
import torch

from kvrt.spi import Device, Ticket
from kvrt.testing.paged import Case, PagedKV, randoms

SECONDS = 60.0
SIZES = [1, 127, 4096, 2**20 + 3]


class Later:
    """A ticket of work that a thread does a little later. Done when it is done, and not before."""

    def __init__(self, work: Callable[[], object]) -> None:
        self._finished = threading.Event()
        self._work = work
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        time.sleep(0.05)
        self._work()
        self._finished.set()

    def done(self) -> bool:
        return self._finished.is_set()

    def wait(self, timeout: float | None = None) -> bool:
        return self._finished.wait(timeout)


def noise(nbytes: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (nbytes,), generator=generator, dtype=torch.uint8)


def on_device(device: Device, nbytes: int) -> torch.Tensor:
    return torch.zeros(nbytes, dtype=torch.uint8, device=device.info.torch_device)


def host_noise(device: Device, nbytes: int, seed: int = 0) -> torch.Tensor:
    buffer = device.copier.host_buffer(nbytes)
    buffer.copy_(noise(nbytes, seed))
    return buffer


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
    sent, there = host_noise(device, nbytes), on_device(device, nbytes)
    assert device.copier.to_device(there, sent).wait(SECONDS)
    assert torch.equal(there.cpu(), sent)
    back = device.copier.host_buffer(nbytes)
    assert device.copier.to_host(back, there).wait(SECONDS)
    assert torch.equal(back, sent)


@pytest.mark.parametrize("nbytes", SIZES)
def test_bytes_are_copied_within_the_device(device: Device, nbytes: int) -> None:
    both = on_device(device, 2 * nbytes)
    both[:nbytes] = noise(nbytes).to(both.device)
    assert device.copier.within(both[nbytes:], both[:nbytes]).wait(SECONDS)
    assert torch.equal(both[nbytes:].cpu(), noise(nbytes))
    assert torch.equal(both[:nbytes].cpu(), noise(nbytes))


def test_a_mapped_chunk_is_copied_to_and_from(device: Device, in_chunk: torch.Tensor) -> None:
    sent = host_noise(device, len(in_chunk))
    assert device.copier.to_device(in_chunk, sent).wait(SECONDS)
    half = len(in_chunk) // 2
    assert device.copier.within(in_chunk[:half], in_chunk[half:]).wait(SECONDS)
    back = device.copier.host_buffer(len(in_chunk))
    assert device.copier.to_host(back, in_chunk).wait(SECONDS)
    assert torch.equal(back, torch.cat((sent[half:], sent[half:])))


def test_only_sizes_in_bytes_need_to_agree(device: Device) -> None:
    source = randoms(device, "float32", 3, 5, seed=1)
    back = torch.zeros(3 * 5 * 2, dtype=torch.bfloat16)
    assert device.copier.to_host(back, source).wait(SECONDS)
    assert torch.equal(back.view(torch.float32), source.cpu().view(-1))


def test_ordinary_host_memory_will_do(device: Device) -> None:
    there, back = on_device(device, 1000), torch.zeros(1000, dtype=torch.uint8)
    assert device.copier.to_device(there, noise(1000)).wait(SECONDS)
    assert device.copier.to_host(back, there).wait(SECONDS)
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
    ticket: Ticket = copy(target, source, Later(lambda: source.fill_(2)))
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
    here, there = on_device(device, 5000), on_device(device, 5000)
    first = device.copier.to_device(here, sent)
    second = device.copier.within(there, here, first)
    third = device.copier.to_host(back, there, second)
    assert third.wait(SECONDS)
    assert first.done()
    assert second.done()
    assert torch.equal(back, sent)


def test_tickets_may_be_asked_in_any_order_and_stay_done(device: Device) -> None:
    count = 16
    sources = [noise(1000, seed=n).to(device.info.torch_device) for n in range(count)]
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
    target, source = device.copier.host_buffer(4096), noise(4096).to(device.info.torch_device)
    ticket = device.copier.to_host(target, source)
    deadline = time.monotonic() + SECONDS
    while not ticket.done():
        assert time.monotonic() < deadline, "done() never became true"
        time.sleep(0.001)
    assert torch.equal(target, noise(4096))


def test_waiting_is_bounded_by_its_timeout(device: Device) -> None:
    """A zero timeout asks; the answer is that of done()."""
    blocker = Later(lambda: time.sleep(0.2))
    target, source = device.copier.host_buffer(64), on_device(device, 64)
    ticket = device.copier.to_host(target, source, blocker)
    start = time.perf_counter()
    answer = ticket.wait(0)
    assert time.perf_counter() - start < 0.15 or answer
    assert answer in (True, False)
    assert ticket.wait(SECONDS)


def test_synchronize_waits_for_copies(device: Device) -> None:
    target, source = device.copier.host_buffer(2**20), noise(2**20).to(device.info.torch_device)
    ticket = device.copier.to_host(target, source)
    device.synchronize()
    assert ticket.done()
    assert torch.equal(target, noise(2**20))


def test_a_fence_after_compute_is_done_in_time(device: Device) -> None:
    fence = device.fence()
    assert fence.wait(SECONDS)
    assert fence.done()
