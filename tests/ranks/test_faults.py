"""A rank that dies, stalls, or has no memory: it is named, and nothing is left behind."""

import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from kvrt.errors import DeviceError
from kvrt.runtime import Runtime
from kvrt.sampling import SamplingParams

from .conftest import MakeRuntime, ranks_here, ranks_of, until

LONG = SamplingParams(max_tokens=600, ignore_eos=True)
SHORT = SamplingParams(max_tokens=8, ignore_eos=True)
PROMPT = [7, 8, 9] * 9
END_S = 2.0
"""From the death of one rank to the end of all."""

PROGRAM = """
import sys, time
from kvrt import Runtime
runtime = Runtime(sys.argv[1], backend="cpu", load_format="dummy", memory_limit="64MiB",
                  tensor_parallel=2)
print("ready", flush=True)
time.sleep(60)
"""


def sockets_here() -> set[tuple[object, ...]]:
    return {(c.fd, c.laddr, c.raddr, c.status) for c in psutil.Process().net_connections()}


def all_ended(runtime: Runtime, rank: int, why: str, since: float) -> None:
    """Within the time, by its name, and with nothing left."""
    until(lambda: runtime.ended is not None, END_S)
    until(lambda: ranks_here() == [], END_S)
    assert time.monotonic() - since < END_S
    assert isinstance(runtime.ended, DeviceError)
    assert f"rank {rank} " in str(runtime.ended)
    assert why in str(runtime.ended)


@pytest.mark.parametrize(
    ("ranks", "busy"),
    [
        pytest.param({"tensor_parallel": 2}, True, id="parts-busy"),
        pytest.param({"pipeline_parallel": 2}, False, id="stages-idle"),
        pytest.param({"tensor_parallel": 2}, False, id="parts-idle", marks=pytest.mark.extra),
        pytest.param({"pipeline_parallel": 2}, True, id="stages-busy", marks=pytest.mark.extra),
    ],
)
def test_a_rank_that_is_killed_ends_all_by_its_name(
    ranks: dict[str, int], busy: bool, make_runtime: MakeRuntime
) -> None:
    before = sockets_here()
    runtime = make_runtime(**ranks)
    streams = [runtime.stream(PROMPT, LONG) for _ in range(3 * busy)]
    for stream in streams:
        next(iter(stream))
    (rank,) = ranks_here()
    killed = time.monotonic()
    rank.send_signal(signal.SIGKILL)
    all_ended(runtime, 1, "SIGKILL", killed)
    for stream in streams:
        assert "rank 1 " in str(stream.wait().error)
    with pytest.raises(DeviceError, match="rank 1 "):
        runtime.generate(PROMPT, SHORT)
    runtime.close()
    assert sockets_here() <= before


def test_a_rank_that_stalls_is_a_time_out(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime(tensor_parallel=2, rank_timeout=1.0)
    assert runtime.generate(PROMPT, SHORT)[0].error is None
    (rank,) = ranks_here()
    rank.send_signal(signal.SIGSTOP)
    begun = time.monotonic()
    (result,) = runtime.generate(PROMPT[1:], SHORT)
    assert time.monotonic() - begun < 6.0
    assert "rank 1 " in str(result.error)
    assert "waiting for 1 s" in str(result.error)
    until(lambda: ranks_here() == [], END_S)


@pytest.mark.extra
def test_ranks_end_when_rank_0_is_killed(small: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, str(small)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == b"ready\n"
        (rank,) = ranks_of(psutil.Process(program.pid))
        program.kill()
    until(lambda: not rank.is_running() or rank.status() == psutil.STATUS_ZOMBIE, END_S)


def limit_memory(process: psutil.Process, more: int) -> None:
    """From here on, a process gets so many bytes more of the system, at most."""
    limit = process.memory_info().data + more
    resource.prlimit(process.pid, resource.RLIMIT_DATA, (limit, resource.RLIM_INFINITY))


def test_a_rank_without_memory_undoes_the_maps_of_all(
    make_runtime: MakeRuntime, caplog: pytest.LogCaptureFixture
) -> None:
    params = SamplingParams(max_tokens=60, ignore_eos=True)
    prompts = [[n, *PROMPT] * 6 for n in range(12)]
    options = {"keep_warm": 0, "max_batch_tokens": 32, "prefix_cache": False}
    runtime = make_runtime(tensor_parallel=2, **options)
    right = runtime.generate(prompts, params)  # all that steps compute in is there from here on
    runtime.sleep(1)
    runtime.wake()
    (rank,) = ranks_here()
    limit_memory(rank, 7 << 20)  # three chunks, and something to compute in
    results = runtime.generate(prompts, params)
    assert [result.completions for result in results] == [result.completions for result in right]
    assert sum(result.usage.preemptions for result in results) > 0
    assert "out of memory (rank 1: " in caplog.text
