import itertools
import os
import platform
import subprocess
import sys

import kvrt_cpu
import kvrt_kernels
import pytest
import torch
from kvrt_cpu import host
from kvrt_cpu.measure import TorchLimits
from kvrt_kernels import _load

from kvrt.errors import BackendUnavailable, ConfigError, ContractError
from kvrt.registry import open_device
from kvrt.spi import (
    SPI_VERSION,
    AttentionBatch,
    AttentionParams,
    Capability,
    DenseOps,
    DeviceOptions,
    KVLayout,
    Measurable,
)

HEADS, KV_HEADS, HEAD_DIM, PAGE_SIZE = 6, 3, 48, 8
LENGTHS, QUERIES = (5, 123, 64), (5, 1, 31)


@pytest.fixture
def device():
    device = open_device("cpu")
    yield device
    device.close()


@pytest.fixture
def no_kernels(monkeypatch):
    """An installation in which the compiled module is missing."""
    monkeypatch.setattr(_load, "_load", lambda: "No module named 'kvrt_kernels._native'")


def attend(device, dtype="float32", page_size=PAGE_SIZE, head_dim=HEAD_DIM):
    """Attention over shuffled pages of a span of this device, keys and values appended first."""
    layout = KVLayout.packed(
        dtype,
        layers=1,
        kv_heads=KV_HEADS,
        head_dim=head_dim,
        page_size=page_size,
    )
    random = torch.Generator().manual_seed(3)
    memory, step = device.memory, device.info.granularity
    span = memory.reserve(step)
    chunk = memory.create()
    memory.map(span, 0, chunk)
    pages = torch.randperm(3 * 24, generator=random).view(3, 24).int()
    tokens = sum(LENGTHS)
    k, v = torch.randn(2, tokens, KV_HEADS, head_dim, generator=random)
    q = torch.randn(sum(QUERIES), HEADS, head_dim, generator=random)
    kv, lengths = memory.tensor(span, dtype), torch.tensor(LENGTHS).int()

    def plan(counts):
        start = torch.tensor([0, *torch.tensor(counts).cumsum(0)]).int()
        return device.attention.plan(AttentionBatch(kv, layout, pages, start, lengths))

    device.attention.append(plan(LENGTHS), 0, k, v)
    out = torch.empty_like(q)
    params = AttentionParams(scale=0.2, window=40, softcap=5.0)
    device.attention.run(plan(QUERIES), 0, q, out, params)
    memory.unmap(span, 0, chunk)
    memory.destroy(chunk)
    memory.release(span)
    return out


# --- probe and open ---------------------------------------------------------------------------


