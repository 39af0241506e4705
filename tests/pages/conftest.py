"""Real devices to map pages on."""

from collections.abc import Iterator

import pytest
import torch

from kvrt.registry import open_device
from kvrt.spi import Device, DeviceOptions


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """The tensors are small: on a busy machine, waiting for a second thread takes longest."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def null_device() -> Iterator[Device]:
    """Chunks of 64 KiB, in a memory file."""
    device = open_device("null")
    yield device
    device.close()


@pytest.fixture(params=["private", "shareable"])
def cpu_device(request: pytest.FixtureRequest) -> Iterator[Device]:
    """Chunks of 2 MiB."""
    device = open_device("cpu", options=DeviceOptions(shareable=request.param == "shareable"))
    yield device
    device.close()
