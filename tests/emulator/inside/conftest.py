"""An emulated GPU for each test, which must give everything back."""

import gc
from collections.abc import Callable, Iterator

import pytest
import torch

from kvrt import registry
from kvrt.spi import Device, DeviceOptions
from kvrt.wrappers import Checked
from tests.emulator import library
from tests.emulator.library import Emulator

collect_ignore_glob = [] if library.loaded() else ["test_*.py"]

Open = Callable[..., Device]
MIB = 1 << 20


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def emulator() -> Iterator[Emulator]:
    """The emulated driver, as new; at its end, nothing may be left."""
    emulator = library.loaded()
    assert emulator is not None
    emulator.reset()
    yield emulator
    gc.collect()
    emulator.lose(0)
    left, violations = emulator.left(), emulator.count("violations")
    emulator.reset()
    assert left == {}
    assert violations == 0, "memory was unmapped while work for it was queued"


@pytest.fixture
def vendor(emulator: Emulator) -> str:
    return emulator.name


@pytest.fixture
def cuda(vendor: str) -> None:
    if vendor != "cuda":
        pytest.skip("only CUDA has that")


@pytest.fixture
def rocm(vendor: str) -> None:
    if vendor != "rocm":
        pytest.skip("only ROCm does so")


@pytest.fixture
def open_device(vendor: str) -> Iterator[Open]:
    """Opens devices, with their arguments checked, and closes them at the end."""
    opened: list[Device] = []

    def open_one(index: int = 0, **options: bool) -> Device:
        device = Checked(registry.load(vendor).open(index, DeviceOptions(**options)))
        opened.append(device)
        return device

    yield open_one
    for device in opened:
        device.close()
