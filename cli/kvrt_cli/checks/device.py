"""An opened device, proved by doing what kvrt does with it."""

import statistics
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from kvrt.errors import KvrtError
from kvrt.spi import Device, KVFormat, Measurable
from kvrt.units import format_bytes
from kvrt_cli.checks.check import Check, Mark, failed

if TYPE_CHECKING:
    from torch import Tensor

Result = TypeVar("Result")

PROOF_CHUNKS = 32
TRIES = 3
TIMED_CHUNKS = 16
FIX = "; fix: "
"""In a device's note, before what mends it. A note without is one to know and not to mend."""


def prove(backend: str, index: int) -> Generator[Check, None, None]:
    """Open a device and try each of its parts; a part that fails does not stop the others."""
    from kvrt.registry import open_device

    group = f"{backend}:{index}"
    try:
        device = open_device(backend, index)
    except KvrtError as error:
        yield failed(group, "open", error)
        return
    try:
        yield _about(group, device)
        for number, note in enumerate(device.info.notes):
            text, _, fix = note.partition(FIX)
            mark = Mark.WARN if fix else Mark.SKIP
            yield Check(group, f"note.{number}", mark, text, fix)
        yield from _tried(group, "memory", partial(_memory, group, device))
        for kv in device.info.kv_formats:
            yield from _tried(group, f"attention.{kv}", partial(_attention, group, device, kv))
        yield from _tried(group, "latency", partial(_latency, group, device))
        yield from _tried(group, "budget", partial(_budget, group, device))
        yield from _tried(group, "bandwidth", partial(_bandwidth, group, device))
    finally:
        device.close()


def _tried(group: str, name: str, check: Callable[[], Check]) -> Iterator[Check]:
    try:
        yield check()
    except Exception as error:  # a backend is foreign code; its failure is the finding
        yield failed(group, name, error)


def _about(group: str, device: Device) -> Check:
    info = device.info
    capabilities = sorted(capability.name.lower() for capability in info.capabilities)
    return Check(
        group, "device", Mark.OK,
        f"{info.name} ({info.arch}), {format_bytes(info.total_bytes)},"
        f" chunks of {format_bytes(info.granularity)}",
        details=f"computes in {', '.join(info.compute_dtypes)}; keeps weights in"
        f" {', '.join(info.weight_dtypes)}, KV in"
        f" {', '.join(info.kv_formats)}; {', '.join(capabilities) or 'no capabilities'}",
        data={"name": info.name, "arch": info.arch, "capabilities": capabilities,
              "kv_formats": list(info.kv_formats)},
    )  # fmt: skip


# --- memory --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Proof:
    """What came of mapping chunks once.

    Args:
        wrong: the first chunk that was not read back as it was written; None if all were.
        moved: whether a chunk kept its bytes when it was mapped elsewhere.
        taken, kept: bytes of physical memory while they were mapped, and after all.
        left: chunks that the device still counts.
    """

    wrong: int | None
    moved: bool
    taken: int
    kept: int
    left: int


def _memory(group: str, device: Device) -> Check:
    """Reserve, map with holes between, write, read back, move a chunk, unmap; is it returned?"""
    total = PROOF_CHUNKS * device.info.granularity
    proofs = [_proof(device)]
    # Of a device that others use too, only the whole can be asked: they may have taken some.
    while proofs[-1].kept > total // 4 and len(proofs) < TRIES and not _in_host_memory(device):
        proofs.append(_proof(device))
    proof = min(proofs, key=lambda proof: (proof.wrong is None, proof.moved, proof.kept))
    taken, kept, left = proof.taken, proof.kept, proof.left
    data = {"written_bytes": total, "taken_bytes": taken, "kept_bytes": kept, "chunks_left": left}
    problem = ""
    if proof.wrong is not None:
        problem = f"what was written to chunk {proof.wrong} was not read back"
    elif not proof.moved:
        problem = "a chunk lost its bytes when it was mapped elsewhere"
    elif taken < total // 2:
        problem = f"{format_bytes(total)} were written, but only {format_bytes(taken)} are there"
    elif left or kept > total // 4:
        problem = (
            f"{format_bytes(kept)} of {format_bytes(taken)} did not come back ({left} chunks),"
            f" by {_measured(device)}"
        )
    if problem:
        fix = _report(device)
        if not _in_host_memory(device):
            fix = f"run it again while no other program uses the device; if it stays, {fix}"
        return Check(group, "memory", Mark.BAD, f"memory: {problem}", fix, data=data)
    return Check(
        group, "memory", Mark.OK,
        f"memory: reserved {format_bytes(2 * total)}, mapped and wrote {format_bytes(total)}, read"
        f" it back, unmapped: {format_bytes(taken - max(kept, 0))} returned to the system",
        data=data,
    )  # fmt: skip


