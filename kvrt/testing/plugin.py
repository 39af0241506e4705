"""The pytest plug-in, loaded in every pytest run where kvrt is installed: keep it light."""

import pytest


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
