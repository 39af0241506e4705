"""The checking wrapper refuses what the rules of memory and copies do not allow."""

import sys
import threading
from dataclasses import replace

import pytest
import torch

from kvrt import registry
from kvrt.errors import ContractError, OutOfMemory
from kvrt.spi import Chunk, Device, MemoryInfo, Span, VirtualMemory
from kvrt.testing.chaos import Chaos
from kvrt.wrappers import Call, Checked
from kvrt.wrappers.parts import WrappedMemory
from kvrt.wrappers.wrapper import Wrapper

G = 65536


@pytest.fixture
def span(device: Device) -> Span:
    """Four chunks long, one mapped at the second."""
    span = device.memory.reserve(4 * G)
    device.memory.map(span, G, device.memory.create())
    return span


def refused(calls: list[Call], match: str) -> "Refused":
    return Refused(calls, match)


class Refused:
    """Expects a ContractError, and that nothing has reached the device."""

    def __init__(self, calls: list[Call], match: str) -> None:
        self._calls = calls
        self._raises = pytest.raises(ContractError, match=match)

    def __enter__(self) -> None:
        self._before = len(self._calls)
        self._raises.__enter__()

    def __exit__(self, *error: object) -> bool | None:
        result = self._raises.__exit__(*error)  # type: ignore[arg-type]
        assert len(self._calls) == self._before, "the device was called"
        return result


@pytest.mark.parametrize("nbytes", [0, -G, 1, G - 1, G + 1, 2.0 * G, True, None, "65536"])
def test_addresses_come_in_whole_chunks(device: Device, calls: list[Call], nbytes: object) -> None:
    with refused(calls, "nbytes = .*multiple of the granularity, 65536"):
        device.memory.reserve(nbytes)  # type: ignore[arg-type]


@pytest.mark.parametrize("at", [1, -G, 4 * G, 100 * G, 0.0, None])
def test_offsets_lie_within_the_span_at_chunk_borders(
    device: Device, calls: list[Call], span: Span, at: object
) -> None:
    chunk = device.memory.create()
    with refused(calls, "at = .*multiple of 65536 from 0 and below 262144"):
        device.memory.map(span, at, chunk)  # type: ignore[arg-type]


def test_a_mapped_place_is_not_mapped_again(device: Device, calls: list[Call], span: Span) -> None:
    chunk = device.memory.create()
    with refused(calls, r"at = 65536: Chunk.* is mapped there"):
        device.memory.map(span, G, chunk)


def test_only_what_is_mapped_is_unmapped(device: Device, calls: list[Call], span: Span) -> None:
    chunk = device.memory.create()
    with refused(calls, "at = 0: nothing is mapped there"):
        device.memory.unmap(span, 0, chunk)
    with refused(calls, r"chunk = .*: Chunk.* is mapped at byte 65536"):
        device.memory.unmap(span, G, chunk)


def test_chunks_and_spans_must_be_live(device: Device, calls: list[Call], span: Span) -> None:
    chunk = device.memory.create()
    device.memory.destroy(chunk)
    for wrong in (chunk, Chunk(12345), 7, None):
        with refused(calls, "chunk = .*not a live chunk"):
            device.memory.map(span, 0, wrong)  # type: ignore[arg-type]
        with refused(calls, "chunk = .*not a live chunk"):
            device.memory.destroy(wrong)  # type: ignore[arg-type]
    for other in (Span(span.base, G), Span(span.base + G, G), None):
        with refused(calls, "span = .*not a live span"):
            device.memory.map(other, 0, chunk)  # type: ignore[arg-type]
        with refused(calls, "span = .*not a live span"):
            device.memory.release(other)  # type: ignore[arg-type]
        with refused(calls, "span = .*not a live span"):
            device.memory.tensor(other, "float32")  # type: ignore[arg-type]


def test_a_mapped_chunk_is_neither_destroyed_nor_its_span_released(
    device: Device, calls: list[Call]
) -> None:
    span, chunk = device.memory.reserve(G), device.memory.create()
    device.memory.map(span, 0, chunk)
    with refused(calls, "chunk = .*still mapped"):
        device.memory.destroy(chunk)
    with refused(calls, "span = .*1 chunks are still mapped, one at byte 0"):
        device.memory.release(span)
    device.memory.unmap(span, 0, chunk)
    device.memory.destroy(chunk)
    device.memory.release(span)
    with refused(calls, "not a live span"):
        device.memory.release(span)


