"""`kvrt doctor`."""

import importlib.metadata
import json
from pathlib import Path
from typing import Any

import pytest
from kvrt_cli.checks import software
from kvrt_cli.checks.check import Mark

from kvrt.units import format_bytes

from .conftest import Kvrt

Findings = dict[tuple[str, str], dict[str, Any]]


def findings(stdout: str) -> Findings:
    return {(check["group"], check["name"]): check for check in json.loads(stdout)["checks"]}


def test_every_group_reports_and_the_cpu_is_proved_by_doing(kvrt: Kvrt) -> None:
    result = kvrt("doctor", "--json", "--only", "system,python,libraries,environment,cpu")
    report = json.loads(result.stdout)
    found = findings(result.stdout)
    assert {group for group, _ in found} >= {"system", "python", "libraries", "backends", "cpu:0"}
    for name in ("device", "memory", "attention.float32", "attention.bfloat16", "latency"):
        assert found["cpu:0", name]["mark"] == "ok", found["cpu:0", name]
    memory = found["cpu:0", "memory"]["data"]
    assert memory["taken_bytes"] >= memory["written_bytes"] // 2
    assert memory["kept_bytes"] <= memory["written_bytes"] // 4
    assert memory["chunks_left"] == 0
    assert found["cpu:0", "bandwidth"]["data"]["read_bytes_per_s"] > 1e8
    assert found["cpu:0", "latency"]["data"]["map_us"] > 0
    assert found["cpu:0", "budget"]["data"]["budget_bytes"] > 0
    assert found["backends", "cpu"]["data"]["spi"] == 2
    assert found["python", "kvrt"]["data"]["version"]
    assert result.exit_code == report["exit_code"]
    unsaid = ("taken_bytes", "kept_bytes", "chunks_left")
    for check in report["checks"]:
        for figure, value in check.get("data", {}).items():
            if isinstance(value, int | float) and figure not in unsaid:
                assert any(form in check["text"] for form in forms(value)), (figure, check)
    returned = format_bytes(memory["taken_bytes"] - max(memory["kept_bytes"], 0))
    assert found["cpu:0", "memory"]["text"].endswith(f": {returned} returned to the system")
    odd = "attention over float32 KV: 3 odd shapes agree with the reference"
    assert found["cpu:0", "attention.float32"]["text"].startswith(odd)


def forms(value: float) -> set[str]:
    """How people read a number."""
    giga = value / 1e9
    words = {f"{value:g}", f"{value:.0f} us", f"{value:.1e}", f"{giga:.1f} GB", f"{giga:.0f} GFLOP"}
    return {*words, str(value), format_bytes(int(value))}


def test_what_is_printed_for_people(kvrt: Kvrt) -> None:
    result = kvrt("doctor", "--only", "python")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[1] == "python"
    assert result.stdout.splitlines()[2].startswith("  [ok] Python 3.")
    assert result.stdout.splitlines()[-1] == "No problems found in 2 checks: kvrt is ready."


def test_a_fix_is_printed_as_it_must_be_typed(kvrt: Kvrt, monkeypatch: pytest.MonkeyPatch) -> None:
    """rich would read [cuda] as markup and drop it."""
    requirements = [
        'no-such-library>=3.6; extra == "cuda"',
        "also-missing[x] >=2",
        "click>=99",
        "never-shown>=1 ; extra == 'test'",
        "not-there>=1 ; extra == 'zstd'",
        "rich",
    ]
    monkeypatch.setattr("importlib.metadata.requires", lambda name: requirements)
    for color in ("never", "always"):
        result = kvrt("doctor", "--only", "libraries", "--color", color)
        assert "pip install 'kvrt[cuda]'" in result.stdout
        assert "[-]" in result.stdout
        assert "[x]" in result.stdout
        assert "pip install 'also-missing>=2'" in result.stdout
        assert "is older than 99 (kvrt needs it)" in result.stdout
        assert "never-shown" not in result.stdout
        assert "no-such-library is not installed (only for the cuda backend)" in result.stdout
        assert "not-there is not installed (only for kvrt[zstd])" in result.stdout
    assert result.exit_code == 1
    summary = "Found issues in 1 category (libraries): 2 broken, 0 worth mending."
    assert summary in kvrt("doctor", "--only", "libraries").stdout


def test_strict_fails_for_what_is_worth_mending(kvrt: Kvrt) -> None:
    env = {"KVRT_PROT": "8000", "KVRT_PORT": "tcp://10.0.0.1:80", "KVRT_BACKEND": "cpu"}
    result = kvrt("doctor", "--only", "environment", env=env)
    assert result.exit_code == 0
    assert "[!]  KVRT_PROT is not a variable that kvrt reads" in result.stdout
    assert "fix: unset KVRT_PROT" in result.stdout
    assert "KVRT_PORT" not in result.stdout
    assert "[ok] KVRT_BACKEND=cpu" in result.stdout
    assert kvrt("doctor", "--only", "environment", "--strict", env=env).exit_code == 1


