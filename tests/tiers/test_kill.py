"""A process that is killed while it writes leaves whole pages or none."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROUNDS = 20
"""Of killing at a random moment."""

MOST_POINTS = 500


def run(function: str, folder: Path) -> str:
    """Run a function below in a process of its own, which forks children and kills them.

    A fresh process has no threads, whose locks a child would inherit.
    """
    code = f"from tests.tiers.test_kill import {function}; {function}({str(folder)!r})"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.promise("P10")
def test_killed_at_any_call(tmp_path: Path) -> None:
    points, found = map(int, run("kill_at_each_call", tmp_path).split())
    assert points > 35
    assert found > points, "there should be pages left after most kills"


@pytest.mark.promise("P10")
def test_killed_at_any_moment(tmp_path: Path) -> None:
    rounds, found = map(int, run("kill_at_random", tmp_path).split())
    assert rounds == ROUNDS
    assert found > 0


# --- what the process above does ----------------------------------------------------------------


def kill_at_each_call(folder: str) -> None:
    from tests.tiers.pages import FORM, Faults, FaultyFile, body, names, opened, read

    class Kill(Faults):
        def __call__(self, path, *, writable, direct):  # type: ignore[no-untyped-def]
            return KilledFile(path, writable=writable, direct=direct, faults=self)

    class KilledFile(FaultyFile):
        def _or_fail(self, before=lambda: None):  # type: ignore[no-untyped-def]
            if self._faults.strike():
                before()
                os.kill(os.getpid(), signal.SIGKILL)

    here = names(8)
    budget = 2 * 4096 + 4 * (FORM.page_stride + FORM.record_bytes)

    def change(path: Path, kill: Kill) -> None:
        with opened(path, budget=budget, open_file=kill) as file:
            for name in here[2:6]:
                file.write(name, body(name))
            file.remove(here[4])
            for name in here[5:]:  # evicts
                file.write(name, body(name))
            file.sync()

    found = points = 0
    for torn in (False, True):
        for at in range(MOST_POINTS):
            path = Path(folder) / f"{torn}-{at}"
            with opened(path, budget=budget) as file:
                for name in here[:2]:
                    file.write(name, body(name))
            child = os.fork()
            if child == 0:
                change(path, Kill(at, torn=torn))
                os._exit(0)
            _, status = os.waitpid(child, 0)
            with opened(path, budget=budget) as file:
                found += sum(read(file, name) for name in here)
                assert torn or not file.damaged, "a record was there before its body"
                for name in here:
                    assert file.write(name, body(name))
            with opened(path, budget=budget) as file:
                assert sum(read(file, name) for name in here) == 4
            if status == 0:
                break
            assert os.WIFSIGNALED(status)
            points += 1
        else:
            raise AssertionError("the change has more calls than that")
    print(points, found)


def kill_at_random(folder: str) -> None:
    from kvrt.kv.tiers.disk import DiskStore
    from kvrt.kv.tiers.pagefile import PageFile
    from tests.tiers.pages import FORM, body, names, opened, read

    rng = random.Random(7)
    here = names(64)
    budget = 2 * 4096 + 24 * (FORM.page_stride + FORM.record_bytes)
    path = Path(folder)
    found = 0
    for _ in range(ROUNDS):
        begun, begin = os.pipe()
        child = os.fork()
        if child == 0:
            store = DiskStore(PageFile.open(path, FORM, budget=budget))
            os.write(begin, b"x")
            for n in range(10**9):
                store.store(name := here[rng.randrange(len(here))], body(name)).wait(n % 2)
                if n % 5 == 0:
                    store.remove(here[rng.randrange(len(here))])
        os.read(begun, 1)
        time.sleep(rng.random() * 0.2)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(begun)
        os.close(begin)
        with opened(path, budget=budget) as file:
            found += sum(read(file, name) for name in here)
            assert not file.damaged
    print(ROUNDS, found)
