"""The probes of the GPU backends, against libraries built here that answer as a driver would."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from kvrt_rocm import driver as rocm

from kvrt import registry
from kvrt.errors import BackendUnavailable

LIBRARY = {"cuda": "libcuda.so.1", "rocm": "libamdhip64.so.7"}
DRIVER = {
    "cuda": """
        int cuInit(unsigned flags) {{ return {init}; }}
        int cuDeviceGetCount(int *n) {{ *n = {devices}; return 0; }}
        int cuDriverGetVersion(int *v) {{ *v = {version}; return 0; }}
        int cuGetErrorName(int e, const char **s) {{ *s = "CUDA_ERROR_NO_DEVICE"; return 0; }}
    """,
    "rocm": """
        int hipInit(unsigned flags) {{ return {init}; }}
        int hipGetDeviceCount(int *n) {{ *n = {devices}; return 0; }}
        int hipRuntimeGetVersion(int *v) {{ *v = {version}; return 0; }}
        const char *hipGetErrorName(int e) {{ return "hipErrorNoDevice"; }}
    """,
}
VERSION = {"cuda": 13020, "rocm": 70226015}
BINDING = {"cuda": "cuda_bindings", "rocm": "hip_python"}
TORCH = {
    "cuda": "cuda: Optional[str] = '13.0'\nhip: Optional[str] = None\n",
    "rocm": "cuda: Optional[str] = None\nhip: Optional[str] = '7.2.26015'\n",
    "cpu": "cuda: Optional[str] = None\nhip: Optional[str] = None\n",
}
PROBE = """
import dataclasses, json, pathlib, sys
from kvrt_{0} import backend
from kvrt_kernels.driver import probe
if len(sys.argv) > 1:
    probe.PCI = pathlib.Path(sys.argv[1])
