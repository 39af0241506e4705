"""Benchmarks of one device; each result is printed, and appended to a file as a line of JSON.

    python -m tests.bench.gpu --backend cuda decode products one-stream       any of several parts

Peers that are not installed or do not run are named with the reason.
"""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from kvrt import registry
from kvrt.spi import Device
from tests.bench.gpu import attention, codes, memory, models, products
from tests.bench.gpu.rows import Rows
from tests.bench.gpu.timing import Clock


def with_device(work: Callable[[Device, Clock], object], backend: str, *, small: bool) -> None:
    device = registry.load(backend).open(0)
    try:
        work(device, Clock(device.info.torch_device, small=small))
    finally:
        device.close()


def with_clock(work: Callable[[Clock], object], backend: str, *, small: bool) -> None:
    """For what opens the device by itself."""
    device = registry.load(backend).open(0)
    torch_device = device.info.torch_device
    device.close()
    work(Clock(torch_device, small=small))


def machine(backend: str) -> dict[str, object]:
    """What the results were measured on."""
    found = registry.load(backend)
    detail = found.probe().detail
    device = found.open(0)
    info = device.info
    device.close()
    try:
        import triton

        compiler = triton.__version__
    except ImportError:
        compiler = "none"
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "backend": backend,
        "device": info.name,
        "arch": info.arch,
        "memory_bytes": info.total_bytes,
        "driver": detail,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": compiler,
        "processors": os.cpu_count(),
        "processor": platform.processor() or platform.machine(),
        "system": platform.platform(),
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.gpu", description=__doc__)
    parser.add_argument("--backend", required=True)
    parser.add_argument("--rows", type=Path, default=Path(os.devnull), help="append results here")
    parser.add_argument("--small", action="store_true", help="only see whether it runs")
    parser.add_argument("what", nargs="+")
    asked = parser.parse_args()
    backend, small, rows = asked.backend, asked.small, Rows(asked.rows)
    parts: dict[str, Callable[[], object]] = {
        "flashinfer": lambda: with_device(attention.build_flashinfer, backend, small=small),
        "decode": lambda: with_device(
            lambda d, c: attention.decode(d, c, rows, small=small), backend, small=small
        ),
        "prefill": lambda: with_device(
            lambda d, c: attention.prefill(d, c, rows, small=small), backend, small=small
        ),
        "codes": lambda: with_device(
            lambda d, c: codes.codes(d, c, rows, small=small), backend, small=small
        ),
        "products": lambda: with_device(
            lambda d, c: products.products(d, c, rows, small=small), backend, small=small
        ),
        "memory": lambda: with_device(lambda d, _: memory.memory(d, rows), backend, small=small),
        "one-stream": lambda: with_clock(
            lambda c: models.one_stream(backend, c, rows, small=small), backend, small=small
        ),
        "step": lambda: with_clock(
            lambda c: models.step_overhead(backend, c, rows, small=small), backend, small=small
        ),
        "many": lambda: with_clock(
            lambda c: models.many_requests(backend, c, rows, small=small), backend, small=small
        ),
        "machine": lambda: asked.rows.write_text(json.dumps(machine(backend))),
    }
    unknown = [name for name in asked.what if name not in parts]
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(parts)}")
    for name in asked.what:
        parts[name]()
    return 0


if __name__ == "__main__":
    sys.exit(main())
