"""Finding backends: nothing is imported early, and nobody's fault is another's."""

import importlib
import logging
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path

import distributions
import pytest

from kvrt import registry
from kvrt.errors import BackendUnavailable, ConfigError
from kvrt.spi import SPI_VERSION, DeviceOptions
from kvrt.wrappers import Checked

Install = Callable[..., None]

GOOD = """
from dataclasses import replace
import kvrt_null
from kvrt.spi import Probe

class Backend:
    spi = 2

    def __init__(self, name, **answer):
        self.name = name
        self.answer = {"available": True, "detail": "1 device", "devices": 1, **answer}

    def probe(self):
        return Probe(**self.answer)

    def open(self, index=0, options=None):
        device = kvrt_null.backend.open(index)
        device.info = replace(device.info, backend=self.name)
        device.options = options
        return device
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    return tmp_path / "site"


@pytest.fixture
def install(site: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Installs a distribution called ``plugin`` whose module has the given source."""

    def install(source: str, *backends: str, distribution: str = "plugin") -> None:
        entries = {name: f"{distribution}:{name}" for name in backends}
        distributions.install(site, distribution, entries, source=textwrap.dedent(source))
        monkeypatch.delitem(sys.modules, distribution, raising=False)
        if str(site) not in sys.path:
            monkeypatch.syspath_prepend(site)
        importlib.invalidate_caches()

    return install


