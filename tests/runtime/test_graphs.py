"""A decode step that is recorded and replayed gives the answers of one that is not."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from kvrt.model.decoder.graphs import padded
from kvrt.outputs import Result
from kvrt.sampling import SamplingParams
from kvrt.spi import AttentionBatch, Chunk, Device, GraphCapture, KVLayout, Span
from kvrt.testing.chaos import Chaos
from kvrt.wrappers.parts import WrappedGraph, WrappedGraphs, WrappedMemory
from kvrt.wrappers.wrapper import Wrapper
from tests.model.checkpoints import make_model, save_model

from .conftest import Break, MakeRuntime

PARAMS = SamplingParams(max_tokens=40, ignore_eos=True, logprobs=2)
PROMPTS = [[(7 * n + i) % 199 for i in range(1 + 13 * n)] for n in range(7)]


def said(results: list[Result]) -> list[object]:
    assert all(result.error is None for result in results)
    return [(r.token_ids, r.completions[0].logprobs) for r in results]


class Eager(Wrapper):
    """A device that records nothing."""

    def extension(self, kind: type) -> Any:
        return None if kind is GraphCapture else super().extension(kind)


class Memory(WrappedMemory):
    """Knows what is mapped."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.mapped: set[int] = set()

    def map(self, span: Span, at: int, chunk: Chunk) -> None:
        super().map(span, at, chunk)
        self.mapped.add(at)

    def unmap(self, span: Span, at: int, chunk: Chunk) -> None:
        self.mapped.remove(at)
        super().unmap(span, at, chunk)


