"""Who may use a folder of pages, and that only one process writes to it."""

import os
import random
import resource
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from kvrt.errors import StoreError
from kvrt.kv.tiers.files import DATA, INDEX
from kvrt.kv.tiers.folder import LOCK
from kvrt.kv.tiers.pagefile import PageFile

from .pages import FORM, body, names, opened, read

NOBODY = 65534
NAMES = names(3)


@pytest.fixture
def as_nobody() -> Iterator[Path]:
    """A folder of ours, for a user whom permissions bind; root may do anything."""
    folder = Path(tempfile.mkdtemp())
    us = os.geteuid()
    if us == 0:
        os.chown(folder, NOBODY, NOBODY)
        os.seteuid(NOBODY)
    yield folder
    if us == 0:
        os.seteuid(0)
    shutil.rmtree(folder)


def refusal(folder: Path, **options: object) -> StoreError:
    with pytest.raises(StoreError) as caught:
        PageFile.open(folder, FORM, **options)  # type: ignore[arg-type]
    assert str(folder) in str(caught.value)
    assert caught.value.fix
    return caught.value


def test_what_is_made_is_for_its_owner_alone(tmp_path: Path) -> None:
    folder = tmp_path / "not" / "there"
    with opened(folder) as file:
        file.write(NAMES[0], body(NAMES[0]))
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}


def test_a_folder_of_somebody_else_is_not_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: tmp_path.stat().st_uid + 1)
    error = refusal(tmp_path)
    assert error.reason == "denied"
    assert f"belongs to user {tmp_path.stat().st_uid}" in str(error)
    assert "chown" in error.fix
    assert not list(tmp_path.iterdir())


def test_a_folder_that_may_not_be_written_to_is_named(as_nobody: Path) -> None:
    as_nobody.chmod(0o500)
    error = refusal(as_nobody)
    assert error.reason == "denied"
    assert "Permission denied" in str(error)
    error = refusal(as_nobody / "new")
    assert error.reason == "denied"
    as_nobody.chmod(0o700)


def test_a_folder_that_may_only_be_read_is_read(as_nobody: Path) -> None:
    with opened(as_nobody) as file:
        file.write(NAMES[0], body(NAMES[0]))
    for path in as_nobody.iterdir():
        path.chmod(0o400)
    as_nobody.chmod(0o500)
    before = {path.name: path.stat().st_mtime_ns for path in as_nobody.iterdir()}
    with opened(as_nobody, writable=False) as file:
        assert read(file, NAMES[0])
        assert not file.write(NAMES[1], body(NAMES[1]))
        assert file.forget(NAMES[0])
    assert {path.name: path.stat().st_mtime_ns for path in as_nobody.iterdir()} == before
    (as_nobody / INDEX).chmod(0)
    assert refusal(as_nobody, writable=False).reason == "denied"
    as_nobody.chmod(0o700)


def test_what_is_no_folder_is_named(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("something of the user's")
    for writable in (True, False):
        error = refusal(path, writable=writable)
        assert error.reason == "denied"
        assert "is not a folder" in str(error)
    assert refusal(path / "below").reason in ("denied", "failed")
    assert path.read_text() == "something of the user's"


def test_a_folder_that_cannot_be_made_is_not_said_to_lack_pages() -> None:
    error = refusal(Path("/proc/kvrt"))
    assert error.reason == "failed"
    assert "cannot be made" in str(error)
    assert "another folder" in error.fix


def test_a_name_that_no_file_can_have_is_refused() -> None:
    with pytest.raises(StoreError, match="is not a path"):
        PageFile.open(Path("a\0b"), FORM)


def test_nothing_to_read_is_an_error_that_says_so_and_makes_nothing(tmp_path: Path) -> None:
    assert refusal(tmp_path / "new", writable=False).reason == "missing"
    assert refusal(tmp_path, writable=False).reason == "missing"
    assert not list(tmp_path.iterdir())


def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with opened(tmp_path) as file:
        file.write(NAMES[0], body(NAMES[0]))
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("name", [INDEX, DATA])
def test_a_link_is_not_followed(tmp_path: Path, name: str) -> None:
    with opened(tmp_path / "pages"):
        pass
    target = tmp_path / "elsewhere"
    (tmp_path / "pages" / name).rename(target)
    (tmp_path / "pages" / name).symlink_to(target)
    before = target.read_bytes()
    refusal(tmp_path / "pages")
    assert target.read_bytes() == before


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


def a_socket(path: Path) -> None:
    here = Path.cwd()
    with socket.socket(socket.AF_UNIX) as listening:
        os.chdir(path.parent)  # the whole path may be too long for a socket
        try:
            listening.bind(path.name)
        finally:
            os.chdir(here)


def a_folder(path: Path) -> None:
    path.mkdir()


def a_device(number: int) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        try:
            os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, number))
        except PermissionError:
            pytest.skip("only root can make a device")

    return make


@pytest.mark.promise("P21")
@pytest.mark.parametrize("writable", [True, False], ids=["to write", "to read"])
@pytest.mark.parametrize("name", [INDEX, DATA, LOCK])
@pytest.mark.parametrize(
    "make",
    [a_pipe, a_socket, a_folder, a_device(5), a_device(7), a_device(99)],
    ids=["pipe", "socket", "folder", "zero", "full", "no device"],
)
def test_what_is_no_regular_file_is_refused_at_once(
    tmp_path: Path, make: Callable[[Path], None], name: str, writable: bool
) -> None:
    with opened(tmp_path) as file:
        file.write(NAMES[0], body(NAMES[0]))
    (tmp_path / name).unlink()
    make(tmp_path / name)
    kind = stat.S_IFMT((tmp_path / name).stat().st_mode)
    if name == LOCK and not writable:
        with opened(tmp_path, writable=False) as file:  # it needs no lock
            assert read(file, NAMES[0])
    else:
        assert refusal(tmp_path, writable=writable).reason in ("denied", "failed")
    assert stat.S_IFMT((tmp_path / name).stat().st_mode) == kind


