"""What bounds a model is the largest part of measured time, by its name."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvrt.errors import ConfigError
from kvrt.profiling.bottleneck import FIXES, Bound, Goal, Measured, bottleneck

DECODING = Measured(
    seconds=10.0,
    computing=9.0,
    requests=4,
    request_seconds=8.0,
    queued_seconds=0.1,
    read_bytes=80e9,
    operations=100e9,
    read_bytes_per_s=10e9,
    operations_per_s=100e9,
)
"""A few streams: the device reads its weights for each token."""


@pytest.mark.parametrize(
    ("goal", "changed", "bound"),
    [
        ("throughput", {}, "bandwidth"),
        ("latency", {}, "bandwidth"),
        ("throughput", {"operations": 850e9}, "arithmetic"),
        ("throughput", {"computing": 4.0}, "host"),
        ("ttft", {"queued_seconds": 7.0}, "queue"),
        ("ttft", {"queued_seconds": 7.0, "kv_peak": 0.97}, "memory"),
        ("latency", {"queued_seconds": 5.0, "preemptions": 2}, "memory"),
        ("latency", {"client_seconds": 17.0}, "network"),
        ("throughput", {"waiting": 3.0}, "queue"),
        ("throughput", {"waiting": 3.0, "kv_peak": 1.0}, "memory"),
        ("throughput", {"waiting": 3.0, "operations": 850e9}, "arithmetic"),
        ("throughput", {"queued_seconds": 7.0}, "bandwidth"),
        ("throughput", {"read_bytes_per_s": None}, "device"),
        ("throughput", {"operations": None}, "bandwidth"),
        ("throughput", {"read_bytes": 20e9}, "device"),
    ],
)
def test_the_bottleneck_is_the_largest_part_of_what_the_goal_counts(
    goal: Goal, changed: dict[str, float], bound: Bound
) -> None:
    found = bottleneck(replace(DECODING, **changed), goal)
    assert found.bound == bound
    assert found.fix == FIXES[bound]


def test_it_says_why_with_the_numbers() -> None:
    found = bottleneck(DECODING, "throughput")
    assert found.bandwidth == pytest.approx(80 / 9 / 10)
    assert found.arithmetic == pytest.approx(100 / 9 / 100)
    assert found.why == (
        "of the engine's time: 90% bandwidth, 10% host; while it computes, the device reads at 89%"
        " of its bandwidth and multiplies at 11% of its peak"
    )
    full = replace(DECODING, preemptions=2, kv_peak=0.97, queued_seconds=7.0)
    assert "full to 97%, and 2 sequences" in bottleneck(full, "latency").why


@given(
    seconds=st.floats(0.01, 1e4),
    share=st.floats(0, 1),
    queued=st.floats(0, 1),
    outside=st.floats(1, 10),
    goal=st.sampled_from(["throughput", "ttft", "latency"]),
)
def test_parts_add_up_to_the_whole(
    seconds: float, share: float, queued: float, outside: float, goal: Goal
) -> None:
    measured = replace(
        DECODING,
        seconds=seconds,
        computing=seconds * share,
        request_seconds=seconds,
        queued_seconds=seconds * queued,
        client_seconds=seconds * outside,
    )
    found = bottleneck(measured, goal)
    assert sum(found.parts.values()) == pytest.approx(1.0)
    assert all(part >= 0 for part in found.parts.values())


@pytest.mark.parametrize(
    "changed",
    [{"seconds": 0.0}, {"computing": 11.0}, {"queued_seconds": 9.0}, {"client_seconds": 7.0}],
)
def test_numbers_that_cannot_be_are_refused(changed: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=" is "):
        bottleneck(replace(DECODING, **changed), "latency")
