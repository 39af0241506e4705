"""Fixtures of the conformance kit. The device under test was opened by `kvrt.testing.plugin`."""

from collections.abc import Iterator

import pytest
import torch

from kvrt import registry
from kvrt.spi import Backend, Capability, DenseOps, Device, PackedMatrices
from kvrt.testing.paged import Case
from kvrt.testing.plugin import SUBJECT
from kvrt.testing.subject import Subject

COMMON_HEAD_SIZES = (16, 32, 40, 48, 64, 72, 80, 96, 112, 128, 160, 192, 256)
"""For a device that can do heads of every size."""


def pytest_configure(config: pytest.Config) -> None:
    # pytest prints arguments and variables of a failing test, and printing a KV tensor reads holes.
    config.option.tbstyle = "short"
    config.option.showlocals = False


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that takes ``compute``, ``kv`` or ``head_size`` runs for each dtype, format or size
    of a head that the device declares; ``stored`` is the dtype of weights."""
    subject = metafunc.config.stash.get(SUBJECT, None)
    info = subject.device.info if subject else None
    declared = {
        "compute": info.compute_dtypes if info else (),
        "kv": info.kv_formats if info else (),
        "stored": info.weight_dtypes if info else (),
        "head_size": (info.head_dims or COMMON_HEAD_SIZES) if info else (),
    }
    for name, values in declared.items():  # in the same order in every process, for pytest-xdist
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, values)


ORDER = ("probe", "memory", "copier", "operators", "attention", "batches")
"""What the rest needs comes first: wrong memory is then an error, and not a crash later on."""


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        part = item.path.stem.removeprefix("test_")
        return ORDER.index(part) if part in ORDER else len(ORDER)

    items.sort(key=place)
    if SUBJECT not in config.stash:
        installed = ", ".join(candidate.name for candidate in registry.candidates())
        raise pytest.UsageError(
            "the conformance kit needs --kvrt-backend NAME, the backend to test "
            f"(installed: {installed or 'none'})"
        )


def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    """End the run with a failure behind which another test could end the process."""
    failed = call.excinfo is not None and not call.excinfo.errisinstance(pytest.skip.Exception)
    if failed and item.get_closest_marker("vital"):
        item.session.shouldfail = f"{item.name} failed, and the tests behind it could crash"


@pytest.fixture(scope="session")
def subject(pytestconfig: pytest.Config) -> Subject:
    return pytestconfig.stash[SUBJECT]


@pytest.fixture(scope="session")
def backend(subject: Subject) -> Backend:
    return subject.backend


@pytest.fixture(scope="session")
def device(subject: Subject) -> Device:
    """The device under test, with its arguments checked."""
    return subject.device


@pytest.fixture(scope="session")
def on_host(subject: Subject) -> bool:
    """True if the device's memory is this process's, so that the operating system can be asked."""
    return torch.device(subject.device.info.torch_device).type == "cpu"


@pytest.fixture
def opened(subject: Subject) -> Iterator[Device]:
    """A second, fresh device, not yet checked; closed at the end."""
    device = subject.backend.open(subject.index)
    yield device
    device.close()


@pytest.fixture
def case(device: Device) -> Case:
    """The default case in the device's preferred dtypes."""
    return Case(compute=device.info.compute_dtypes[0], kv=device.info.kv_formats[0])


@pytest.fixture
def dense(device: Device) -> DenseOps:
    found = device.extension(DenseOps)  # type: ignore[type-abstract]
    if found is None:
        pytest.skip("the device does not offer DenseOps")
    return found


@pytest.fixture
def packed(device: Device) -> PackedMatrices:
    found = device.extension(PackedMatrices)  # type: ignore[type-abstract]
    if found is None:
        pytest.skip("the device does not offer PackedMatrices")
    return found


@pytest.fixture
def batch_invariant(device: Device) -> None:
    if Capability.BATCH_INVARIANT not in device.info.capabilities:
        pytest.skip("the device does not declare BATCH_INVARIANT")
