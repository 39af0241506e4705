"""A device with little memory to compute in: steps get smaller, and nobody else pays for one."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvrt.engine.forward import PATIENCE, Scored, cut
from kvrt.engine.sizing import FREE_SHARE, step_bytes
from kvrt.errors import CapacityError, OutOfMemory
from kvrt.kv.seq import Seq
from kvrt.model.decoder.activations import Activations
from kvrt.outputs import Result
from kvrt.runtime import Runtime
from kvrt.sampling import SamplingParams
from kvrt.sched.plan import Row
from kvrt.spi import AttentionBatch, Device, MemoryInfo
from kvrt.wrappers.parts import Params, WrappedMemory
from kvrt.wrappers.parts import Result as Returned
from kvrt.wrappers.wrapper import Wrapper

from .conftest import Break, MakeRuntime

PROMPTS = [[n + 1] * (20 + 13 * n) for n in range(6)]
PARAMS = [
    SamplingParams(max_tokens=30, ignore_eos=True, n=2, seed=3, temperature=0.7),
    SamplingParams(max_tokens=30, ignore_eos=True, prompt_logprobs=2),
    SamplingParams(max_tokens=30, ignore_eos=True, beam_width=3),
] * 2
STEPS = ("attention.plan", "graphs.capture", "graph.replay")

Fits = Callable[[AttentionBatch], bool]


class Tight(Wrapper):
    """A device on which some batches find no memory.

    Args:
        inner: does the work.
        fits: whether a batch does.
        error: what is raised for one that does not, once its first calls were made.
    """

    def __init__(self, inner: Device, fits: Fits, error: Exception) -> None:
        super().__init__(inner)
        self._fits = fits
        self._error = error
        self.refused = 0

    def around(
        self,
        name: str,
        call: Callable[Params, Returned],
        *args: Params.args,
        **kwargs: Params.kwargs,
    ) -> Returned:
        if name in STEPS:
            (batch,) = args[:1] if name == "attention.plan" else args[0]  # type: ignore[misc]
            assert isinstance(batch, AttentionBatch)
            if not self._fits(batch):
                self.refused += 1
                raise self._error
        return call(*args, **kwargs)


def said(results: list[Result]) -> list[object]:
    return [
        (result.error, result.prompt_logprobs, [c.token_ids for c in result.completions])
        for result in results
    ]


def tokens_in(batch: AttentionBatch) -> int:
    return int(batch.query_start[-1])


@pytest.fixture(scope="module")
def whole(tiny_lm: Path) -> list[object]:
    """What is said where there is memory enough."""
    with Runtime(tiny_lm, backend="cpu", load_format="dummy", seed=1) as runtime:
        answers = said(runtime.generate(PROMPTS, PARAMS))
    assert [answer[0] for answer in answers] == [None] * len(PROMPTS)  # type: ignore[index]
    return answers


@pytest.fixture
def tight(make_runtime: MakeRuntime, break_device: Break) -> Callable[..., tuple[Runtime, Tight]]:
    def make(
        fits: Fits, error: Exception | None = None, **options: object
    ) -> tuple[Runtime, Tight]:
        devices: list[Tight] = []

        def wrapped(inner: Device) -> Device:
            devices.append(Tight(inner, fits, error or OutOfMemory("no memory to compute in")))
            return devices[-1]

        break_device(wrapped)
        runtime = make_runtime(**options)
        return runtime, devices[0]

    return make


ERRORS = {
    "of kvrt": OutOfMemory("full"),
    "of torch": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "of torch on a CPU": RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
    "of Triton": RuntimeError("Triton Error [CUDA]: out of memory"),
    "of cuBLAS": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"),
    "of Python": MemoryError(),
}


@pytest.mark.parametrize(
    ("most", "error"), [(1, "of kvrt"), (40, "of kvrt"), *((5, error) for error in ERRORS)]
)
def test_a_step_that_does_not_fit_is_done_in_pieces_and_says_the_same(
    most: int, error: str, tight: Callable[..., tuple[Runtime, Tight]], whole: list[object]
) -> None:
    runtime, device = tight(lambda batch: tokens_in(batch) <= most, ERRORS[error])
    limit = runtime.stats().cache.limit_bytes
    assert said(runtime.generate(PROMPTS, PARAMS)) == whole
    assert device.refused > 0
    assert runtime.stats().cache.limit_bytes == limit, "pages were not what took the memory"
    runtime.cache.check_integrity()


def test_drafts_are_done_in_pieces_between_sequences(
    tight: Callable[..., tuple[Runtime, Tight]], whole: list[object]
) -> None:
    runtime, device = tight(lambda batch: len(batch.context_len) <= 2, speculate="ngram:4")
    assert said(runtime.generate(PROMPTS, PARAMS)) == whole
    assert device.refused > 0


def test_after_a_while_more_is_tried_again(
    tight: Callable[..., tuple[Runtime, Tight]], whole: list[object]
) -> None:
    once = iter([True])
    sizes: list[int] = []

    def fits(batch: AttentionBatch) -> bool:
        sizes.append(tokens_in(batch))
        return tokens_in(batch) < 100 or not next(once, False)

    runtime, _ = tight(fits)
    params = SamplingParams(max_tokens=PATIENCE * 2, ignore_eos=True)
    runtime.generate([[1] * 200], params)
    sizes.clear()
    runtime.generate([[2] * 200], params)
    assert max(sizes) == 200


def test_pages_make_room_for_steps_and_everybody_is_answered(
    tight: Callable[..., tuple[Runtime, Tight]], whole: list[object]
) -> None:
    """Nothing can be computed while the cache holds more than six chunks."""
    runtimes: list[Runtime] = []

    def fits(batch: AttentionBatch) -> bool:
        cache = runtimes[0].stats().cache
        return cache.mapped_bytes + cache.pooled_bytes <= 6 << 21

    runtime, device = tight(fits, keep_warm=0)
    runtimes.append(runtime)
    limit = runtime.stats().cache.limit_bytes
    assert said(runtime.generate(PROMPTS, PARAMS)) == whole
    assert device.refused > 0
    assert runtime.stats().cache.limit_bytes < limit
    runtime.cache.check_integrity()


@pytest.mark.parametrize("place", [0, 2, 5])
def test_only_the_request_that_cannot_be_computed_alone_ends(
    place: int, tight: Callable[..., tuple[Runtime, Tight]]
) -> None:
    """No step of a context beyond 300 tokens has the memory it needs."""
    runtime, _ = tight(lambda batch: int(batch.context_len.max()) <= 300)
    prompts = [[n + 1] * 60 for n in range(6)]
    prompts[place] = [9] * 290
    params = SamplingParams(max_tokens=40, ignore_eos=True)
    results = runtime.generate(prompts, params)
    for n, result in enumerate(results):
        if n == place:
            assert isinstance(result.error, CapacityError)
            assert result.finish_reason == "capacity"
            assert len(result.token_ids) == 11
        else:
            assert (result.error, len(result.token_ids)) == (None, 40)
    assert runtime.generate([[5] * 20], params)[0].error is None
    runtime.cache.check_integrity()


def test_a_device_that_can_compute_nothing_answers_with_that_and_goes_on(
    tight: Callable[..., tuple[Runtime, Tight]],
) -> None:
    full = [True]
    runtime, _ = tight(lambda batch: not full[0])
    params = SamplingParams(max_tokens=4, ignore_eos=True)
    results = runtime.generate(PROMPTS, params)
    assert all(isinstance(result.error, CapacityError) for result in results)
    full.clear()
    full.append(False)
    assert runtime.generate([[5] * 20], params)[0].error is None


# --- the budget ----------------------------------------------------------------------------------


class Small(Wrapper):
    """A device that has so many bytes left."""

    def __init__(self, inner: Device, free: int) -> None:
        super().__init__(inner)
        total = inner.info.total_bytes

        class Memory(WrappedMemory):
            def info(self) -> MemoryInfo:
                return MemoryInfo(total, free, super().info().chunks)

        self.memory = Memory(self, inner.memory)


def test_the_default_limit_leaves_room_for_the_largest_step(
    make_runtime: MakeRuntime, break_device: Break
) -> None:
    free = 64 << 20
    break_device(lambda device: Small(device, free))
    options: dict[str, object] = {"memory_limit": None, "max_batch_tokens": 4_000}
    runtime = make_runtime(**options)
    step = step_bytes(runtime.config, runtime.model.spec, runtime.model.decoder.dtype)
    assert free * FREE_SHARE > free - step, "or this shows nothing"
    assert 0 < runtime.stats().cache.limit_bytes <= free - step
    with pytest.raises(CapacityError, match="a step of 32000 tokens may need") as raised:
        make_runtime(**options | {"max_batch_tokens": 32_000})
    assert "max_batch_tokens" in raised.value.fix


def test_a_limit_that_leaves_too_little_to_compute_in_is_kept_and_said(
    make_runtime: MakeRuntime, break_device: Break, caplog: pytest.LogCaptureFixture
) -> None:
    break_device(lambda device: Small(device, 64 << 20))
    make_runtime(memory_limit="30MiB")
    assert not caplog.records
    runtime = make_runtime(memory_limit="63MiB", max_batch_tokens=4096)
    limit = (63 << 20) - runtime.model.weight_bytes
    assert limit - (2 << 20) < runtime.stats().cache.limit_bytes <= limit
    assert "may need" in caplog.text


def test_the_room_for_a_step_is_what_its_tensors_take(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime()
    spec, tokens = runtime.model.spec, 100
    kept = Activations.empty(spec, tokens, torch.float32, "cpu")
    others = {"q", "k", "v", "attended_rows", "rotations"}
    held = sum(
        t.nbytes for name, t in kept._asdict().items() if t is not None and name not in others
    )
    held += sum(rotation.cos.nbytes + rotation.sin.nbytes for rotation in kept.rotations)
    assert held < tokens * Activations.width(spec) * 4 < 3 * held


# --- cutting -----------------------------------------------------------------------------------


@given(
    counts=st.lists(st.tuples(st.integers(0, 50), st.integers(1, 40)), min_size=1, max_size=8),
    most=st.integers(1, 60),
    data=st.data(),
)
def test_pieces_are_small_enough_and_hold_every_token_and_position_once_in_order(
    counts: list[tuple[int, int]], most: int, data: st.DataObject
) -> None:
    rows = []
    for n, (start, count) in enumerate(counts):
        first = data.draw(st.integers(start, start + count))
        last = data.draw(st.integers(start, start + count))  # before `first`: none is scored
        row = Row(Seq(n, [0] * 100, 90, 100), start, count, data.draw(st.booleans()))
        rows.append(Scored(row, range(first, last)))
    pieces, left = [], rows
    while left:
        piece, left = cut(left, most)
        pieces.append(piece)

    def facts(scored: list[Scored]) -> list[object]:
        """Tokens, scored positions and samples, in the order of the logits."""
        found: list[object] = []
        for row, positions in scored:
            tokens = range(row.start, row.start + row.count)
            assert set(positions) <= set(tokens)
            found += [("token", row.seq.id, at) for at in tokens]
        for row, positions in scored:
            found += [("scored", row.seq.id, at) for at in positions]
            found += [("sample", row.seq.id)] * row.samples
        return sorted(map(str, found))

    assert all(0 < sum(row.count for row, _ in piece) <= most for piece in pieces)
    parts = [scored for piece in pieces for scored in piece]
    assert facts(parts) == facts(rows)
    assert [row.seq.id for row, _ in parts] == sorted(row.seq.id for row, _ in parts)
    for (row, _), (after, _) in pairwise(parts):
        assert row.seq.id != after.seq.id or (row.start < after.start and not row.samples)