@pytest.fixture
def alone(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what is in `site`, and the null backend, is installed."""
    registry.load("null", timeout=60)
    null = Path(__file__).parents[1] / "plugins"
    keep = [entry for entry in sys.path if "site-packages" not in entry and entry != str(null)]
    monkeypatch.setattr(sys, "path", [str(site), *keep])


def candidate(name: str) -> registry.Candidate:
    (found,) = [c for c in registry.candidates() if c.name == name]
    return found


def examined(name: str, timeout: float = 10) -> registry.Candidate:
    return registry.examine(candidate(name), timeout=timeout)


# --- listing -----------------------------------------------------------------------------------


def test_backends_of_the_tree_and_of_others_are_found_alike() -> None:
    found = {c.name: c for c in registry.candidates()}
    assert {"cpu", "cuda", "rocm", "null"} <= set(found)
    assert found["null"].origin == "kvrt-null 1.0"
    assert found["null"].value == "kvrt_null:backend"
    assert found["cpu"].distribution == "kvrt"


def test_listing_imports_nothing(install: Install) -> None:
    install("raise RuntimeError('imported')", "lazy")
    listed = candidate("lazy")
    assert (listed.backend, listed.spi, listed.probe, listed.error) == (None, None, None, "")
    assert "plugin" not in sys.modules


def test_candidates_come_in_the_order_they_are_tried() -> None:
    names = [c.name for c in registry.candidates()]
    assert names == [*sorted(set(names) - {"cpu"}), "cpu"]


# --- contained faults --------------------------------------------------------------------------

BROKEN = {
    "import_error": ("import not_installed_anywhere", "ModuleNotFoundError"),
    "syntax_error": ("def broken(:", "SyntaxError"),
    "exit": ("import sys; sys.exit(3)", "SystemExit: 3"),
    "interrupt": ("raise KeyboardInterrupt", "KeyboardInterrupt"),
    "no_attribute": ("pass", "AttributeError"),
    "no_spi": ("class x: pass\nno_spi = x()", "AttributeError: 'x' object has no attribute 'spi'"),
}


@pytest.mark.promise("P36")
@pytest.mark.parametrize("name", BROKEN)
def test_what_a_plugin_raises_at_import_is_kept_with_its_traceback(
    name: str, install: Install
) -> None:
    source, message = BROKEN[name]
    install(source, name)
    broken = examined(name)
    assert not broken.available
    assert message in broken.error
    assert message.partition(":")[0] in broken.traceback
    with pytest.raises(BackendUnavailable, match=r"plugin 1\.0") as raised:
        registry.load(name)
    assert message in str(raised.value)
    assert raised.value.__cause__ is not None
    assert raised.value.exit_code == 4
    registry.open_device("null").close()


@pytest.mark.promise("P36")
def test_the_traceback_names_the_line_at_fault(install: Install) -> None:
    install("x = 1\nraise ValueError('in line two')", "bad")
    assert 'plugin.py", line 2' in examined("bad").traceback


@pytest.mark.promise("P36")
@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def probe(self): raise OSError('no such device')", "probe() raised OSError: no such"),
        ("def probe(self): raise SystemExit(1)", "probe() raised SystemExit"),
        ("def probe(self): return True", "probe() returned bool, not a kvrt.spi.Probe"),
        ("", "probe() raised AttributeError"),
    ],
)
def test_a_probe_that_fails_is_kept(source: str, message: str, install: Install) -> None:
    install(f"class Bad:\n  name, spi = 'bad', 2\n  {source}\nbad = Bad()", "bad")
    broken = examined("bad")
    assert message in broken.error
    assert not broken.available


HANGS = {
    "importing hangs_first:slow": "import time; time.sleep(30)",
    "probe()": """
        import time
        class Slow:
            name, spi = "slow", 2
            def probe(self): time.sleep(30)
        slow = Slow()
    """,
}


@pytest.mark.promise("P36")
@pytest.mark.parametrize("doing", HANGS)
def test_a_plugin_that_hangs_is_given_up_and_the_others_work(doing: str, install: Install) -> None:
    # A module of its own: one that hangs keeps the import lock of its name for good.
    module = "hangs_first" if "import" in doing else "hangs_later"
    install(HANGS[doing], "slow", distribution=module)
    start = time.perf_counter()
    assert examined("slow", timeout=1).error == f"{doing} did not finish in 1 s"
    assert time.perf_counter() - start < 5
    registry.open_device("null").close()


@pytest.mark.promise("P36")
def test_a_hung_plugin_does_not_stop_the_program_from_ending(site: Path) -> None:
    entries = {"slow": "slow_plugin:backend"}
    distributions.install(site, "slow_plugin", entries, source="import time; time.sleep(300)")
    source = f"""
        import sys; sys.path.insert(0, {str(site)!r})
        from kvrt import registry
        slow, = [c for c in registry.candidates() if c.name == "slow"]
        print(registry.examine(slow, timeout=0.2).error)
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(source)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert result.stdout.strip() == "importing slow_plugin:backend did not finish in 0.2 s"


@pytest.mark.promise("P36")
@pytest.mark.parametrize("version", [1, 7])
def test_a_plugin_for_another_interface_is_refused_with_both_versions(
    version: int, install: Install
) -> None:
    install(f"class Other:\n  name, spi = 'other', {version}\nother = Other()", "other")
    assert examined("other").spi == version
    with pytest.raises(BackendUnavailable, match=f"version {version} .* version {SPI_VERSION}"):
        registry.load("other")


def test_a_backend_goes_by_the_name_it_is_registered_under(install: Install) -> None:
    install("class Other:\n  name, spi = 'other', 2\nmine = Other()", "mine")
    assert "calls itself 'other'" in examined("mine").error


@pytest.mark.promise("P36")
def test_two_distributions_that_claim_one_name_are_both_refused(install: Install) -> None:
    install(GOOD + "shared = Backend('shared')", "shared", distribution="first")
    install(GOOD + "shared = Backend('shared')", "shared", distribution="second")
    clash = [c for c in registry.candidates() if c.name == "shared"]
    assert len(clash) == 2
    for one in clash:
        assert "first 1.0" in one.error
        assert "second 1.0" in one.error
        assert registry.examine(one) == one
    with pytest.raises(BackendUnavailable, match=r"first 1.0 .* and second 1.0"):
        registry.open_device("shared")


# --- choosing ----------------------------------------------------------------------------------


def test_a_device_comes_with_its_arguments_checked() -> None:
    device = registry.open_device("null")
    assert isinstance(device, Checked)
    assert device.info.backend == "null"
    device.close()


def test_options_and_index_reach_the_backend(install: Install) -> None:
    install(GOOD + "mine = Backend('mine')", "mine")
    options = DeviceOptions(threads=3)
    device = registry.load("mine").open(0, options)
    assert vars(device)["options"] is options
    device.close()


def test_an_unknown_name_lists_every_candidate_with_its_reason(install: Install) -> None:
    install("import not_installed_anywhere", "broken")
    with pytest.raises(BackendUnavailable) as raised:
        registry.open_device("nul")
    message = str(raised.value)
    assert "did you mean 'null'?" in message
    assert "null (kvrt-null 1.0): available, 1 make-believe device" in message
    assert "broken (plugin 1.0): importing plugin:broken raised ModuleNotFoundError" in message
    assert "cuda (kvrt" in message
    assert raised.value.fix.startswith("choose one of: auto, broken, cuda, null")


@pytest.mark.parametrize("index", [-1, 0.0, "0", True, None])
def test_an_index_that_is_none_is_refused(index: object) -> None:
    with pytest.raises(ConfigError, match="device index"):
        registry.open_device("null", index)  # type: ignore[arg-type]


def test_an_index_beyond_the_last_is_the_backends_error() -> None:
    with pytest.raises(BackendUnavailable, match="no device 5"):
        registry.open_device("null", 5)


def test_what_open_raises_becomes_one_clear_error(install: Install) -> None:
    source = "mine = Backend('mine')\ndef fail(*a): raise RuntimeError('cable loose')\n"
    install(GOOD + source + "mine.open = fail", "mine")
    with pytest.raises(BackendUnavailable, match="cable loose") as raised:
        registry.open_device("mine")
    assert isinstance(raised.value.__cause__, RuntimeError)


@pytest.mark.usefixtures("alone")
def test_auto_prefers_what_is_not_the_cpu(install: Install) -> None:
    install(
        GOOD + "cpu, zeta, alpha = map(Backend, ('cpu', 'zeta', 'alpha'))", "cpu", "zeta", "alpha"
    )
    assert [c.name for c in registry.candidates()] == ["alpha", "zeta", "cpu"]
    device = registry.open_device()
    assert device.info.backend == "alpha"
    device.close()


@pytest.mark.promise("P36")
@pytest.mark.usefixtures("alone")
def test_auto_passes_over_what_is_broken_with_a_warning(
    install: Install, caplog: pytest.LogCaptureFixture
) -> None:
    source = """
        fixable = Backend("fixable", available=False, detail="no driver", fix="install it")
        absent = Backend("absent", available=False, detail="no such hardware")
        cpu = Backend("cpu")
    """
    install(GOOD + textwrap.dedent(source), "fixable", "absent", "cpu")
    install("import not_installed_anywhere", "broken", distribution="other")
    with caplog.at_level(logging.INFO, "kvrt"):
        device = registry.open_device()
    device.close()
    said = {record.getMessage(): record.levelno for record in caplog.records}
    assert {line.split()[3]: level for line, level in said.items()} == {
        "absent": logging.INFO,
        "broken": logging.WARNING,
        "fixable": logging.WARNING,
        "cpu": logging.WARNING,  # of a plug-in, which was taken without having been named
    }
    assert "passing over backend fixable (plugin 1.0): no driver" in said


@pytest.mark.usefixtures("alone")
def test_auto_takes_none_that_asks_to_be_named(
    install: Install, caplog: pytest.LogCaptureFixture
) -> None:
    install(GOOD + "slow, cpu = Backend('slow', by_name_only=True), Backend('cpu')", "slow", "cpu")
    with caplog.at_level(logging.INFO, "kvrt"):
        auto, named = registry.open_device(), registry.open_device("slow")
    assert (auto.info.backend, named.info.backend) == ("cpu", "slow")
    assert "passing over backend slow (plugin 1.0): 1 device, by name only" in caplog.text
    auto.close()
    named.close()


@pytest.mark.usefixtures("alone")
def test_auto_with_none_but_one_that_asks_to_be_named_says_to_name_it(install: Install) -> None:
    install(GOOD + "slow = Backend('slow', by_name_only=True)", "slow")
    with pytest.raises(BackendUnavailable, match="no backend can be used") as raised:
        registry.open_device()
    assert raised.value.fix == "name it: --backend slow"


@pytest.mark.usefixtures("alone")
def test_a_plugin_that_auto_chose_is_named_in_a_warning(
    install: Install, caplog: pytest.LogCaptureFixture
) -> None:
    install(GOOD + "mine = Backend('mine')", "mine")
    registry.open_device("mine").close()
    assert not caplog.records
    registry.open_device().close()
    (said,) = caplog.records
    assert said.levelno == logging.WARNING
    assert "running on backend mine (plugin 1.0)" in said.getMessage()


@pytest.mark.usefixtures("alone")
def test_a_backend_that_is_named_is_opened_whatever_its_probe_says(install: Install) -> None:
    install(GOOD + "shy = Backend('shy', available=False, detail='asleep')", "shy")
    registry.open_device("shy").close()


@pytest.mark.usefixtures("alone")
def test_auto_goes_on_when_a_device_cannot_be_opened(
    install: Install, caplog: pytest.LogCaptureFixture
) -> None:
    source = """
        from kvrt.errors import BackendUnavailable
        busy, cpu = Backend("busy"), Backend("cpu")
        def fail(*arguments): raise BackendUnavailable("taken by another process")
        busy.open = fail
    """
    install(GOOD + textwrap.dedent(source), "busy", "cpu")
    registry.open_device().close()
    assert "taken by another process" in caplog.text


@pytest.mark.usefixtures("alone")
def test_auto_with_nothing_to_use_lists_all_reasons_and_fixes(install: Install) -> None:
    source = "one = Backend('one', available=False, detail='no driver', fix='get a driver')"
    install(GOOD + source, "one")
    with pytest.raises(BackendUnavailable, match=r"one \(plugin 1.0\): no driver") as raised:
        registry.open_device()
    assert raised.value.fix == "get a driver"


@pytest.mark.usefixtures("alone")
def test_no_backend_at_all_is_said(site: Path) -> None:
    with pytest.raises(BackendUnavailable, match="no distribution registers one"):
        registry.open_device()


def test_looking_leaves_no_thread_behind() -> None:
    before = set(threading.enumerate())  # not a count: what hung in an earlier test may end now
    examined("null")
    for thread in set(threading.enumerate()) - before:
        thread.join(10)  # it has given its answer, and may be a moment from its end
        assert not thread.is_alive()