def test_probing_is_quick_and_loads_no_torch():
    script = """
import sys, time
import kvrt_cpu
begin = time.perf_counter()
probe = kvrt_cpu.backend.probe()
print(probe.available, probe.devices, time.perf_counter() - begin < 0.5, "torch" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "True 1 True False\n"


def test_the_backend_is_found_by_its_entry_point_and_written_for_this_interface(device):
    assert kvrt_cpu.backend.spi == SPI_VERSION
    assert device.info.backend == kvrt_cpu.backend.name == "cpu"


def test_another_operating_system_is_refused_with_what_to_do(monkeypatch):
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    probe = kvrt_cpu.backend.probe()
    assert not probe.available
    assert "Darwin" in probe.detail
    with pytest.raises(BackendUnavailable, match="Darwin") as error:
        kvrt_cpu.backend.open()
    assert "Linux" in error.value.fix


def test_a_probe_without_proc_answers_instead_of_raising(monkeypatch):
    def missing():
        raise FileNotFoundError(2, "No such file or directory", "/proc/cpuinfo")

    monkeypatch.setattr(host, "processor", missing)
    probe = kvrt_cpu.backend.probe()
    assert not probe.available
    assert "/proc/cpuinfo" in probe.detail
    assert probe.fix == "mount /proc"


def test_there_is_one_device_and_others_are_refused():
    with pytest.raises(BackendUnavailable, match="no cpu device 1"):
        kvrt_cpu.backend.open(1)


def test_no_threads_at_all_is_refused():
    with pytest.raises(ConfigError, match="threads = 0"):
        kvrt_cpu.backend.open(0, DeviceOptions(threads=0))


def test_the_info_says_what_the_machine_is(device):
    info = device.info
    assert info.arch == kvrt_kernels.isa()
    assert info.name
    assert info.granularity == 2 << 20
    assert 0 < info.total_bytes <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_aliasing_is_declared_only_where_it_was_asked_for(device):
    assert Capability.ALIASING not in device.info.capabilities
    shareable = open_device("cpu", 0, DeviceOptions(shareable=True))
    assert Capability.ALIASING in shareable.info.capabilities
    shareable.close()


# --- with and without compiled kernels --------------------------------------------------------


def test_compiled_kernels_give_fused_operators_and_batch_invariance(device):
    assert isinstance(device.extension(DenseOps), DenseOps)
    assert Capability.BATCH_INVARIANT in device.info.capabilities
    assert device.extension(int) is None


def test_without_compiled_kernels_the_device_says_so_and_declares_less(no_kernels):
    device = open_device("cpu")
    (note,) = (note for note in device.info.notes if "slow torch reference" in note)
    assert "No module named" in note
    assert "reinstall" in note
    assert Capability.BATCH_INVARIANT not in device.info.capabilities
    assert device.extension(DenseOps) is None
    device.close()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_attention_is_the_same_with_and_without_compiled_kernels(device, monkeypatch, dtype):
    fast = attend(device, dtype)
    monkeypatch.setattr(_load, "_load", lambda: "missing")
    other = open_device("cpu")
    slow = attend(other, dtype)
    other.close()
    # AMX's tiles take queries and weights in bfloat16, beside keys and values that are kept so.
    rounded = dtype == "bfloat16" and "amx" in device.info.arch
    torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-2 if rounded else 1e-5)


def test_the_number_of_threads_changes_no_bit():
    results = []
    for threads in (1, 2, 3):
        device = open_device("cpu", 0, DeviceOptions(threads=threads))
        results.append(attend(device))
        device.close()
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_pages_may_have_any_size(device, monkeypatch):
    fast = attend(device, page_size=7)
    monkeypatch.setattr(_load, "_load", lambda: "missing")
    other = open_device("cpu")
    torch.testing.assert_close(fast, attend(other, page_size=7), rtol=1e-4, atol=1e-5)
    other.close()


def test_a_head_size_the_compiled_kernels_do_not_know_is_refused_before_anything_runs(device):
    assert 24 not in device.info.head_dims
    with pytest.raises(ContractError, match=r"layout\.head_dim = 24: must be one of .* 16, 32, 48"):
        attend(device, head_dim=24)


def test_without_compiled_kernels_heads_may_have_any_size(no_kernels):
    other = open_device("cpu")
    assert other.info.head_dims == ()
    assert attend(other, head_dim=24).isfinite().all()
    other.close()


@pytest.mark.parametrize("kernels", [True, False], ids=["compiled", "torch"])
def test_the_machine_s_limits_can_be_measured(kernels, request):
    if not kernels:
        request.getfixturevalue("no_kernels")
    device = open_device("cpu")
    bandwidth = device.extension(Measurable).measure()
    device.close()
    assert 1e8 < bandwidth.read_bytes_per_s < 1e13
    assert 1e8 < bandwidth.flops_per_s < 1e15


def test_limits_are_measured_with_the_threads_of_the_device(monkeypatch):
    asked = []
    monkeypatch.setattr("kvrt_kernels.limits.measure", lambda **how: asked.append(how))
    device = open_device("cpu", 0, DeviceOptions(threads=3))
    device.extension(Measurable).measure()
    device.close()
    assert asked == [{"threads": 3}]


def test_without_compiled_kernels_limits_are_of_a_sum_and_of_a_product(monkeypatch):
    """By a clock that each takes half a second."""
    now = itertools.count(0.0, 0.5)
    monkeypatch.setattr("kvrt_cpu.measure.time.perf_counter", lambda: next(now))
    limits = TorchLimits().measure()
    assert (limits.read_bytes_per_s, limits.flops_per_s) == (4 * (64 << 20) / 0.5, 2**31 / 0.5)


# --- life -------------------------------------------------------------------------------------


def test_work_is_done_when_its_method_returns(device):
    assert device.fence().done()
    device.synchronize()
    assert device.fence().wait(0)


def test_closing_twice_is_safe(device):
    device.close()
    device.close()


def test_attention_is_refused_in_a_forked_child(monkeypatch):
    device = kvrt_cpu.backend.open()
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: -2)
        with pytest.raises(ContractError, match="forked child"):
            device.attention.plan(None)
    device.close()