@pytest.mark.promise("P21")
@pytest.mark.parametrize("size", [8 << 30, 1 << 40], ids=["8 GiB", "1 TiB"])
def test_an_index_longer_than_any_memory_is_read_as_far_as_it_can_be_one(
    tmp_path: Path, size: int
) -> None:
    """As a torn truncate leaves it: all holes."""
    with opened(tmp_path) as file:
        for name in NAMES:
            file.write(name, body(name))
    held = (tmp_path / INDEX).stat().st_size
    os.truncate(tmp_path / INDEX, size)
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (4 << 30, hard))
    try:
        with opened(tmp_path, writable=False) as file:
            assert all(read(file, name) for name in NAMES)
            assert file.damaged == 1
        assert (tmp_path / INDEX).stat().st_size == size
        with opened(tmp_path) as file:
            assert all(read(file, name) for name in NAMES)
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
    assert held <= (tmp_path / INDEX).stat().st_size < 1 << 20, "what is no index is cut off"
    with opened(tmp_path) as file:
        assert not file.damaged


@pytest.mark.promise("P21")
@pytest.mark.parametrize("where", [".", INDEX, DATA])
def test_pages_that_another_user_may_have_made_are_not_read(tmp_path: Path, where: str) -> None:
    """Checksums find damage, not malice."""
    with opened(tmp_path) as file:
        file.write(NAMES[0], body(NAMES[0]))
    path = tmp_path / where
    mode = stat.S_IMODE(path.stat().st_mode)
    for bits in (0o020, 0o002, 0o022):
        path.chmod(mode | bits)
        for writable in (True, False):
            error = refusal(tmp_path, writable=writable)
            assert error.reason == "denied"
            assert f"chmod -R go-w {path}" in error.fix
    path.chmod(mode | 0o055)
    with opened(tmp_path, writable=False) as file:
        assert read(file, NAMES[0]), "others may read what its owner lets them"
    if os.geteuid():
        pytest.skip("only root can give a file away")
    os.chown(path, NOBODY, NOBODY)
    error = refusal(tmp_path, writable=False)
    assert error.reason == "denied"
    assert f"belongs to user {NOBODY}" in str(error)
    assert f"chown -R 0 {path}" in error.fix


def test_pages_of_the_administrator_are_read_by_everybody(as_nobody: Path) -> None:
    if os.getuid():
        pytest.skip("only root can take and give files")
    with opened(as_nobody) as file:
        file.write(NAMES[0], body(NAMES[0]))
    os.seteuid(0)
    for path in (as_nobody, *as_nobody.iterdir()):
        os.chown(path, 0, 0)
        path.chmod(0o755 if path.is_dir() else 0o644)
    os.seteuid(NOBODY)
    with opened(as_nobody, writable=False) as file:
        assert read(file, NAMES[0])


@pytest.mark.promise("P21")
@pytest.mark.parametrize("seed", range(40))
def test_whatever_has_become_of_a_folder_its_pages_are_right_or_missed(
    tmp_path: Path, seed: int
) -> None:
    """Several things at once, of all those above."""
    rng = random.Random(seed)
    with opened(tmp_path) as file:
        for name in NAMES:
            file.write(name, body(name))
    for name in rng.sample([INDEX, DATA, LOCK], rng.randint(1, 3)):
        path = tmp_path / name
        change = rng.choice(["replaced", "moved", "length", "mode", "gone", "noise"])
        if change == "length":
            os.truncate(path, rng.choice([0, 1, 4095, 4096, 1 << 20, 1 << 33, 1 << 40]))
        elif change == "mode":
            path.chmod(rng.choice([0, 0o400, 0o666, 0o600]))
        elif change == "noise":
            path.write_bytes(rng.randbytes(rng.choice([1, 5000, 50_000])))
        else:
            path.rename(tmp_path / "moved") if change == "moved" else path.unlink()
            if change == "moved":
                path.symlink_to(tmp_path / "moved")
            elif change == "replaced":
                rng.choice([a_pipe, a_socket, a_folder])(path)
    for writable in (False, True):
        with suppress(StoreError), opened(tmp_path, writable=writable) as file:
            for name in NAMES:
                read(file, name)


def test_data_that_has_lost_its_index_is_not_written_over(tmp_path: Path) -> None:
    with opened(tmp_path) as file:
        file.write(NAMES[0], body(NAMES[0]))
    (tmp_path / INDEX).unlink()
    before = (tmp_path / DATA).read_bytes()
    error = refusal(tmp_path)
    assert error.reason == "damaged"
    assert "without its index" in str(error)
    assert (tmp_path / DATA).read_bytes() == before


def test_a_second_process_is_refused_by_the_first_ones_number(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from tests.tiers.pages import *\n"
        "file = PageFile.open(Path(sys.argv[1]), FORM)\n"
        "file.write(names(1)[0], body(names(1)[0]))\n"
        "print('open', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "open\n"
        error = refusal(tmp_path)
        assert error.reason == "locked"
        assert f"process {other.pid}" in str(error)
        with opened(tmp_path, writable=False) as file:  # reading beside it is fine
            assert read(file, NAMES[0])
        other.kill()
    with opened(tmp_path) as file:  # the lock went with the process
        assert read(file, NAMES[0])


def test_a_folder_opened_twice_by_one_process_is_refused(tmp_path: Path) -> None:
    with opened(tmp_path):
        assert f"process {os.getpid()}" in str(refusal(tmp_path))
    with opened(tmp_path):
        pass
