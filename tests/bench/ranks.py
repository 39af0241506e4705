"""What several ranks say each other in a step, on paper: messages, bytes, and the least time that
links of a given speed need for them; and how long rank 0 plans, measured here.

    python -m tests.bench.ranks [--sequences 4096] [--context 2048]
    python -m tests.bench.ranks --counted

With ``--counted``, a small model of Llama's shape runs here, and what rank 0 is sent in a step is
read off the system's counters of its sockets.

Else, of the hardware nothing is measured: the speeds are those that its makers state, and a call of
a collective is taken to cost what `--latency` says. What is counted is what kvrt's code does: its
own values are planned, written as messages, and counted. Left out: that links are shared with other
traffic, that ranks are not equally fast, and compute that hides communication (kvrt hides none).
"""

import argparse
import functools
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from kvrt.executor.interface import Step
from kvrt.kv.pages.geometry import Geometry
from kvrt.kv.pages.group import Group
from kvrt.kv.pages.rows import PageRows
from kvrt.kv.pages.table import Change, PageTable
from kvrt.kv.seq import Seq
from kvrt.model.shard import Shard
from kvrt.ranks.messages import StepWriter, ops_to_bytes
from kvrt.runtime import Runtime
from kvrt.sched.batching import plan_step
from kvrt.sched.plan import Limits
from kvrt.sched.policy import POLICIES
from kvrt.sched.waiting import Waiting

ITEM = 2
"""Bytes of an activation, bfloat16; logits are float32."""

GB = 10**9
STEPS = 32


@dataclass(frozen=True, slots=True)
class Shape:
    """What of a model counts here."""

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int

    @property
    def parameters(self) -> int:
        attention = (2 * self.heads + 2 * self.kv_heads) * self.head_dim * self.hidden
        layer = attention + 3 * self.intermediate * self.hidden
        return self.layers * layer + 2 * self.vocab * self.hidden


@dataclass(frozen=True, slots=True)
class Machine:
    """As its maker states it.

    Args:
        link: bytes a second that a device sends to the others of its node.
        network: likewise to other nodes.
        read: bytes a second from the device's memory.
    """

    link: float
    network: float
    read: float


LLAMA_70B = Shape("Llama-3.1-70B", 80, 8192, 64, 8, 128, 28672, 128256)
LLAMA_405B = Shape("Llama-3.1-405B", 126, 16384, 128, 8, 128, 53248, 128256)
H100 = Machine(link=450 * GB, network=50 * GB, read=3350 * GB)


@dataclass(frozen=True, slots=True)
class Traffic:
    """Of one step.

    Args:
        calls: that a rank waits for one after the other, in all stages.
        received: bytes that a rank of a stage receives within its stage; of sums, by a ring.
        passed: bytes from a stage to the next, for each of its ranks.
    """

    calls: int
    received: int
    passed: int