class WatchedGraph(WrappedGraph):
    """Tells which pages a replay wrote to."""

    device: "Padding"

    def replay(self, batches: Sequence[AttentionBatch]) -> None:
        (batch,) = batches
        before = self.device.content(batch.kv)
        super().replay(batches)
        after = self.device.content(batch.kv)
        item, page = batch.kv.element_size(), batch.layout.page_stride
        changed: set[int] = set()
        for at, old in before.items():
            elements = (after[at] != old).nonzero().flatten() + at // item
            changed |= set((elements // page).tolist())
        count = len(batch.context_len)
        own = {
            int(batch.page_table[s, (int(batch.context_len[s]) - 1) // batch.layout.page_size])
            for s in range(count)
        }
        self.device.writes.append((count, changed, own))


class PaddedGraphs(WrappedGraphs):
    graph = WatchedGraph

    def size(self, tokens: int) -> int:
        return -(-tokens // 4) * 4 if tokens <= 6 else 0


class Padding(Wrapper):
    """Records steps of 4 and 8 tokens only, and up to 6 at all."""

    def __init__(self, inner: Device) -> None:
        super().__init__(inner)
        self.memory: Memory = Memory(self, inner.memory)
        self.writes: list[tuple[int, set[int], set[int]]] = []

    def extension(self, kind: type) -> Any:
        found = super().extension(kind)
        return PaddedGraphs(self, found.inner) if isinstance(found, WrappedGraphs) else found

    def content(self, kv: torch.Tensor) -> dict[int, torch.Tensor]:
        """A copy of every mapped chunk, as integers: NaN is then equal to itself."""
        size = self.info.granularity // kv.element_size()
        bits = kv.view(torch.int32)
        starts = {at: at // kv.element_size() for at in self.memory.mapped}
        return {at: bits[start : start + size].clone() for at, start in starts.items()}


@pytest.fixture
def eager(make_runtime: MakeRuntime, break_device: Break) -> list[object]:
    break_device(Eager)
    return said(make_runtime().generate(PROMPTS, PARAMS))


@pytest.mark.promise("P15")
def test_recorded_steps_give_the_same_bits(
    eager: list[object], make_runtime: MakeRuntime, break_device: Break
) -> None:
    break_device(lambda device: device)
    runtime = make_runtime()
    for numbers in ([6], [0, 3], range(7), [2, 1]):
        asked = [PROMPTS[n] for n in numbers]
        assert said(runtime.generate(asked, PARAMS)) == [eager[n] for n in numbers]


def test_a_step_of_a_size_is_recorded_once(make_runtime: MakeRuntime, break_device: Break) -> None:
    opened: list[Chaos] = []

    def count(device: Device) -> Chaos:
        opened.append(Chaos(device, copies="early"))
        return opened[-1]

    break_device(count)
    runtime = make_runtime(prefix_cache=False)  # else the second time has shorter steps
    # One by one: together, sizes depend on when each is taken in. And again, as a size that takes
    # larger tensors than any before makes all begin anew.
    for prompt in [*PROMPTS, *PROMPTS]:
        runtime.generate([prompt], PARAMS)
    (device,) = opened
    recorded, replayed = device.calls["graphs.capture"], device.calls["graph.replay"]
    for prompt in PROMPTS:
        runtime.generate([prompt], PARAMS)
    assert device.calls["graphs.capture"] == recorded
    assert device.calls["graph.replay"] >= replayed + 30


@pytest.mark.promise("P19")
def test_padding_writes_to_the_null_page_only(
    eager: list[object], make_runtime: MakeRuntime, break_device: Break
) -> None:
    opened: list[Padding] = []

    def pad(device: Device) -> Padding:
        opened.append(Padding(device))
        return opened[-1]

    break_device(pad)
    params = [SamplingParams(max_tokens=40 - 5 * n, ignore_eos=True, logprobs=2) for n in range(7)]
    results = said(make_runtime().generate(PROMPTS, params))
    for n, (got, want) in enumerate(zip(results, eager, strict=True)):
        assert got == tuple(part[: 40 - 5 * n] for part in want)  # type: ignore[attr-defined]
    (device,) = opened
    assert {count for count, _, _ in device.writes} == {4, 8}
    assert any(0 in changed for _, changed, _ in device.writes), "padded"
    for _, changed, own in device.writes:
        assert changed | {0} == own | {0}


class Padded(Wrapper):
    """Records steps of 4 and 8 tokens only."""

    def extension(self, kind: type) -> Any:
        found = super().extension(kind)
        return Sized(self, found.inner) if isinstance(found, WrappedGraphs) else found


class Sized(WrappedGraphs):
    def size(self, tokens: int) -> int:
        return -(-tokens // 4) * 4 if tokens <= 8 else 0


@pytest.mark.promise("P19")
@pytest.mark.parametrize(
    "family",
    ["gemma-2", "gemma-4", "glm-4", "gpt-2", "gpt-neox", "ministral-3", "deepseek-2", "llama-4"],
)
def test_padding_changes_no_token_of_any_kind_of_layer(
    family: str, tmp_path: Path, make_runtime: MakeRuntime, break_device: Break
) -> None:
    """Windows, rotation of all and of few dimensions, heated queries, latents, values made of keys,
    experts whose input is scaled."""
    folder = save_model(make_model(family), tmp_path)
    params = [SamplingParams(max_tokens=20 - 2 * n, ignore_eos=True, logprobs=2) for n in range(7)]
    opened: list[Chaos] = []

    def trace(device: Device) -> Padded:
        opened.append(Chaos(device))
        return Padded(opened[-1])

    answers = []
    for wrapper in (Eager, trace):
        break_device(wrapper)
        runtime = make_runtime(model=folder, load_format="auto")
        answers.append(said(runtime.generate(PROMPTS, params)))
    assert answers[0] == answers[1]
    assert opened[0].calls["graphs.capture"] >= 2, "of 4 tokens and of 8"
    assert opened[0].calls["graph.replay"] > 10


@pytest.mark.promise("P19")
def test_padding_is_the_first_slot_of_the_null_page() -> None:
    layout = KVLayout.packed("float32", layers=1, kv_heads=1, head_dim=16, page_size=16)
    batch = AttentionBatch(
        kv=torch.empty(0),
        layout=layout,
        page_table=torch.tensor([[3, 4], [5, 0]], dtype=torch.int32),
        query_start=torch.tensor([0, 1, 3], dtype=torch.int32),
        context_len=torch.tensor([20, 9], dtype=torch.int32),
        parents=torch.tensor([-1, -1, 0], dtype=torch.int32),
    )
    more = padded(batch, 6)
    assert more.page_table.tolist() == [[3, 4], [5, 0], *[[0, 0]] * 3]
    assert more.query_start.tolist() == [0, 1, 3, 4, 5, 6], "one token each"
    assert more.context_len.tolist() == [20, 9, 1, 1, 1], "which sees itself alone"
    assert more.parents is not None
    assert more.parents.tolist() == [-1, -1, 0, -1, -1, -1]
    assert padded(batch, 3) is batch
