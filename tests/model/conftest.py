"""Devices for the model tests: with the native operators, and with torch's own."""

from collections.abc import Iterator

import pytest
import torch

from kvrt.registry import open_device
from kvrt.spi import Device, DeviceOptions


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """These models are so small that two threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def cpu() -> Iterator[Device]:
    device = open_device("cpu", 0, DeviceOptions(threads=1))
    yield device
    device.close()


@pytest.fixture(scope="module")
def exact_cpu() -> Iterator[Device]:
    """That multiplies codes with activations as they are."""
    device = open_device("cpu", 0, DeviceOptions(threads=1, exact=True))
    yield device
    device.close()


@pytest.fixture(scope="module")
def plain() -> Iterator[Device]:
    """A third-party device with no dense operators."""
    device = open_device("null", 0)
    yield device
    device.close()