def traffic(shape: Shape, shard: Shard, tokens: int, rows: int) -> Traffic:
    """What `kvrt.model.decoder.split` does in a step."""
    parts, layers = shard.parts, len(shard.layers(shape.layers))
    if shard.exact:
        in_layer = shape.heads * shape.head_dim + shape.intermediate + 2 * shape.hidden
        embedded = parts * shape.hidden
    else:
        in_layer, embedded = 4 * shape.hidden, 2 * shape.hidden
    received = (layers * in_layer + embedded) * tokens * ITEM + shape.vocab * rows * 4
    each = 4 if shard.exact else 2
    calls = (shape.layers * each + 2) * (parts > 1) + 2 * (shard.stages - 1) + (shard.stages > 1)
    passed = tokens * shape.hidden * ITEM * (shard.stages > 1)
    return Traffic(calls, received * (parts - 1) // parts, passed)


@dataclass(frozen=True, slots=True)
class Planned:
    """Rank 0's own work for a step of decoding, by processor time.

    Args:
        plan_ms, write_ms: medians.
        step_bytes, ops_bytes: of the messages to each other rank: medians.
        first_bytes: of the first step, when all is new.
    """

    plan_ms: float
    write_ms: float
    step_bytes: float
    ops_bytes: float
    first_bytes: int


def planned(sequences: int, context: int) -> Planned:
    """Plan steps of decoding, one token for each sequence, and write them."""
    geometry = Geometry(
        page_bytes=320 << 10, page_size=16, chunk_bytes=2 << 20,
        pages=sequences * (context // 16 + 8) + 1,
    )  # fmt: skip
    limits = Limits(max_batch_tokens=2 * sequences, max_running=sequences)
    running = [
        Seq(n, [0] * (context + n % 16), prompt_len=context, max_len=2 * context, arrival=n)
        for n in range(sequences)
    ]
    for seq in running:
        seq.computed = len(seq.tokens) - 1
    table = PageTable.empty([Group(geometry)], geometry.chunks).table
    grown = table.grow({seq.id: seq.computed for seq in running})
    assert isinstance(grown, Change)
    table, waiting = grown.table, Waiting(POLICIES["fcfs"])
    writer, rows = StepWriter(), PageRows(0)
    plan_s, write_s, step_bytes, ops_bytes = ([], [], [], [])  # type: ignore[var-annotated]
    for number in range(1 + STEPS):
        begun = time.process_time()
        plan = plan_step(table, running, waiting, limits, number)
        table = plan.change.table
        pages = rows.select(table, [seq.id for seq in running])
        counts = np.arange(sequences + 1, dtype=np.int32)
        contexts = np.array([len(seq.tokens) for seq in running], np.int32)
        tokens = np.array([seq.tokens[-1] for seq in running], np.int32)
        step = Step((pages,), counts, contexts, None, tokens, counts[:-1])
        between = time.process_time()
        ops = ops_to_bytes(plan.change.ops)
        body = writer.write(step)
        ended = time.process_time()
        for row in plan.rows:
            row.seq.computed += row.count
            row.seq.tokens.append(0)
        plan_s.append(between - begun)
        write_s.append(ended - between)
        step_bytes.append(len(body))
        ops_bytes.append(len(ops))
    middle = [statistics.median(each[1:]) for each in (plan_s, write_s, step_bytes, ops_bytes)]
    return Planned(1e3 * middle[0], 1e3 * middle[1], middle[2], middle[3], step_bytes[0])


def lines(sequences: int, context: int, latency_us: float) -> Iterator[str]:
    """The page."""
    own = planned(sequences, context)
    to_each = own.step_bytes + own.ops_bytes
    yield f"rank 0, {sequences} sequences of {context} tokens, one token each (measured here):"
    yield f"  to plan a step    {own.plan_ms:9.2f} ms of processor time"
    yield f"  to write it       {own.write_ms:9.2f} ms"
    yield f"  to each rank      {to_each / 1e3:9.1f} kB in 3 messages and an answer;"
    yield f"                    {own.first_bytes / 1e3:9.1f} kB in the first step"
    yield ""
    for shape, shard, at_once in (
        (LLAMA_70B, Shard(parts=8), 1),
        (LLAMA_70B, Shard(parts=8), sequences),
        (LLAMA_405B, Shard(parts=8, stages=2), sequences),
    ):
        yield from on_paper(shape, shard, at_once, latency_us)
    yield "1,000 nodes of 8 devices:"
    for shape, shard in (
        (LLAMA_70B, Shard(parts=8)),
        (LLAMA_405B, Shard(parts=8, stages=2)),
        (LLAMA_405B, Shard(parts=8, stages=125)),
    ):
        models = 8000 // shard.ranks
        sent = to_each * (shard.ranks - 1)
        yield (
            f"  {models:5d} x {shape.name} on {shard.ranks} ranks: rank 0 of each sends"
            f" {3 * (shard.ranks - 1)} messages of {sent / 1e6:.2f} MB together a step,"
            f" {1e3 * sent / H100.network:.2f} ms of its network"
        )
    yield (
        "  Planning does not grow with nodes: each model has a rank 0 of its own, and nothing is"
        " said between models."
    )
    yield (
        "  The limit of one model: a step goes through the stages one after the other, so more"
        " stages give memory and no speed."
    )


def on_paper(shape: Shape, shard: Shard, tokens: int, latency_us: float) -> Iterator[str]:
    """One model on H100s, in both modes."""
    modes = [traffic(shape, replace(shard, exact=exact), tokens, tokens) for exact in (True, False)]
    reading = 1e3 * shape.parameters * ITEM / shard.parts / H100.read
    yield f"{shape.name}, {shard.parts} parts x {shard.stages} stages, {tokens} tokens a step:"
    yield f"{'':44} {'exact':>8} {'fast':>8}"

    def row(what: str, unit: str, value: Callable[[Traffic], float]) -> str:
        return f"  {what:42} {value(modes[0]):8.6g} {value(modes[1]):8.6g} {unit}".rstrip()

    def moving(said: Traffic) -> float:
        within = said.received * shard.stages / H100.link
        return 1e3 * (within + said.passed * (shard.stages - 1) / H100.network)

    yield row("calls of collectives, one after the other", "", lambda said: said.calls)
    yield row(
        "received by a rank within its stage", "MB", lambda said: round(said.received / 1e6, 1)
    )
    yield row("from stage to stage, for each rank", "MB", lambda said: round(said.passed / 1e6, 1))
    yield row("at 450 and 50 GB/s", "ms", lambda said: round(moving(said), 2))
    yield row(
        f"at {latency_us:g} us a call", "ms", lambda said: round(said.calls * latency_us * 1e-3, 2)
    )
    yield row("to read the weights, at 3,350 GB/s", "ms", lambda _: round(reading, 2))
    yield ""


def counted(parts: int) -> Iterator[str]:
    """What is said in a step of a small model of Llama's shape, in both modes."""
    from tests.ranks.conftest import CONFIG
    from tests.ranks.wire import in_a_step

    shape = {
        "hidden_size": 512, "intermediate_size": 1792, "num_hidden_layers": 8, "vocab_size": 64,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(CONFIG | shape))
        make = functools.partial(
            Runtime, folder, backend="cpu", load_format="dummy", threads=1, memory_limit="256MiB",
            tensor_parallel=parts,
        )  # fmt: skip
        exact, fast = (in_a_step(make, tensor_parallel_mode=mode) for mode in ("exact", "fast"))
    yield f"{parts} ranks, 8 layers of 512 numbers, one token a step, sent to rank 0 by Gloo:"
    yield f"{'':36} {'exact':>8} {'fast':>8}    fast/exact"
    for what, one, other in (
        ("calls of collectives", exact.calls, fast.calls),
        ("TCP segments with something in them", exact.segments, fast.segments),
        ("bytes", exact.received, fast.received),
    ):
        yield f"{what:36} {one:8.0f} {other:8.0f} {other / one:13.2f}"
    yield ""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--sequences", type=int, default=4096)
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--latency", type=float, default=10.0, help="of a collective, in us")
    parser.add_argument("--counted", action="store_true", help="run a small model instead")
    asked = parser.parse_args()
    said = lines(asked.sequences, asked.context, asked.latency)
    if asked.counted:
        said = itertools.chain(counted(2), counted(4))
    print("\n".join(said))


if __name__ == "__main__":
    main()