def test_a_chunk_has_one_place_unless_the_device_has_aliasing(device: Device, span: Span) -> None:
    twice = device.memory.create()
    device.memory.map(span, 0, twice)
    device.memory.map(span, 2 * G, twice)

    class Plain(Wrapper):
        @property
        def info(self):  # type: ignore[no-untyped-def]
            return replace(self.inner.info, capabilities=frozenset())

    plain = Checked(Plain(registry.load("null").open()))
    once, there = plain.memory.create(), plain.memory.reserve(2 * G)
    plain.memory.map(there, 0, once)
    with pytest.raises(ContractError, match=r"chunk = .*mapped elsewhere.*no ALIASING"):
        plain.memory.map(there, G, once)
    plain.close()


def test_a_tensor_has_a_known_dtype(device: Device, calls: list[Call], span: Span) -> None:
    with refused(calls, "dtype = 'int8': must be one of float32"):
        device.memory.tensor(span, "int8")  # type: ignore[arg-type]


def test_nothing_is_called_after_close(device: Device, calls: list[Call], span: Span) -> None:
    memory, copier, attention = device.memory, device.copier, device.attention
    chunk, tensor = memory.create(), torch.zeros(4)
    device.close()
    for call in (
        lambda: memory.reserve(G),
        lambda: memory.release(span),
        memory.create,
        lambda: memory.destroy(chunk),
        lambda: memory.map(span, 0, chunk),
        lambda: memory.unmap(span, 0, chunk),
        lambda: memory.tensor(span, "float32"),
        memory.info,
        lambda: copier.host_buffer(1),
        lambda: copier.to_host(tensor, tensor + 1),
        lambda: attention.plan(None),  # type: ignore[arg-type]
        device.fence,
        device.synchronize,
        lambda: device.extension(Measure),
    ):
        with refused(calls, "after the device's close"):
            call()
    device.close()


class Measure:
    pass


def test_a_call_that_fails_leaves_the_account_as_it_was() -> None:
    failing = {("memory.map", 1), ("memory.unmap", 1), ("memory.destroy", 1), ("memory.release", 1)}
    fail = {call: OutOfMemory(call[0]) for call in failing}
    device = Checked(Chaos(registry.load("null").open(), fail=fail))
    span, chunk = device.memory.reserve(G), device.memory.create()
    for call in (
        lambda: device.memory.map(span, 0, chunk),
        lambda: device.memory.unmap(span, 0, chunk),
        lambda: device.memory.destroy(chunk),
        lambda: device.memory.release(span),
    ):
        with pytest.raises(OutOfMemory):
            call()
        call()
    device.close()


# --- what the device gives back ----------------------------------------------------------------


class Wrong(WrappedMemory):
    """Gives back what it is told to, whatever is asked."""

    answers: dict[str, object]

    def reserve(self, nbytes: int) -> Span:
        return self.answers.get("reserve") or super().reserve(nbytes)  # type: ignore[return-value]

    def create(self) -> Chunk:
        return self.answers.get("create") or super().create()  # type: ignore[return-value]

    def tensor(self, span: Span, dtype: str) -> torch.Tensor:  # type: ignore[override]
        return self.answers["tensor"]  # type: ignore[return-value]

    def info(self) -> MemoryInfo:
        return self.answers["info"]  # type: ignore[return-value]


def wrong(changing: dict[str, object] | None = None, **answers: object) -> VirtualMemory:
    wrapper = Wrapper(registry.load("null").open())
    wrapper.memory = Wrong(wrapper, wrapper.inner.memory)
    wrapper.memory.answers = answers if changing is None else changing
    return Checked(wrapper).memory


@pytest.mark.parametrize("span", [Span(G + 1, G), Span(G, 2 * G), Span(0, G)])
def test_a_span_that_is_not_what_was_asked_for_is_refused(span: Span) -> None:
    with pytest.raises(ContractError, match=r"reserve\(\) = "):
        wrong(reserve=span).reserve(G)


def test_spans_lie_side_by_side_but_share_no_chunk() -> None:
    answers: dict[str, object] = {}
    memory = wrong(answers)
    for place in (8, 12, 4):
        answers["reserve"] = Span(place * G, 4 * G)
        memory.reserve(4 * G)
    for place in (1, 15):
        answers["reserve"] = Span(place * G, 4 * G)
        with pytest.raises(ContractError, match="overlaps the live"):
            memory.reserve(4 * G)


