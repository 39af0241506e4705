"""What holds a model back, from measured numbers. Values alone: nothing is measured here.

A request's time is taken apart, from the outside in:

    client  |---------------------- its client's time ----------------------|
    network |--|                                                         |--|
    queue      |------- waits -------|
    host                             |- plans, samples, writes text -|
    device                                                           |------|  bandwidth, arithmetic

The largest part is the bottleneck. The device's part is called by the limit that it comes nearer
to, its read bandwidth or its arithmetic, as in the roofline model (Williams, Waterman, Patterson:
Roofline, an insightful visual performance model for multicore architectures, CACM 52:4, 2009).
What waits because KV memory is full waits for memory, and not for its turn.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from kvrt.errors import ConfigError

Bound = Literal["network", "queue", "memory", "host", "bandwidth", "arithmetic", "device"]
"""What a part of the time is spent on; ``device``: it computes, and is near neither of its limits,
or they are not known."""

Goal = Literal["throughput", "ttft", "latency"]
"""What is to be better: tokens per second, the time to the first token, that to the last."""

NEAR = 0.3
"""Of a limit: what is further from it is not bound by it."""

FULL = 0.95
"""Of the KV memory's limit: from here on, what waits does so for memory."""

FIXES: Mapping[Bound, str] = {
    "network": "measure nearer to the server, or keep connections open: the server is not the"
    " part that counts",
    "queue": "let more run at once (max_running, max_batch_tokens), or spread requests over several"
    " servers (kvrt route)",
    "memory": "give the KV cache more memory (memory_limit), or make its pages smaller"
    " (kv_cache_dtype int8)",
    "host": "let more requests share a step, or use a larger model or batch: a step here is too"
    " short for what is done around it",
    "bandwidth": "read less for each token: more sequences at a time, smaller weights (quantize) or"
    " pages (kv_cache_dtype), or speculation",
    "arithmetic": "compute less for each token: reuse of prefixes, or weights whose products are"
    " faster (quantize), or threads and devices that are not used yet",
    "device": "make steps larger (a batch, a model), leave the machine to it alone, or see with"
    " kvrt doctor whether its limits can be measured: they are not what it comes near to",
}
"""What to do first about each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What was seen of some requests. Seconds and counts are of the same stretch of time.

    Args:
        seconds: that it took.
        computing: of these, while the device computed; the engine's steps without what was done on
            the host around it.
        requests: that ended in it.
        request_seconds: of a request, from its submission to its end, on average.
        queued_seconds: of these, until it first ran, on average.
        client_seconds: as the client saw it, on average; None: there is no network between.
        waiting: requests that waited in a step, on average.
        preemptions: sequences that had to give their pages to others.
        kv_peak: the part of the KV memory's limit that was used at the peak, from 0 to 1.
        read_bytes: that the device read for it at the least: weights once a step, and the keys and
            values of contexts; None: unknown.
        operations: of its products, a multiply-add is two; None: unknown.
        read_bytes_per_s: what the device can read; None: unknown.
        operations_per_s: what it can compute, with weights of this kind; None: unknown.
    """

    seconds: float
    computing: float
    requests: int
    request_seconds: float
    queued_seconds: float
    client_seconds: float | None = None
    waiting: float = 0.0
    preemptions: int = 0
    kv_peak: float = 0.0
    read_bytes: float | None = None
    operations: float | None = None
    read_bytes_per_s: float | None = None
    operations_per_s: float | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """What to look at first.

    Args:
        bound: the largest part.
        parts: of the time, by what it is spent on; they add up to 1.
        bandwidth: the part of the device's read bandwidth that was used while it computed; None:
            unknown.
        arithmetic: the same of its arithmetic.
        why: in a sentence, with the numbers.
        fix: what to do first.
    """

    bound: Bound
    parts: Mapping[Bound, float]
    bandwidth: float | None
    arithmetic: float | None
    why: str
    fix: str


