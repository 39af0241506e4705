"""The probes of the GPU backends, against libraries built here that answer as a driver would."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kvrt import registry
from kvrt.errors import BackendUnavailable

LIBRARY = {"cuda": "libcuda.so.1", "rocm": "libamdhip64.so.7"}
DRIVER = {
    "cuda": """
        int cuInit(unsigned flags) {{ return {init}; }}
        int cuDeviceGetCount(int *n) {{ *n = {devices}; return 0; }}
        int cuDriverGetVersion(int *v) {{ *v = 13020; return 0; }}
        int cuGetErrorName(int e, const char **s) {{ *s = "CUDA_ERROR_NO_DEVICE"; return 0; }}
    """,
    "rocm": """
        int hipInit(unsigned flags) {{ return {init}; }}
        int hipGetDeviceCount(int *n) {{ *n = {devices}; return 0; }}
        int hipRuntimeGetVersion(int *v) {{ *v = 70226015; return 0; }}
        const char *hipGetErrorName(int e) {{ return "hipErrorNoDevice"; }}
    """,
}
BINDING = {"cuda": "cuda_bindings", "rocm": "hip_python"}
PROBE = """
import dataclasses, json, pathlib, sys
from kvrt_{0} import backend, driver
if len(sys.argv) > 1:
    driver.PCI = pathlib.Path(sys.argv[1])
print(json.dumps(dataclasses.asdict(backend.probe())))
loaded = {{"torch", "triton", "cuda", "hip"}} & set(sys.modules)
assert not loaded, loaded
"""

pytestmark = pytest.mark.parametrize("name", ["cuda", "rocm"])


def probe(
    name: str, tmp_path: Path, *, driver: str = "", binding: bool = False, bus: Path | None = None
) -> dict[str, object]:
    """Probe in a process of its own, with only the make-believe driver and binding to be found."""
    if driver:
        source = tmp_path / "driver.c"
        source.write_text(driver)
        library = tmp_path / LIBRARY[name]
        subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    if binding:
        folder = tmp_path / f"{BINDING[name]}-13.0.dist-info"
        folder.mkdir()
        title = BINDING[name].replace("_", "-")
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {title}\nVersion: 13.0\n")
    package = str(Path(__file__).parents[3] / "backends" / name)
    path = os.pathsep.join([str(tmp_path), package, str(Path(registry.__file__).parents[1])])
    command = [sys.executable, "-S", "-c", PROBE.format(name), *([str(bus)] if bus else [])]
    result = subprocess.run(
        command,
        env={"PYTHONPATH": path, "LD_LIBRARY_PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    answer: dict[str, object] = json.loads(result.stdout)
    assert answer["available"] is False, "no memory and no kernels yet"
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
    assert answer["fix"] == ""
    assert answer["devices"] == 0


def test_a_gpu_without_its_driver_says_what_to_install(name: str, tmp_path: Path) -> None:
    answer = probe(name, tmp_path, bus=gpu_on_bus(name, tmp_path))
    assert "cannot be loaded" in str(answer["detail"])
    assert "install" in str(answer["fix"])


def test_a_driver_that_fails_is_quoted(name: str, tmp_path: Path) -> None:
    answer = probe(name, tmp_path, driver=DRIVER[name].format(init=100, devices=0))
    assert "Init: " in str(answer["detail"])
    assert {"cuda": "CUDA_ERROR_NO_DEVICE", "rocm": "hipErrorNoDevice"}[name] in str(
        answer["detail"]
    )
    assert "VISIBLE_DEVICES" in str(answer["fix"])


def test_a_library_that_is_no_driver_is_no_crash(name: str, tmp_path: Path) -> None:
    answer = probe(name, tmp_path, driver="int unrelated(void) { return 0; }")
    assert "does not work" in str(answer["detail"])


def test_a_missing_binding_says_what_to_install(name: str, tmp_path: Path) -> None:
    answer = probe(name, tmp_path, driver=DRIVER[name].format(init=0, devices=2))
    assert "2 devices" in str(answer["detail"])
    assert "is missing" in str(answer["detail"])
    assert f"pip install 'kvrt[{name}]'" in str(answer["fix"])
    assert answer["devices"] == 2


def test_all_there_is_counted_and_said_to_be_unused(name: str, tmp_path: Path) -> None:
    driver = DRIVER[name].format(init=0, devices=1)
    answer = probe(name, tmp_path, driver=driver, binding=True)
    version = {"cuda": "driver for CUDA 13.2", "rocm": "ROCm 7.2"}[name]
    assert f"1 device, {version}" in str(answer["detail"])
    assert "no memory and no kernels" in str(answer["detail"])
    assert "cpu backend" in str(answer["fix"])
    assert answer["devices"] == 1


def test_opening_says_plainly_that_it_cannot(name: str) -> None:
    with pytest.raises(BackendUnavailable, match="no memory and no kernels") as raised:
        registry.load(name).open()
    assert "cpu" in raised.value.fix


def test_both_backends_have_the_same_files(name: str) -> None:
    folders = Path(__file__).parents[3] / "backends"
    files = {path.name for path in (folders / name / f"kvrt_{name}").glob("*.py")}
    assert files == {path.name for path in (folders / "cuda" / "kvrt_cuda").glob("*.py")}
