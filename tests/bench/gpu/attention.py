"""Decode attention as a part of the copy bandwidth, prefill in TFLOP/s, both beside their peers.

A decoded token reads each key and value of its context once, so the bytes of those over the time
of the call is its bandwidth. A prefill counts the multiply-adds below the diagonal, each as two.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch

from kvrt.spi import AttentionParams, Device
from tests.bench.gpu import peers
from tests.bench.gpu.pool import Pool
from tests.bench.gpu.rows import Rows, geometric_mean, one_line
from tests.bench.gpu.timing import Clock

DECODE = "decode attention, bf16"
PREFILL = "prefill attention, bf16"
KV_HEADS, HEAD_DIM, PAGE_SIZE, FLEX_PAGE_SIZE = 8, 128, 16, 128
PARAMS = AttentionParams(scale=HEAD_DIM**-0.5)
LEFT_FREE = 4 << 30
AGREEMENT = 0.03
TOKEN_BYTES = 2 * KV_HEADS * HEAD_DIM * 2


@dataclass(frozen=True, slots=True)
class Sizes:
    """Args:
    heads: query heads.
    batches: sequences of a decode step.
    contexts: their tokens.
    shown: the (batch, context) that has an aim.
    prefills: (sequences, new tokens, tokens before them).
    left_free: bytes of device memory that the pool leaves.
    """

    heads: tuple[int, ...]
    batches: tuple[int, ...]
    contexts: tuple[int, ...]
    shown: tuple[int, int]
    prefills: tuple[tuple[int, int, int], ...]
    left_free: int


FULL = Sizes(
    heads=(32, 64),
    batches=(1, 8, 32, 128, 256),
    contexts=(512, 2048, 8192, 32768),
    shown=(32, 8192),
    prefills=((1, 2048, 0), (1, 8192, 0), (1, 16384, 0), (8, 1024, 0), (1, 2048, 8192)),
    left_free=LEFT_FREE,
)
SMALL = Sizes(
    heads=(32,),
    batches=(1, 2),
    contexts=(64, 130),
    shown=(2, 130),
    prefills=((1, 64, 0), (2, 48, 0), (1, 32, 64)),
    left_free=0,
)


def absent(make: Callable[[], peers.FlashInfer]) -> peers.FlashInfer | str:
    """The peer, or why it is not there."""
    try:
        return make()
    except Exception as error:  # whatever a package that is not ours says
        return one_line(error)


def build_flashinfer(device: Device, clock: Clock) -> None:
    """Compile the peer's kernels, by calling them once."""
    with Pool(device, KV_HEADS, HEAD_DIM, PAGE_SIZE, 64, 0) as pool:
        q, _ = queries(device, clock, 1, 32, HEAD_DIM)
        batch = pool.batch([1], [64])
        for kept, kv in (("bf16", batch.kv), ("e4m3", batch.kv.to(torch.float8_e4m3fn))):
            peer = peers.FlashInfer(clock.device, kept, build=True)
            peer.decode(replace(batch, kv=kv), q)()
            clock.synchronize()


def decode(device: Device, clock: Clock, rows: Rows, *, small: bool) -> None:
    sizes = SMALL if small else FULL
    bandwidth = clock.copy_bandwidth()
    rows.add(DECODE, "the device's limit", "torch copy", bytes_per_s=bandwidth)
    peer = absent(lambda: peers.FlashInfer(clock.device))
    if isinstance(peer, str):
        rows.skip(DECODE, "all", "FlashInfer", peer)
    tokens = max(sizes.batches) * max(sizes.contexts)
    with Pool(device, KV_HEADS, HEAD_DIM, PAGE_SIZE, tokens, sizes.left_free) as pool:
        for heads in sizes.heads:
            for batch, context in _cases(sizes):
                case = f"{heads}/{KV_HEADS} heads of {HEAD_DIM}, batch {batch}, context {context}"
                if not pool.holds(batch, context):
                    rows.skip(DECODE, case, "kvrt", "does not fit in the device's memory")
                    continue
                peer = _decode_case(device, clock, rows, pool, case, heads, batch, context,
                                    bandwidth, peer)  # fmt: skip
    _flex(device, clock, rows, sizes, bandwidth)
    _decode_aims(rows, sizes)


def _cases(sizes: Sizes) -> Iterator[tuple[int, int]]:
    """Those that have an aim come first, in case the time runs out."""
    yield sizes.shown
    for batch in sizes.batches:
        for context in sizes.contexts:
            if (batch, context) != sizes.shown:
                yield batch, context


def _decode_case(
    device: Device, clock: Clock, rows: Rows, pool: Pool, case: str, heads: int, count: int,
    context: int, bandwidth: float, peer: peers.FlashInfer | str,
) -> peers.FlashInfer | str:  # fmt: skip
    """Measure one case; gives the peer, or, if it has just failed, why."""
    batch = pool.batch([1] * count, [context] * count)
    q, own = queries(device, clock, count, heads, HEAD_DIM)
    out = torch.empty_like(own)
    plan = device.attention.plan(batch)
    fastest = count * context * TOKEN_BYTES / bandwidth
    ours = clock.seconds(lambda: device.attention.run(plan, 0, own, out, PARAMS))
    row = {"seconds": ours, "of_copy_bandwidth": fastest / ours}
    others = {}
    if not isinstance(peer, str):
        try:
            work = peer.decode(batch, q)
            others["FlashInfer"] = clock.seconds(work)
            must_agree(work(), out)
        except Exception as error:  # its compiler, say
            peer = one_line(error)
            rows.skip(DECODE, "all", "FlashInfer", peer)
    try:
        others["torch SDPA, contiguous"] = clock.seconds(
            peers.contiguous_decode(q, *pool.contiguous(count, context))
        )
    except RuntimeError as error:  # of memory, say
        rows.skip(DECODE, case, "torch SDPA, contiguous", error)
        if not clock.on_host:
            torch.cuda.empty_cache()
    for name, seconds in others.items():
        row[f"times_{name.partition(',')[0].replace(' ', '_')}"] = seconds / ours
    rows.add(DECODE, case, "kvrt", **row)
    for name, seconds in others.items():
        rows.add(DECODE, case, name, seconds=seconds, fraction_of_copy=fastest / seconds)
    return peer


