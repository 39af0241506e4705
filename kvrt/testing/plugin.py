"""The pytest plug-in. Loaded in every pytest run where kvrt is installed, so it imports nothing
of weight before it is asked for.
"""

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from kvrt.testing.subject import Subject

SUBJECT: "pytest.StashKey[Subject]" = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("kvrt", "conformance of a kvrt backend")
    group.addoption(
        "--kvrt-backend",
        metavar="NAME",
        help="the backend that kvrt.testing.suite tests",
    )
    group.addoption(
        "--kvrt-device",
        metavar="INDEX",
        type=int,
        default=0,
        help="which of its devices (default: 0)",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "promise(number): the test keeps this promise of docs/promises.md"
    )
    config.addinivalue_line("markers", "vital: without this, a later test could end the process")
    name = config.getoption("kvrt_backend")
    if not name:
        return
    from kvrt.errors import KvrtError
    from kvrt.testing.subject import open_subject

    index = config.getoption("kvrt_device")
    try:
        config.stash[SUBJECT] = open_subject(name, index)
    except Exception as error:  # whatever it is, there is nothing to test
        fix = f"\nfix: {error.fix}" if isinstance(error, KvrtError) and error.fix else ""
        message = f"--kvrt-backend {name}: device {index} cannot be opened: {error}{fix}"
        raise pytest.UsageError(message) from error


def pytest_unconfigure(config: pytest.Config) -> None:
    subject = config.stash.get(SUBJECT, None)
    if subject is not None:
        subject.close()


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    subject = config.stash.get(SUBJECT, None)
    if subject is None:
        return
    info = subject.device.info
    terminalreporter.section(f"kvrt backend {info.backend}")
    terminalreporter.line(f"device {info.index}: {info.name} ({info.arch})")
    missing, absent = ", ".join(subject.undeclared()), ", ".join(subject.absent())
    terminalreporter.line(f"capabilities not declared: {missing or 'none'}")
    terminalreporter.line(f"extensions not offered: {absent or 'none'}")