def _proof(device: Device) -> Proof:
    import torch

    memory, size = device.memory, device.info.granularity
    count = size // 4
    pattern = torch.arange(count, dtype=torch.float32, device=device.info.torch_device) % 8191
    # A library may load a kernel's code when it is first called, into memory that would count.
    assert torch.equal(torch.empty_like(pattern).copy_(pattern + 1), pattern + 1)
    device.synchronize()
    chunks_before, before = memory.info().chunks, _physical(device)
    span = memory.reserve(2 * PROOF_CHUNKS * size)
    chunks = [memory.create() for _ in range(PROOF_CHUNKS)]
    everything = memory.tensor(span, "float32")

    def place(number: int) -> "Tensor":
        return everything[number * count : (number + 1) * count]

    for number, chunk in enumerate(chunks):
        memory.map(span, 2 * number * size, chunk)
        place(2 * number).copy_(pattern + number)
    device.synchronize()
    taken = _physical(device) - before
    numbers = range(PROOF_CHUNKS)
    wrong = next((n for n in numbers if not torch.equal(place(2 * n), pattern + n)), None)
    memory.unmap(span, 0, chunks[0])
    memory.map(span, size, chunks[0])
    moved = torch.equal(place(1), pattern)
    memory.unmap(span, size, chunks[0])
    for number, chunk in enumerate(chunks):
        if number > 0:
            memory.unmap(span, 2 * number * size, chunk)
        memory.destroy(chunk)
    memory.release(span)
    device.synchronize()
    left = (memory.info().chunks - chunks_before) // size
    return Proof(wrong, moved, taken, _physical(device) - before, left)


def _in_host_memory(device: Device) -> bool:
    return device.info.torch_device == "cpu"


def _physical(device: Device) -> int:
    """Physical memory in use: of this process if the device's memory is the host's, else all of it.

    The operating system is asked, not the backend's own count. `_measured` says it in words.
    """
    from kvrt.testing.host import physical_bytes

    if _in_host_memory(device):
        return physical_bytes()
    info = device.memory.info()
    return info.total - info.free


def _measured(device: Device) -> str:
    if _in_host_memory(device):
        return "the resident memory of this process"
    return "the free memory of the device, which other programs take and give back as well"


def _report(device: Device) -> str:
    from kvrt.wrappers.named import owner_of

    return f"report it to those who made {owner_of(device)}, with the output of kvrt doctor -v"


def _latency(group: str, device: Device) -> Check:
    memory, size = device.memory, device.info.granularity
    span = memory.reserve(size)
    spent: dict[str, list[float]] = {"create": [], "map": [], "unmap": [], "destroy": []}

    def timed(name: str, call: Callable[[], Result]) -> Result:
        started = time.perf_counter()
        result = call()
        spent[name].append((time.perf_counter() - started) * 1e6)
        return result

    for _ in range(TIMED_CHUNKS):
        chunk = timed("create", memory.create)
        timed("map", partial(memory.map, span, 0, chunk))
        timed("unmap", partial(memory.unmap, span, 0, chunk))
        timed("destroy", partial(memory.destroy, chunk))
    memory.release(span)
    medians = {name: statistics.median(values) for name, values in spent.items()}
    shown = ", ".join(f"{name} {value:.0f} us" for name, value in medians.items())
    data = {f"{name}_us": round(value, 2) for name, value in medians.items()}
    return Check(
        group, "latency", Mark.OK, f"a chunk of {format_bytes(size)}: {shown} (medians)", data=data
    )


# --- attention -----------------------------------------------------------------------------------


def _attention(group: str, device: Device, kv: KVFormat) -> Check:
    """A few odd shapes, against arithmetic in float64 that shares nothing with any backend."""
    from kvrt.testing.paged import Case, attend, mismatch

    compute = device.info.compute_dtypes[0]
    cases = (
        Case(kv=kv, compute=compute),
        Case(
            kv=kv, compute=compute, contexts=(123, 5), queries=(7, 5), heads=5, kv_heads=5,
            window=33,
        ),
        Case(
            kv=kv, compute=compute, contexts=(77,), queries=(1,), heads=8, kv_heads=1,
            head_dim=128, page_size=8, softcap=20.0,
        ),
    )  # fmt: skip
    name = f"attention.{kv}"
    worst = 0.0
    for number, case in enumerate(cases):
        got, want = attend(device, case, seed=number)
        if problem := mismatch(got, want, case.tolerance):
            return Check(
                group, name, Mark.BAD,
                f"attention over {kv} KV is wrong: {problem.splitlines()[0]}",
                fix=_report(device),
                details=f"{case}\n{problem}",
            )  # fmt: skip
        worst = max(worst, float((got - want).abs().max()))
    return Check(
        group, name, Mark.OK,
        f"attention over {kv} KV: {len(cases)} odd shapes agree with the reference"
        f" (largest difference {worst:.1e})",
        data={"largest_difference": worst},
    )  # fmt: skip


# --- speed and size ------------------------------------------------------------------------------


def _bandwidth(group: str, device: Device) -> Check:
    measurable = device.extension(Measurable)  # type: ignore[type-abstract]
    if measurable is None:
        return Check(group, "bandwidth", Mark.SKIP, "bandwidth: this backend cannot measure it")
    limits = measurable.measure()
    return Check(
        group, "bandwidth", Mark.OK,
        f"reads {limits.read_bytes_per_s / 1e9:.1f} GB/s, computes {limits.flops_per_s / 1e9:.0f}"
        " GFLOP/s in float32",
        data={"read_bytes_per_s": limits.read_bytes_per_s, "flops_per_s": limits.flops_per_s},
    )  # fmt: skip


def _budget(group: str, device: Device) -> Check:
    from kvrt.engine.sizing import FREE_SHARE

    free = device.memory.info().free
    budget = int(free * FREE_SHARE)
    return Check(
        group, "budget", Mark.OK,
        f"{format_bytes(free)} free: kvrt takes a model's weights, and for the KV cache at most"
        f" {FREE_SHARE:.0%} of what is then free, now {format_bytes(budget)}"
        " (--memory-limit changes it)",
        data={"free_bytes": free, "budget_bytes": budget},
    )  # fmt: skip
