"""Opening and closing: nothing is left behind, and devices do not know of each other."""

import gc

import pytest
import torch

from kvrt.spi import Device, DeviceOptions
from kvrt.testing import host
from kvrt.testing.paged import Case, attend, mismatch
from kvrt.testing.subject import Subject
from kvrt.wrappers import Checked

MIB = 2**20
TURNS = 8


def use(device: Device, nbytes: int) -> None:
    """Map and write some memory, and leave it so."""
    granularity = device.info.granularity
    count = max(2, nbytes // granularity)
    span = device.memory.reserve(2 * count * granularity)
    for n in range(count):
        device.memory.map(span, n * granularity, device.memory.create())
    device.memory.create()
    device.memory.tensor(span, "float32")[: count * granularity // 4] = 1.0
    source = device.memory.tensor(span, "float32")[:1000]
    target = torch.zeros_like(source, device="cpu")
    device.copier.to_host(target, source, device.fence()).wait()


def free_bytes(subject: Subject) -> int:
    device = subject.backend.open(subject.index)
    free = device.memory.info().free
    device.close()
    return free


def test_close_gives_back_what_is_still_mapped(subject: Subject, on_host: bool) -> None:
    """Open, use, close, many times over: memory, mappings, descriptors and threads stay level."""
    nbytes = 8 * MIB

    def turn() -> None:
        device = subject.backend.open(subject.index)
        use(device, nbytes)
        device.close()

    turn()
    turn()
    gc.collect()
    held, had, free = host.physical_bytes(), host.Resources.now(), free_bytes(subject)
    for _ in range(TURNS):
        turn()
    gc.collect()
    if on_host:
        assert host.physical_bytes() - held < nbytes * TURNS / 4, "memory is not given back"
    else:
        assert free - free_bytes(subject) < nbytes * TURNS / 4, "memory is not given back"
    now = host.Resources.now()
    assert now.mappings - had.mappings < TURNS, "memory mappings are left behind"
    assert now.descriptors - had.descriptors < TURNS, "file descriptors are left behind"
    assert now.threads - had.threads < TURNS, "threads are left behind"


def test_close_may_be_called_twice(subject: Subject) -> None:
    device = subject.backend.open(subject.index)
    use(device, MIB)
    device.close()
    device.close()


def test_a_device_that_was_never_used_is_closed(subject: Subject) -> None:
    subject.backend.open(subject.index).close()


def test_devices_side_by_side_do_not_disturb_one_another(subject: Subject) -> None:
    first, second = (Checked(subject.backend.open(subject.index)) for _ in range(2))
    spans = []
    for value, device in enumerate((first, second), start=1):
        span = device.memory.reserve(device.info.granularity)
        device.memory.map(span, 0, device.memory.create())
        device.memory.tensor(span, "float32").fill_(value)
        device.synchronize()
        spans.append(span)
    assert (first.memory.tensor(spans[0], "float32") == 1).all()
    first.close()
    assert (second.memory.tensor(spans[1], "float32") == 2).all()
    case = Case(compute=second.info.compute_dtypes[0], kv=second.info.kv_formats[0])
    got, want = attend(second, case)
    assert not mismatch(got, want, case.tolerance)
    second.close()


@pytest.mark.parametrize(
    "options", [DeviceOptions(threads=1), DeviceOptions(threads=2), DeviceOptions(shareable=True)]
)
def test_options_change_how_and_not_what(subject: Subject, options: DeviceOptions) -> None:
    device = Checked(subject.backend.open(subject.index, options))
    case = Case(compute=device.info.compute_dtypes[0], kv=device.info.kv_formats[0])
    got, want = attend(device, case)
    device.close()
    assert not mismatch(got, want, case.tolerance)


def test_work_in_flight_does_not_stop_close(subject: Subject) -> None:
    device = subject.backend.open(subject.index)
    source = torch.ones(4 * MIB, dtype=torch.uint8, device=device.info.torch_device)
    target = device.copier.host_buffer(4 * MIB)
    device.copier.to_host(target, source, device.fence())
    device.close()
