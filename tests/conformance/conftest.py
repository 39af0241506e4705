"""Runs the conformance kit inside a test, on backends that exist only there."""

from collections.abc import Callable, Iterable
from pathlib import Path

import distributions
import pytest
import torch

from kvrt import registry

Install = Callable[[str, Iterable[str]], None]
Kit = Callable[..., pytest.RunResult]

# Other plug-ins and rewritten asserts have nothing to do here, and cost a second a run.
PLAIN = ("--disable-plugin-autoload", "-p", "kvrt.testing.plugin", "--assert=plain")


@pytest.fixture(scope="session", autouse=True)
def _imported() -> None:
    """Import once what pytester would otherwise import again for every run."""
    for name in ("cpu", "null"):
        registry.load(name, timeout=60).open().close()
    torch.testing.assert_close(torch.ones(1), torch.ones(1))  # which imports more, and only once


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Installs a module that registers its attributes as backends of the same names."""

    def install(source: str, backends: Iterable[str]) -> None:
        entries = {name: f"kvrt_fakes:{name}" for name in backends}
        distributions.install(tmp_path / "site", "kvrt_fakes", entries, source=source)
        monkeypatch.syspath_prepend(tmp_path / "site")

    return install


@pytest.fixture
def kit(pytester: pytest.Pytester) -> Kit:
    """Runs the kit, or the parts of it that are named."""

    def run(*options: str, parts: tuple[str, ...] = ()) -> pytest.RunResult:
        modules = [f"kvrt.testing.suite.test_{part}" for part in parts] or ["kvrt.testing.suite"]
        return pytester.runpytest_inprocess(*PLAIN, "--pyargs", *modules, *options)

    return run
