"""The threads that compute: one team for the process, beside whatever else it does."""

import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from kvrt_kernels import linear

NATIVE = Path(__file__).parents[2] / "kernels/kvrt_kernels/native"
STRESS = Path(__file__).parent / "team/stress.cpp"

PREAMBLE = """
import os, signal, threading, time
import torch
from kvrt_kernels import linear
x, weight = torch.randn(64, 512), torch.randn(1024, 512)

def compute(threads):
    return linear.linear(x, weight, threads=threads)

def team():
    tasks = [f"/proc/self/task/{task}" for task in os.listdir("/proc/self/task")]
    return [task for task in tasks if open(f"{task}/comm").read() == "kvrt-team\\n"]
"""


def python(code: str) -> str:
    """What a program prints that begins with `PREAMBLE`.

    It must end well, within a minute, though the team still waits for more.
    """
    command = [sys.executable, "-c", PREAMBLE + code]
    return subprocess.run(command, check=True, stdout=-1, text=True, timeout=60).stdout.strip()


def test_the_team_is_as_large_as_the_largest_number_of_threads_asked_for():
    sizes = "for threads in (1, 3, 2, 6):\n    compute(threads)\n    print(len(team()))"
    assert python(sizes).split() == ["0", "2", "2", "5"]


def test_a_device_computes_everything_with_as_many_threads_as_it_was_told():
    code = """
from kvrt.registry import open_device
from kvrt.spi import DenseOps, DeviceOptions
from tests.backends.cpu.test_device import attend
device = open_device("cpu", 0, DeviceOptions(threads=4))
dense = device.extension(DenseOps)
for work in (
    lambda: dense.linear(x, weight),
    lambda: dense.gated_linear(x, weight, "silu"),
    lambda: attend(device),
):
    work()
    print(len(team()))
"""
    assert python(code).split() == ["3", "3", "3"]


def test_signals_are_left_to_the_programs_own_threads():
    """Python waits for them in the main thread, which only a signal of its own can wake."""
    code = """
compute(4)
for task in team():
    (mask,) = (line.split()[1] for line in open(f"{task}/status") if line.startswith("SigBlk"))
    print(int(mask, 16) >> signal.SIGINT - 1 & 1, int(mask, 16) >> signal.SIGTERM - 1 & 1)
"""
    assert python(code).split() == ["1"] * 6


def test_a_team_with_nothing_to_do_sleeps():
    code = """
compute(4)
before = time.process_time()
time.sleep(1)
print(time.process_time() - before)
"""
    assert float(python(code)) < 0.5


def test_a_forked_child_has_a_team_of_its_own():
    """Also one that was forked while another thread of its parent had the team work."""
    code = """
import warnings
warnings.simplefilter("ignore", DeprecationWarning)  # of forking with several threads: it is meant
right = compute(4)
busy = threading.Event()

def keep_busy():
    while not stop:
        compute(4)
        busy.set()

stop = False
other = threading.Thread(target=keep_busy)
other.start()
busy.wait()
for _ in range(5):
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        same = torch.equal(compute(4), right) and len(team()) == 3
        os._exit(0 if same else 1)
    print(os.waitpid(child, 0)[1])
stop = True
other.join()
print(torch.equal(compute(4), right))
"""
    assert python(code).split() == ["0"] * 5 + ["True"]


def test_callers_of_several_threads_take_turns():
    random = torch.Generator().manual_seed(1)
    x, weight = torch.randn(5, 300, generator=random), torch.randn(700, 300, generator=random)
    right = linear.linear(x, weight, threads=1)
    wrong: list[int] = []

    def call(threads: int) -> None:
        for _ in range(100):
            if not torch.equal(linear.linear(x, weight, threads=threads), right):
                wrong.append(threads)

    callers = [threading.Thread(target=call, args=(n,)) for n in (1, 2, 3, 5)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong


@pytest.mark.extra  # compiles for some seconds
def test_a_team_that_several_callers_share_has_no_data_race(tmp_path):
    """The threads alone, as ThreadSanitizer sees them."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("there is no g++")
    stress = tmp_path / "stress"
    subprocess.run(
        [compiler, "-std=c++17", "-O1", "-g", "-fsanitize=thread", "-pthread", "-Wall", "-Wextra",
         "-Werror", "-I", NATIVE, STRESS, "-o", stress],
        check=True,
    )  # fmt: skip
    for _ in range(3):
        done = subprocess.run([stress], stdout=-1, stderr=-2, text=True, timeout=120, check=False)
        assert done.stdout == "right\n"
