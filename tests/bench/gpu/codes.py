"""Decode attention over pages of codes: as a part of the copy bandwidth, and beside its peers."""

from dataclasses import dataclass

import torch

from kvrt.spi import QUANTIZATIONS, Device, KVFormat
from tests.bench.gpu import peers
from tests.bench.gpu.attention import (
    HEAD_DIM,
    KV_HEADS,
    LEFT_FREE,
    PAGE_SIZE,
    PARAMS,
    absent,
    must_agree,
    queries,
)
from tests.bench.gpu.pool import Pool
from tests.bench.gpu.rows import Rows, one_line
from tests.bench.gpu.timing import Clock

HEADS = 32
CODES = f"decode attention over codes, {HEADS}/{KV_HEADS} heads of {HEAD_DIM}"
FORMATS: tuple[KVFormat, ...] = ("bfloat16", *QUANTIZATIONS)
AGREEMENT = 0.15
"""Of two fp8 caches with different scales: each number is off by up to a sixteenth."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Args:
    cases: sequences of a step, and the tokens of each.
    left_free: bytes of device memory that the pool leaves.
    """

    cases: tuple[tuple[int, int], ...]
    left_free: int


FULL = Sizes(((32, 8192), (1, 32768), (256, 512)), LEFT_FREE)
SMALL = Sizes(((2, 130), (1, 64)), 0)


def codes(device: Device, clock: Clock, rows: Rows, *, small: bool) -> None:
    sizes = SMALL if small else FULL
    bandwidth = clock.copy_bandwidth()
    peer = absent(lambda: peers.FlashInfer(clock.device, "e4m3"))
    if isinstance(peer, str):
        rows.skip(CODES, "all on fp8", "FlashInfer", peer)
    tokens = max(count * context for count, context in sizes.cases)
    of_bfloat16: dict[tuple[int, int], float] = {}
    for kv in FORMATS:
        if kv not in device.info.kv_formats:
            rows.skip(CODES, f"all on {kv}", "kvrt", "the device does not keep it")
            continue
        with Pool(device, KV_HEADS, HEAD_DIM, PAGE_SIZE, tokens, sizes.left_free, kv) as pool:
            for count, context in sizes.cases:
                case = f"batch {count}, context {context} on {kv}"
                if not pool.holds(count, context):
                    rows.skip(CODES, case, "kvrt", "does not fit in the device's memory")
                    continue
                batch = pool.batch([1] * count, [context] * count)
                q, own = queries(device, clock, count, HEADS, HEAD_DIM)
                out = torch.empty_like(own)
                plan = device.attention.plan(batch)
                ours = clock.seconds(
                    lambda plan=plan, q=own, out=out: device.attention.run(plan, 0, q, out, PARAMS)
                )
                fastest = count * context * pool.layout.page_bytes / PAGE_SIZE / bandwidth
                of_bfloat16.setdefault((count, context), ours)
                rows.add(CODES, case, "kvrt", seconds=ours, of_copy_bandwidth=fastest / ours,
                         times_bfloat16=of_bfloat16[count, context] / ours)  # fmt: skip
                if kv != "fp8" or isinstance(peer, str):
                    continue
                try:
                    work = peer.decode(pool.without_scales(batch), q)
                    theirs = clock.seconds(work)
                    must_agree(work(), out, AGREEMENT)
                except Exception as error:  # its compiler, say
                    peer = one_line(error)
                    rows.skip(CODES, "all on fp8", "FlashInfer", peer)
                else:
                    rows.add(CODES, case, "FlashInfer", seconds=theirs, times_kvrt=ours / theirs)
