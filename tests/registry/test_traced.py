"""The tracing wrapper tells about every call, and changes none."""

import pytest
import torch

from kvrt import registry
from kvrt.errors import OutOfMemory
from kvrt.spi import DenseOps
from kvrt.testing.chaos import Chaos
from kvrt.testing.paged import Case, attend, mismatch
from kvrt.wrappers import Call, Checked, Traced


def test_every_call_is_told_in_order() -> None:
    calls: list[Call] = []
    device = Traced(registry.load("null").open(), calls.append)
    span = device.memory.reserve(device.info.granularity)
    device.memory.map(span, 0, device.memory.create())
    device.copier.to_host(torch.zeros(4), torch.ones(4)).wait()
    device.fence()
    device.synchronize()
    device.close()
    assert [call.name for call in calls] == [
        "memory.reserve",
        "memory.create",
        "memory.map",
        "copier.to_host",
        "fence",
        "synchronize",
        "close",
    ]
    assert calls[0].arguments == ("65536",)
    assert calls[2].arguments[1:] == ("0", "Chunk(handle=0)")
    assert calls[3].arguments == ("float32[4]", "float32[4]", "None")
    assert all(0 <= call.seconds < 1 for call in calls)


def test_an_error_is_told_and_passed_on() -> None:
    calls: list[Call] = []
    chaos = Chaos(registry.load("null").open(), fail={("memory.create", 1): OutOfMemory("full")})
    with pytest.raises(OutOfMemory):
        Traced(chaos, calls.append).memory.create()
    assert calls[-1].name == "memory.create"
    assert calls[-1].error == "OutOfMemory"


def test_attention_and_fused_operators_are_told() -> None:
    calls: list[Call] = []
    device = Checked(Traced(registry.load("cpu", timeout=60).open(), calls.append))
    case = Case(contexts=(3,), queries=(3,))
    got, want = attend(device, case)
    assert not mismatch(got, want, case.tolerance)
    batch = next(call for call in calls if call.name == "attention.plan")
    assert batch.arguments == ("AttentionBatch(1 sequences, 3 tokens)",)
    dense = device.extension(DenseOps)  # type: ignore[type-abstract]
    assert dense is not None
    dense.linear(torch.zeros(1, 4), torch.zeros(2, 4))
    assert calls[-1].name == "dense.linear"
    device.close()
