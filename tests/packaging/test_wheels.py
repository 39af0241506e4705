"""What a release is made of: the sdist, and what is built from it alone."""

import configparser
import email
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.message import Message
from pathlib import Path

import pytest

import kvrt

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = [ROOT / name for name in PROJECT["tool"]["scikit-build"]["wheel"]["packages"]]
TO_SDIST = "from scikit_build_core.build import build_sdist as b; import sys; b(sys.argv[1])"
TO_WHEEL = """from scikit_build_core.build import build_wheel; import sys
build_wheel(sys.argv[1], {"wheel.cmake": "false", "wheel.py-api": "py3"})"""


def files_of(folder: Path) -> set[str]:
    """By their names from where the folder is."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return {p.relative_to(folder.parent).as_posix() for p in found if "__pycache__" not in p.parts}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist, unpacked."""
    folder = tmp_path_factory.mktemp("sdist")
    subprocess.run([sys.executable, "-c", TO_SDIST, str(folder)], cwd=ROOT, check=True)
    (archive,) = folder.iterdir()
    with tarfile.open(archive) as inner:
        inner.extractall(folder, filter="data")
    return folder / archive.name.removesuffix(".tar.gz")


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Built from the sdist, but for its kernels, which take minutes."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-c", TO_WHEEL, str(folder)], cwd=source, check=True)
    (archive,) = folder.iterdir()
    return zipfile.ZipFile(archive)


@pytest.fixture(scope="module")
def metadata(wheel: zipfile.ZipFile) -> Message:
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    return email.message_from_bytes(wheel.read(name))


def test_a_wheel_has_all_files_of_its_packages_and_no_others(wheel: zipfile.ZipFile) -> None:
    there = {name for name in wheel.namelist() if ".dist-info/" not in name}
    wanted = {name for package in PACKAGES for name in files_of(package)}
    sources = {name for name in wanted if name.startswith("kvrt_kernels/native/")}
    assert len(sources) > 30
    assert there == wanted - sources
    assert {name.split("/")[0] for name in there} == {package.name for package in PACKAGES}


def test_the_bundled_model_and_the_page_are_what_the_tree_has(wheel: zipfile.ZipFile) -> None:
    for name in ("kvrt/model/bundled/tiny/model.safetensors", "kvrt/server/static/index.html"):
        assert wheel.read(name) == (ROOT / name).read_bytes(), name


def test_what_a_wheel_says_of_itself(wheel: zipfile.ZipFile, metadata: Message) -> None:
    assert metadata["Version"] == kvrt.__version__
    assert metadata["Requires-Python"] == PROJECT["project"]["requires-python"]
    assert set(metadata.get_all("Provides-Extra", [])) == {
        *PROJECT["project"]["optional-dependencies"]
    }
    required = [each for each in metadata.get_all("Requires-Dist", []) if "extra ==" not in each]
    assert len(required) == len(PROJECT["project"]["dependencies"])
    assert str(metadata.get_payload()).startswith("# kvrt")
    (said,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    points = configparser.ConfigParser()
    points.read_string(wheel.read(said).decode())
    assert {group: dict(points[group]) for group in points.sections()} == {
        "console_scripts": PROJECT["project"]["scripts"],
        **PROJECT["project"]["entry-points"],
    }
    (licence,) = (name for name in wheel.namelist() if name.endswith("/LICENSE"))
    assert wheel.read(licence) == (ROOT / "LICENSE").read_bytes()


def test_an_sdist_has_what_kernels_are_built_from_and_nothing_that_was_built(source: Path) -> None:
    native = Path("kernels/kvrt_kernels/native")
    assert files_of(source / native) == files_of(ROOT / native)
    assert (source / "CMakeLists.txt").read_bytes() == (ROOT / "CMakeLists.txt").read_bytes()
    there = {path.relative_to(source) for path in source.rglob("*")}
    assert not [p for p in there if p.suffix in (".so", ".o", ".pyc")]
    assert not {"build", ".venv", ".git"} & {path.parts[0] for path in there}


@pytest.mark.extra
@pytest.mark.timeout(7200)
def test_the_bundled_model_answers_from_a_wheel_where_there_is_no_compiler() -> None:
    """ARM64's is not among them: docs/wheels.md says why."""
    for step in ("build", "try"):
        done = subprocess.run(
            ["ci/wheels", step, "x86_64"], cwd=ROOT, capture_output=True, text=True
        )
        if done.returncode == 2 and "is missing" in done.stderr:
            pytest.skip(done.stderr)
        assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("installed without a compiler, and answers") == 2
