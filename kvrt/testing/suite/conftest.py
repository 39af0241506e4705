"""Opens the named backend before anything is collected, and says at the end what it left out."""

from collections.abc import Iterator

import pytest
import torch

from kvrt import registry
from kvrt.errors import KvrtError
from kvrt.spi import Backend, Capability, Device, FusedOps
from kvrt.testing.subject import EXTENSIONS, Subject
from kvrt.wrappers import Checked

SUBJECT = pytest.StashKey[Subject]()
THREADS = pytest.StashKey[int]()


def pytest_configure(config: pytest.Config) -> None:
    name = config.getoption("kvrt_backend", None)
    if not name:
        installed = ", ".join(candidate.name for candidate in registry.candidates())
        raise pytest.UsageError(
            "the conformance kit needs --kvrt-backend NAME, the backend to test "
            f"(installed: {installed or 'none'})"
        )
    try:
        index = config.getoption("kvrt_device", 0)
        backend = registry.load(name)
        device = Checked(backend.open(index))
    except (
        Exception
    ) as error:  # whatever it is: the run must not look as if it had tested something
        fix = f"\nfix: {error.fix}" if isinstance(error, KvrtError) and error.fix else ""
        message = f"--kvrt-backend {name}: device {index} cannot be opened: {error}{fix}"
        raise pytest.UsageError(message) from error
    # Once the device is open: the reference is many small operators, for which torch's threads
    # would only wait for one another, a hundred times as long where the processors are shared.
    config.stash[THREADS] = torch.get_num_threads()
    torch.set_num_threads(1)
    # pytest prints arguments and variables of a failing test, and printing a KV tensor reads holes.
    config.option.tbstyle = "short"
    config.option.showlocals = False
    config.stash[SUBJECT] = Subject(backend, index, device)


def pytest_unconfigure(config: pytest.Config) -> None:
    subject = config.stash.get(SUBJECT, None)
    if subject is not None:
        subject.device.close()
        torch.set_num_threads(config.stash[THREADS])


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that takes ``compute`` or ``kv`` runs for each dtype that the device declares."""
    info = metafunc.config.stash[SUBJECT].device.info
    if "compute" in metafunc.fixturenames:
        metafunc.parametrize("compute", info.compute_dtypes)
    if "kv" in metafunc.fixturenames:
        metafunc.parametrize("kv", info.kv_dtypes)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    device = config.stash[SUBJECT].device
    info = device.info
    missing = [c.name for c in Capability if c not in info.capabilities]
    absent = [kind.__name__ for kind in EXTENSIONS if device.extension(kind) is None]
    terminalreporter.section(f"kvrt backend {info.backend}")
    terminalreporter.line(f"device {info.index}: {info.name} ({info.arch})")
    terminalreporter.line(f"capabilities not declared: {', '.join(missing) or 'none'}")
    terminalreporter.line(f"extensions not offered: {', '.join(absent) or 'none'}")


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
def on_host(device: Device) -> bool:
    """True if the device's memory is this process's, so that the operating system can be asked."""
    return torch.device(device.info.torch_device).type == "cpu"


@pytest.fixture
def opened(subject: Subject) -> Iterator[Device]:
    """A second, fresh device, not yet checked; closed at the end."""
    device = subject.backend.open(subject.index)
    yield device
    device.close()


@pytest.fixture
def fused(device: Device) -> FusedOps:
    found = device.extension(FusedOps)  # type: ignore[type-abstract]
    if found is None:
        pytest.skip("the device does not offer FusedOps")
    return found


@pytest.fixture
def batch_invariant(device: Device) -> None:
    if Capability.BATCH_INVARIANT not in device.info.capabilities:
        pytest.skip("the device does not declare BATCH_INVARIANT")