def bottleneck(measured: Measured, goal: Goal) -> Finding:
    """What bounds a goal.

    For ``throughput``, what waits is no loss as long as the device has work: the time is the
    engine's. But where the device reads its weights for few sequences, as others have no place or
    no memory to run in, that is what to change. For the others, the time is that of a request.

    Raises:
        ConfigError: the numbers cannot be: no time, or parts that are longer than the whole.
    """
    _check(measured)
    bandwidth = part(measured.read_bytes, measured.computing, measured.read_bytes_per_s)
    arithmetic = part(measured.operations, measured.computing, measured.operations_per_s)
    device = _device(bandwidth, arithmetic)
    busy = measured.computing / measured.seconds
    parts: dict[Bound, float] = {device: busy, "host": 1.0 - busy}
    waits: Bound = "memory" if _short(measured) else "queue"
    if goal != "throughput":
        parts = _of_a_request(measured, parts, waits)
    bound = max(parts, key=lambda name: parts[name])
    crowded = measured.waiting >= 1.0 or measured.preemptions > 0
    if goal == "throughput" and bound == "bandwidth" and crowded:
        bound = waits
    why = _why(measured, goal, bound, parts, bandwidth, arithmetic)
    return Finding(bound, parts, bandwidth, arithmetic, why, FIXES[bound])


def _check(measured: Measured) -> None:
    whole = measured.client_seconds
    pairs = [
        ("computing", measured.computing, "seconds", measured.seconds),
        ("queued_seconds", measured.queued_seconds, "request_seconds", measured.request_seconds),
    ]
    if whole is not None:
        pairs.append(("request_seconds", measured.request_seconds, "client_seconds", whole))
    for part, less, name, more in pairs:
        if not 0 <= less <= more * (1 + 1e-6) or more <= 0:
            raise ConfigError(
                f"{part} is {less:.6g} and {name} {more:.6g}",
                fix=f"measure both in the same run: {part} is a part of {name}",
            )


def part(done: float | None, seconds: float, limit: float | None) -> float | None:
    """Of a limit a second: what was done in so many seconds; None: one of them is not known."""
    if done is None or not limit or not seconds:
        return None
    return done / seconds / limit


def _device(bandwidth: float | None, arithmetic: float | None) -> Bound:
    near: dict[Bound, float] = {"bandwidth": bandwidth or 0.0, "arithmetic": arithmetic or 0.0}
    bound = max(near, key=lambda name: near[name])
    return bound if near[bound] >= NEAR else "device"


def _short(measured: Measured) -> bool:
    return measured.preemptions > 0 or measured.kv_peak >= FULL


def _of_a_request(
    measured: Measured, engine: Mapping[Bound, float], waits: Bound
) -> dict[Bound, float]:
    """The parts of a request's time: what is neither network nor queue is the engine's."""
    whole = measured.client_seconds or measured.request_seconds
    served = measured.request_seconds / whole
    queued = measured.queued_seconds / whole
    parts: dict[Bound, float] = {"network": max(0.0, 1.0 - served), waits: queued}
    left = max(0.0, served - queued)
    return parts | {name: part * left for name, part in engine.items()}


def _why(
    measured: Measured,
    goal: Goal,
    bound: Bound,
    parts: Mapping[Bound, float],
    bandwidth: float | None,
    arithmetic: float | None,
) -> str:
    spent = ", ".join(
        f"{part:.0%} {name}" for name, part in sorted(parts.items(), key=lambda p: -p[1])
    )
    whose = "the engine's time" if goal == "throughput" else "a request's time"
    said = f"of {whose}: {spent}"
    if bandwidth is not None and arithmetic is not None:
        said += (
            f"; while it computes, the device reads at {bandwidth:.0%} of its bandwidth and"
            f" multiplies at {arithmetic:.0%} of its peak"
        )
    if bound == "memory":
        said += (
            f"; KV memory was full to {measured.kv_peak:.0%}, and"
            f" {measured.preemptions} sequences had to give their pages"
        )
    elif bound == "queue":
        said += f"; {measured.waiting:.1f} requests waited in a step, with memory left"
    return said