def _flex(device: Device, clock: Clock, rows: Rows, sizes: Sizes, bandwidth: float) -> None:
    """torch's own paged route, for one case: it compiles for half a minute."""
    (count, context), heads = sizes.shown, sizes.heads[0]
    context = -(-context // FLEX_PAGE_SIZE) * FLEX_PAGE_SIZE
    case = f"{heads}/{KV_HEADS} heads of {HEAD_DIM}, batch {count}, context {context}"
    name = "torch flex_attention"
    try:
        with Pool(
            device, KV_HEADS, HEAD_DIM, FLEX_PAGE_SIZE, count * context, sizes.left_free
        ) as pool:
            batch = pool.batch([1] * count, [context] * count)
            q, own = queries(device, clock, count, heads, HEAD_DIM)
            out = torch.empty_like(own)
            device.attention.run(device.attention.plan(batch), 0, own, out, PARAMS)
            work = peers.flex_decode(batch, q)
            seconds = clock.seconds(work)
            must_agree(work()[:, :, 0], out)
    except Exception as error:  # its compiler, say
        rows.skip(DECODE, case, name, error)
    else:
        fastest = count * context * TOKEN_BYTES / bandwidth
        rows.add(DECODE, case, name, seconds=seconds, fraction_of_copy=fastest / seconds)


def must_agree(theirs: torch.Tensor, ours: torch.Tensor, most: float = AGREEMENT) -> None:
    """What computes something else is no peer.

    Raises:
        RuntimeError: they differ by more than `most` of the largest number, which for bfloat16 is
            more than rounding explains.
    """
    error = float((theirs.float() - ours.float()).abs().max() / ours.float().abs().max())
    if not error < most:
        raise RuntimeError(f"its result differs from kvrt's by {error:.3g}")


def queries(device: Device, clock: Clock, *shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    """For peers, in bfloat16; and for the device, in that or in what it has instead."""
    q = torch.randn(shape, dtype=torch.bfloat16, device=clock.device)
    dtypes = device.info.compute_dtypes
    return q, q.to(getattr(torch, "bfloat16" if "bfloat16" in dtypes else dtypes[0]))


def _decode_aims(rows: Rows, sizes: Sizes) -> None:
    count, context = sizes.shown
    for row in list(rows.all):
        if row["by"] == "kvrt" and row["case"].endswith(f"batch {count}, context {context}"):
            value = row["of_copy_bandwidth"]
            rows.aim(DECODE, f"part of the copy bandwidth: {row['case']}", value, 0.85)
    mean = rows.mean(DECODE, "times_FlashInfer")
    if mean is not None:
        rows.aim(DECODE, "geometric mean of times FlashInfer", mean, 1.0)
    for what in ("times_torch_SDPA", "of_copy_bandwidth"):
        mean = rows.mean(DECODE, what)
        if mean is not None:
            rows.add(DECODE, f"geometric mean of {what.replace('_', ' ')}", "kvrt", value=mean)


def prefill(device: Device, clock: Clock, rows: Rows, *, small: bool) -> None:
    sizes, heads = SMALL if small else FULL, 32
    ratios = []
    tokens = max(count * (new + before) for count, new, before in sizes.prefills)
    with Pool(device, KV_HEADS, HEAD_DIM, PAGE_SIZE, 2 * tokens, sizes.left_free) as pool:
        for count, new, before in sizes.prefills:
            after = f" after {before}" if before else ""
            case = f"{heads}/{KV_HEADS} heads of {HEAD_DIM}, {count} x {new} tokens{after}"
            flops = 4 * HEAD_DIM * heads * count * new * (before + (new + 1) / 2)
            batch = pool.batch([new] * count, [before + new] * count)
            q, own = queries(device, clock, count * new, heads, HEAD_DIM)
            out = torch.empty_like(own)
            plan = device.attention.plan(batch)
            ours = clock.seconds(
                lambda plan=plan, q=own, out=out: device.attention.run(plan, 0, q, out, PARAMS)
            )
            row = {"seconds": ours, "tflops": flops / ours / 1e12}
            name = "torch flash SDPA, contiguous"
            try:
                k, v = pool.contiguous(count, before + new)
                split = q.view(count, new, heads, HEAD_DIM).transpose(1, 2)
                theirs = clock.seconds(peers.contiguous_prefill(split, k, v))
            except RuntimeError as error:  # no flash attention for this device, say
                rows.add(PREFILL, case, "kvrt", **row)
                rows.skip(PREFILL, case, name, error)
                continue
            ratios.append(theirs / ours)
            rows.add(PREFILL, case, "kvrt", **row, times_torch_flash_SDPA=theirs / ours)
            rows.add(PREFILL, case, name, seconds=theirs, tflops=flops / theirs / 1e12)
    mean = geometric_mean(ratios)
    if mean is not None:
        rows.aim(PREFILL, "geometric mean of times torch's flash SDPA", mean, 0.8)