print(json.dumps(dataclasses.asdict(backend.probe())))
loaded = {{"torch", "triton", "cuda", "hip"}} & set(sys.modules)
assert not loaded, loaded
"""

pytestmark = pytest.mark.parametrize("name", ["cuda", "rocm"])


def driver(name: str, *, init: int = 0, devices: int = 1, version: int = 0) -> str:
    """The source of a make-believe driver."""
    return DRIVER[name].format(init=init, devices=devices, version=version or VERSION[name])


def distribution(folder: Path, title: str, version: str) -> None:
    """Metadata of a Python package that is not there."""
    info = folder / f"{title.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {title}\nVersion: {version}\n")


def probe(
    name: str,
    tmp_path: Path,
    *,
    driver: str = "",
    binding: bool = False,
    torch: str = "",
    triton: str = "",
    bus: Path | None = None,
) -> dict[str, object]:
    """Probe in a process of its own, where only what is given here can be found.

    Args:
        driver: the source of a library.
        torch: the text of torch's version file.
        triton: the version of Triton.
    """
    if driver:
        source = tmp_path / "driver.c"
        source.write_text(driver)
        library = tmp_path / LIBRARY[name]
        subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    if binding:
        distribution(tmp_path, BINDING[name].replace("_", "-"), "13.0")
    if torch:
        (tmp_path / "torch").mkdir()
        (tmp_path / "torch" / "__init__.py").write_text("raise ImportError('only a probe')")
        (tmp_path / "torch" / "version.py").write_text(torch)
    if triton:
        distribution(tmp_path, "triton", triton)
    root = Path(registry.__file__).parents[1]
    folders = [tmp_path, root / "backends" / name, root / "kernels", root]
    command = [sys.executable, "-S", "-c", PROBE.format(name), *([str(bus)] if bus else [])]
    result = subprocess.run(
        command,
        env={
            "PYTHONPATH": os.pathsep.join(map(str, folders)),
            "LD_LIBRARY_PATH": str(tmp_path),
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    answer: dict[str, object] = json.loads(result.stdout)
    return answer


def gpu_on_bus(name: str, tmp_path: Path) -> Path:
    device = tmp_path / "bus" / "0000:01:00.0"
    device.mkdir(parents=True)
    (device / "vendor").write_text({"cuda": "0x10de\n", "rocm": "0x1002\n"}[name])
    (device / "class").write_text("0x030200\n")
    return tmp_path / "bus"


def test_no_gpu_is_not_a_problem_to_be_mended(name: str, tmp_path: Path) -> None:
    answer = probe(name, tmp_path, bus=tmp_path / "nothing")
    assert f"no {'NVIDIA' if name == 'cuda' else 'AMD'} GPU here" in str(answer["detail"])
    assert (answer["available"], answer["fix"], answer["devices"]) == (False, "", 0)


def test_a_gpu_without_its_driver_says_what_to_install(name: str, tmp_path: Path) -> None:
    answer = probe(name, tmp_path, bus=gpu_on_bus(name, tmp_path))
    assert not answer["available"]
    assert "cannot be loaded" in str(answer["detail"])
    assert "install" in str(answer["fix"])


def test_a_driver_that_fails_is_quoted(name: str, tmp_path: Path) -> None:
    answer = probe(name, tmp_path, driver=driver(name, init=100))
    assert not answer["available"]
    assert "Init: " in str(answer["detail"])
    assert {"cuda": "CUDA_ERROR_NO_DEVICE", "rocm": "hipErrorNoDevice"}[name] in str(
        answer["detail"]
    )
    assert "VISIBLE_DEVICES" in str(answer["fix"])


def test_a_library_that_is_no_driver_is_no_crash(name: str, tmp_path: Path) -> None:
    answer = probe(name, tmp_path, driver="int unrelated(void) { return 0; }")
    assert not answer["available"]
    assert "does not work" in str(answer["detail"])


def test_a_driver_that_is_too_old_says_which_would_do(name: str, tmp_path: Path) -> None:
    old = {"cuda": 11080, "rocm": 50700000}[name]
    answer = probe(name, tmp_path, driver=driver(name, version=old), binding=True)
    assert not answer["available"]
    assert "too old" in str(answer["detail"])
    assert str(answer["fix"]).startswith("update ")


def test_a_missing_binding_says_what_to_install(name: str, tmp_path: Path) -> None:
    answer = probe(name, tmp_path, driver=driver(name, devices=2))
    assert not answer["available"]
    assert "2 devices" in str(answer["detail"])
    assert "is missing" in str(answer["detail"])
    assert f"pip install 'kvrt[{name}]'" in str(answer["fix"])
    assert answer["devices"] == 2


@pytest.mark.parametrize("other", ["cpu", "the other vendor", "none"])
def test_a_torch_for_other_hardware_is_named(other: str, name: str, tmp_path: Path) -> None:
    rival = "rocm" if name == "cuda" else "cuda"
    torch = {"cpu": TORCH["cpu"], "the other vendor": TORCH[rival], "none": ""}[other]
    answer = probe(name, tmp_path, driver=driver(name), binding=True, torch=torch, triton="3.9.0")
    assert not answer["available"]
    found = {
        "cpu": "built for CPUs only",
        "the other vendor": "built for cuda 13.0" if rival == "cuda" else "built for hip 7.2",
        "none": "torch is not installed",
    }[other]
    assert found in str(answer["detail"])
    platform = {"cuda": "CUDA", "rocm": "ROCm"}[name]
    assert f"install torch's {platform} build" in str(answer["fix"])


@pytest.mark.parametrize(("triton", "said"), [("", "not installed"), ("3.5.1", "is too old")])
def test_triton_that_is_missing_or_old_says_what_to_install(
    triton: str, said: str, name: str, tmp_path: Path
) -> None:
    answer = probe(
        name, tmp_path, driver=driver(name), binding=True, torch=TORCH[name], triton=triton
    )
    assert not answer["available"]
    assert said in str(answer["detail"])
    assert answer["fix"] == "pip install 'triton>=3.6'"


def test_a_torch_that_is_newer_than_the_driver_is_said(name: str, tmp_path: Path) -> None:
    answer = probe(
        name,
        tmp_path,
        driver=driver(name, version={"cuda": 12080, "rocm": 60400000}[name]),
        binding=True,
        torch=TORCH[name],
        triton="3.9.0",
    )
    assert not answer["available"]
    assert {"cuda": "driver for CUDA 13.0", "rocm": "needs ROCm 7.2"}[name] in str(answer["detail"])
    assert str(answer["fix"]).startswith("update ")


def test_all_there_is_counted(name: str, tmp_path: Path) -> None:
    answer = probe(
        name, tmp_path, driver=driver(name), binding=True, torch=TORCH[name], triton="3.9.0"
    )
    version = {"cuda": "driver for CUDA 13.2", "rocm": "ROCm 7.2"}[name]
    assert f"1 device, {version}" in str(answer["detail"])
    assert "Triton 3.9.0" in str(answer["detail"])
    assert (answer["available"], answer["fix"], answer["devices"]) == (True, "", 1)


def test_opening_where_nothing_is_says_so_and_takes_no_other(name: str) -> None:
    if registry.load(name).probe().available:
        pytest.skip("there is a GPU here")
    with pytest.raises(BackendUnavailable, match=f"the {name} backend cannot be used") as raised:
        registry.load(name).open()
    assert raised.value.fix


def long_functions(folder: Path) -> set[str]:
    """The code of those of more than two statements, without vendors' names."""
    bodies = [
        node.body
        for file in folder.glob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef)
    ]
    texts = {ast.unparse(ast.Module(body, [])) for body in bodies if len(body) > 2}
    return {re.sub("cuda|rocm|hip|cu", "", text, flags=re.IGNORECASE) for text in texts}


def test_what_is_the_same_for_both_vendors_stands_in_neither_folder(name: str) -> None:
    folders = Path(__file__).parents[3] / "backends"
    own = long_functions(folders / name / f"kvrt_{name}")
    assert len(own) > 4
    other = "rocm" if name == "cuda" else "cuda"
    assert own & long_functions(folders / other / f"kvrt_{other}") == set()


def test_two_runtimes_in_one_process_are_found(name: str, tmp_path: Path) -> None:
    if name == "cuda":
        pytest.skip("torch never brings a CUDA driver")
    maps = tmp_path / "maps"
    lines = [
        "7f00-7f01 r-xp 0 08:01 11 /opt/rocm/lib/libamdhip64.so.7.2.1",
        "7f01-7f02 r--p 0 08:01 11 /opt/rocm/lib/libamdhip64.so.7.2.1",
        "7f02-7f03 rw-p 0 00:00 0",
    ]
    maps.write_text("\n".join(lines))
    rocm.require_one_runtime(maps)
    maps.write_text("\n".join([*lines, "7f04-7f05 r-xp 0 08:01 12 /x/torch/lib/libamdhip64.so"]))
    with pytest.raises(BackendUnavailable, match=r"/opt/rocm.* and /x/torch"):
        rocm.require_one_runtime(maps)
