"""Who the backend says it is, and what the device says it can do."""

import time
from typing import get_args

import pytest

from kvrt.spi import SPI_VERSION, Backend, Capability, Device, DType, KVFormat, Measurable, Probe
from kvrt.testing.subject import EXTENSIONS, Subject


def test_probe_says_that_a_device_is_there(backend: Backend, subject: Subject) -> None:
    probe = backend.probe()
    assert isinstance(probe, Probe)
    assert probe.available
    assert probe.devices > subject.index
    assert probe.detail, "detail says what was found"
    assert not probe.fix, "there is nothing to mend"


def test_probe_is_quick_and_changes_nothing(backend: Backend) -> None:
    first = backend.probe()
    start = time.perf_counter()
    again = backend.probe()
    assert time.perf_counter() - start < 1.0
    assert again == first


def test_the_backend_was_written_for_this_interface(backend: Backend) -> None:
    assert backend.spi == SPI_VERSION


def test_the_device_names_its_backend_and_index(subject: Subject) -> None:
    assert subject.device.info.backend == subject.backend.name
    assert subject.device.info.index == subject.index


def test_the_device_describes_itself(device: Device) -> None:
    info = device.info
    assert info.name
    assert info.arch
    assert all(info.notes), "a note is a sentence"
    assert 0 < info.granularity <= info.total_bytes
    assert info.granularity & (info.granularity - 1) == 0, "the granularity is a power of two"


@pytest.mark.parametrize(
    ("field", "known"),
    [("compute_dtypes", DType), ("weight_dtypes", DType), ("kv_formats", KVFormat)],
)
def test_dtypes_are_known_and_listed_once(device: Device, field: str, known: object) -> None:
    dtypes = getattr(device.info, field)
    assert dtypes
    assert set(dtypes) <= set(get_args(known))
    assert len(set(dtypes)) == len(dtypes)


def test_sizes_of_heads_are_positive_and_listed_once(device: Device) -> None:
    sizes = device.info.head_dims
    assert all(size > 0 for size in sizes)
    assert len(set(sizes)) == len(sizes)


def test_capabilities_are_known(device: Device) -> None:
    assert isinstance(device.info.capabilities, frozenset)
    assert all(isinstance(capability, Capability) for capability in device.info.capabilities)


def test_an_extension_is_either_complete_or_absent(device: Device) -> None:
    for kind in EXTENSIONS:
        found = device.extension(kind)
        assert found is None or isinstance(found, kind), kind.__name__


def test_an_unknown_extension_is_none(opened: Device) -> None:
    class FromTheFuture:
        pass

    assert opened.extension(FromTheFuture) is None


def test_measured_limits_are_plausible_and_quick(device: Device) -> None:
    measurable = device.extension(Measurable)  # type: ignore[type-abstract]
    if measurable is None:
        pytest.skip("the device does not offer Measurable")
    start = time.perf_counter()
    limits = measurable.measure()
    assert time.perf_counter() - start < 10.0, "well under two seconds on an idle machine"
    assert 1e8 < limits.read_bytes_per_s < 1e14
    assert 1e8 < limits.flops_per_s < 1e16