def test_a_span_over_a_live_one_is_refused() -> None:
    memory = wrong(reserve=Span(8 * G, 4 * G))
    memory.reserve(4 * G)
    with pytest.raises(ContractError, match="overlaps the live"):
        memory.reserve(4 * G)


def test_a_handle_that_is_taken_is_refused() -> None:
    memory = wrong(create=Chunk(5))
    memory.create()
    with pytest.raises(ContractError, match="the handle of a live chunk"):
        memory.create()


def test_a_tensor_elsewhere_is_refused() -> None:
    memory = wrong(tensor=torch.zeros(G // 4))
    with pytest.raises(ContractError, match="cover the whole"):
        memory.tensor(memory.reserve(G), "float32")


@pytest.mark.parametrize("info", [MemoryInfo(1, 2, 0), MemoryInfo(1, -1, 0), MemoryInfo(1, 1, -1)])
def test_numbers_that_cannot_be_are_refused(info: MemoryInfo) -> None:
    with pytest.raises(ContractError, match=r"memory.info\(\)"):
        wrong(info=info).info()


# --- threads -----------------------------------------------------------------------------------


@pytest.mark.promise("P7")
@pytest.mark.timeout(120)
def test_threads_that_race_for_places_are_let_through_one_at_a_time(device: Device) -> None:
    """Eight threads map and unmap at the same four places: each place has one owner at a time.

    20,000 calls of each thread: a turn is three, or four if the place was free.
    """
    span = device.memory.reserve(4 * G)
    owners: dict[int, int] = {}
    wrong: list[str] = []
    switch = sys.getswitchinterval()

    def work(me: int) -> None:
        for turn in range(20_000 // 3 + 1):
            at = (me + turn) % 4 * G
            chunk = device.memory.create()
            try:
                device.memory.map(span, at, chunk)
            except ContractError:
                device.memory.destroy(chunk)
                continue
            if owners.setdefault(at, me) != me:
                wrong.append(f"{me} and {owners[at]} both have {at}")
            owners.pop(at, None)
            device.memory.unmap(span, at, chunk)
            device.memory.destroy(chunk)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(switch)
    assert not wrong
    assert device.memory.info().chunks == 0
    device.memory.release(span)


# --- copies ------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["to_host", "to_device", "within"])
@pytest.mark.parametrize(
    ("dst", "src", "message"),
    [
        (torch.zeros(4), torch.zeros(5), "sizes must agree"),
        (torch.zeros(8)[::2], torch.zeros(4), "dst = .*must be contiguous"),
        (torch.zeros(4), torch.zeros(8)[::2], "src = .*must be contiguous"),
        (torch.zeros(4), [1, 2], "src = .*must be a tensor"),
        (None, torch.zeros(4), "dst = .*must be a tensor"),
        (torch.zeros(4, device="meta"), torch.zeros(4), "dst = .*must be"),
    ],
)
def test_copies_need_two_contiguous_tensors_of_one_size(
    device: Device, calls: list[Call], method: str, dst: object, src: object, message: str
) -> None:
    with refused(calls, message):
        getattr(device.copier, method)(dst, src)


def test_copies_do_not_overlap(device: Device, calls: list[Call]) -> None:
    both = torch.zeros(10)
    with refused(calls, "overlaps dst"):
        device.copier.within(both[:6], both[4:])
    device.copier.within(both[:5], both[5:]).wait()


def test_copies_wait_for_tickets_only(device: Device, calls: list[Call]) -> None:
    with refused(calls, "after = 3: must be a ticket"):
        device.copier.within(torch.zeros(1), torch.ones(1), 3)  # type: ignore[arg-type]


def test_copies_touch_no_hole(device: Device, calls: list[Call], span: Span) -> None:
    tensor = device.memory.tensor(span, "float32")
    mapped, hole = tensor[G // 4 : 2 * G // 4], tensor[: G // 4]
    device.copier.to_host(torch.zeros(G // 4), mapped).wait()
    with refused(calls, "src = .*has a hole"):
        device.copier.to_host(torch.zeros(G // 4), hole)
    with refused(calls, "dst = .*has a hole"):
        device.copier.to_device(tensor[G // 4 : 3 * G // 4], torch.zeros(G // 2))


@pytest.mark.parametrize("nbytes", [0, -1, 1.5, None])
def test_host_buffers_have_a_size(device: Device, calls: list[Call], nbytes: object) -> None:
    with refused(calls, "nbytes = "):
        device.copier.host_buffer(nbytes)  # type: ignore[arg-type]
