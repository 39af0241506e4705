"""A PostgreSQL of the tests' own: made anew, on a Unix socket, by a user without rights."""

import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

PORT = 5432
SETTINGS = ("listen_addresses=", "fsync=off", "shared_buffers=16MB", "max_connections=40")
USERS = ("postgres", "nobody")
"""Who may run it where the tests are root's, whom it refuses."""


def programs() -> Path | None:
    """The folder of its programs; None: it is not installed."""
    found = shutil.which("initdb")
    if found is not None:
        return Path(found).resolve().parent
    return max(Path("/usr/lib/postgresql").glob("*/bin"), default=None)


@contextmanager
def cluster(programs: Path) -> Iterator[str]:
    """Meanwhile, there is one: the URL of its database."""
    with tempfile.TemporaryDirectory(prefix="kvrt-pg-") as name:
        folder, user = Path(name), None
        if os.geteuid() == 0:
            names = {each.pw_name for each in pwd.getpwall()}
            user = next(each for each in USERS if each in names)
            found = pwd.getpwnam(user)
            os.chown(folder, found.pw_uid, found.pw_gid)
        data = folder / "data"
        as_user = {"user": user, "extra_groups": ()} if user else {}
        made = [programs / "initdb", "-D", data, "-A", "trust", "-U", "kvrt", "--no-sync",
                "-E", "UTF8", "--locale", "C"]  # fmt: skip
        subprocess.run(made, check=True, capture_output=True, cwd=folder, **as_user)  # type: ignore[call-overload]
        command = [programs / "postgres", "-D", data, "-k", folder, "-p", str(PORT)]
        for setting in SETTINGS:
            command += ["-c", setting]
        with (folder / "log").open("wb") as log:
            server = subprocess.Popen(
                command, stdout=log, stderr=log, cwd=folder, start_new_session=True, **as_user
            )  # type: ignore[call-overload]
        try:
            _until_it_listens(programs, folder, server)
            yield f"postgresql://kvrt@{quote(str(folder), safe='')}:{PORT}/postgres"
        finally:
            server.terminate()
            server.wait(30)


def _until_it_listens(programs: Path, folder: Path, server: "subprocess.Popen[bytes]") -> None:
    ask = [programs / "pg_isready", "-q", "-h", folder, "-p", str(PORT)]
    end = time.monotonic() + 60
    while subprocess.run(ask).returncode:
        assert server.poll() is None, (folder / "log").read_text()
        assert time.monotonic() < end, "it does not listen"
        time.sleep(0.05)