@pytest.mark.parametrize(
    ("environ", "folder", "told"),
    [
        ({}, "{home}/.cache/huggingface/hub", "token not set"),
        ({"XDG_CACHE_HOME": "/x"}, "/x/huggingface/hub", "token not set"),
        ({"HF_HOME": "/h", "XDG_CACHE_HOME": "/x"}, "/h/hub", "token not set"),
        ({"HF_HUB_CACHE": "/c", "HF_HOME": "/h", "HF_TOKEN": "t"}, "/c", "token set"),
        ({"HF_HOME": "{home}", "HF_HUB_OFFLINE": "1"}, "{home}/hub", "token set, offline"),
        ({"HF_HUB_OFFLINE": "0"}, "{home}/.cache/huggingface/hub", "token not set"),
    ],
)
def test_it_is_said_where_downloads_go_and_with_which_rights(
    environ: dict[str, str], folder: str, told: str,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    (tmp_path / "token").write_text("secret")
    asked = {name: value.format(home=tmp_path) for name, value in environ.items()}
    check, _ = software.environment(asked)
    assert check.mark is Mark.OK
    assert check.data["folder"] == folder.format(home=tmp_path)
    assert check.text.startswith(f"downloads go to {check.data['folder']}, ")
    assert check.text.endswith(f"; {told}")
    monkeypatch.setattr("os.access", lambda *_: False)
    check, _ = software.environment(asked)
    assert (check.mark, check.fix) == (
        Mark.WARN,
        "export HF_HOME=FOLDER, with a folder of yours",
    )


def test_it_is_said_what_quantised_weights_take_and_where(tmp_path: Path) -> None:
    folder = tmp_path / "kvrt" / "weights"
    for files, says in ((0, "0, 0 B"), (2, "2, 3 KiB; delete it to have the space")):
        for n in range(files):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / str(n)).write_bytes(bytes(1024 * (n + 1)))
        _, check = software.environment({"XDG_CACHE_HOME": str(tmp_path)})
        assert check.mark is Mark.OK
        assert check.text == f"quantised weights are kept in {folder}: {says}"


def test_libraries_are_those_that_are_required_and_not_for_developers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    there = {"numpy": "2.1.0", "torch": "2.4.1+cpu", "rich": "13.10", "old": "1.9", "older": "1.9"}

    def version(name: str) -> str:
        if name not in there:
            raise importlib.metadata.PackageNotFoundError(name)
        return there[name]

    required = [
        "numpy>=1.26", "torch>=2.4.1", "rich>=13.9", "old (>=1.10)", "gone",
        "pytest; extra == 'test'", "older>=2; extra == 'more'",
        "binding[all]>=12; extra == 'cuda'",
    ]  # fmt: skip
    monkeypatch.setattr("importlib.metadata.version", version)
    monkeypatch.setattr("importlib.metadata.requires", lambda name: required)
    found = {c.name: (c.mark, c.text, c.fix) for c in software.libraries() if "." not in c.name}
    assert found == {
        "numpy": (Mark.OK, "numpy 2.1.0", ""),
        "torch": (Mark.OK, "torch 2.4.1+cpu", ""),
        "rich": (Mark.OK, "rich 13.10", ""),
        "old": (
            Mark.BAD, "old 1.9 is older than 1.10 (kvrt needs it)", "pip install 'old>=1.10'",
        ),
        "gone": (Mark.BAD, "gone is not installed (kvrt needs it)", "pip install 'gone'"),
        "older": (
            Mark.WARN, "older 1.9 is older than 2 (only for kvrt[more])",
            "pip install 'kvrt[more]'",
        ),
        "binding": (
            Mark.SKIP, "binding is not installed (only for the cuda backend)",
            "pip install 'kvrt[cuda]'",
        ),
    }  # fmt: skip


def test_a_kvrt_that_is_not_installed_is_told_how(monkeypatch: pytest.MonkeyPatch) -> None:
    def requires(name: str) -> list[str]:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.requires", requires)
    (check,) = software.libraries()
    assert (check.mark, check.fix) == (Mark.BAD, "pip install -e .")


# --- broken plug-ins ---------------------------------------------------------------------------

# Their names come before those of the backends that work, so that "auto" passes over them.
BROKEN = {
    "boom": "raise RuntimeError('no luck')",
    "bye": "import sys; sys.exit(3)",
    "bad": "def (:",
    "ancient": "class backend: name = 'ancient'; spi = 0",
}


@pytest.fixture
def broken_plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = ["[kvrt.backends]"]
    for name, source in BROKEN.items():
        (tmp_path / f"kvrt_{name}.py").write_text(source)
        entries.append(f"{name} = kvrt_{name}:backend")
    info = tmp_path / "broken_plugins-0.7.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-plugins\nVersion: 0.7\n")
    (info / "entry_points.txt").write_text("\n".join(entries))
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.promise("P36")
@pytest.mark.usefixtures("broken_plugins")
def test_broken_plugins_are_shown_and_break_nothing_else(kvrt: Kvrt, plain_model: str) -> None:
    assert kvrt("--help").exit_code == 0
    names = ",".join(["cpu", *BROKEN])
    result = kvrt("doctor", "-v", "--only", names)
    assert result.exit_code == 1
    assert "[x]  boom (broken-plugins 0.7): " in result.stdout
    assert "RuntimeError: no luck" in result.stdout
    assert "Traceback (most recent call last)" in result.stdout
    assert "pip install --upgrade broken-plugins" in result.stdout
    assert "version 0" in result.stdout
    assert "[ok] cpu" in result.stdout
    dummy = ("run", plain_model, "x", "--load-format", "dummy", "-n", "1")
    for name in BROKEN:
        failed = kvrt(*dummy, "--backend", name)
        assert failed.exit_code == 4
        assert f"backend {name!r} of broken-plugins 0.7 cannot be used" in failed.stderr
    auto = kvrt(*dummy)
    assert auto.exit_code == 0
    for name in BROKEN:
        assert f"warning: passing over backend {name}" in auto.stderr


@pytest.mark.usefixtures("broken_plugins")
def test_a_backend_asked_for_alone_is_judged_alone(kvrt: Kvrt) -> None:
    result = kvrt("doctor", "--only", "boom")
    assert result.exit_code == 1
    assert "[x]  cannot be used: boom" in result.stdout
    assert "nothing can run" not in result.stdout, "others were not looked at"
    assert "cpu" not in result.stdout
