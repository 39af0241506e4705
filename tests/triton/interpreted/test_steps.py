"""What a step's plan promises: bits that do not depend on neighbours, and calls made again."""

import math
from collections.abc import Callable, Iterator

import pytest
import torch
from kvrt_interpreted import Interpreted
from kvrt_kernels.triton.attention import TritonAttention
from triton.runtime.interpreter import InterpretedFunction

from kvrt.errors import ContractError
from kvrt.spi import AttentionBatch, AttentionParams, KVLayout
from kvrt.testing.paged import PagedKV, fill_past, randoms

LAYOUT = KVLayout.packed("bfloat16", layers=1, kv_heads=1, head_dim=64, page_size=16)
ONE = (1, 1)
PARAMS = AttentionParams(scale=0.1, window=290)


@pytest.fixture
def pages(interpreted: Interpreted) -> Iterator[PagedKV]:
    with PagedKV(interpreted, LAYOUT, 80) as pages:
        yield pages


def decode(
    attention: TritonAttention, plan: object, batch: AttentionBatch, q: torch.Tensor
) -> torch.Tensor:
    out = torch.full_like(q, math.nan)
    attention.run(plan, 0, q, out, PARAMS)
    return out


def test_a_decoded_token_has_the_same_bits_alone_and_among_others(
    interpreted: Interpreted, pages: PagedKV
) -> None:
    attention = interpreted.attention
    tables = [pages.take(n) for n in (20, 600, 40)]
    contexts, queries = (20, 600, 40), (4, 1, 19)
    fill_past(pages.batch(tables, contexts, (0, 0, 0)))
    q = randoms(interpreted, "bfloat16", sum(queries), 4, 64, seed=1)
    together = pages.batch(tables, contexts, queries)
    among = decode(attention, attention.plan(together), together, q)[4:5]
    alone = pages.batch(tables[1:2], (600,), (1,))
    row = decode(attention, attention.plan(alone), alone, q[4:5].contiguous())
    assert torch.equal(among, row)


def test_recorded_calls_follow_the_contexts_and_the_page_table(
    interpreted: Interpreted, pages: PagedKV, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recorded with short contexts and one page each; the same launches, made again with more."""
    attention, steps = interpreted.attention, ((5, 16), (600, 300), (257, 12))
    tables = [pages.take(600), pages.take(300)]
    batches = [
        pages.batch(
            [table[: -(-n // 16)] for table, n in zip(tables, step, strict=True)], step, ONE
        )
        for step in steps
    ]
    fill_past(pages.batch(tables, (600, 300), (0, 0)))
    q = randoms(interpreted, "bfloat16", 2, 4, 64, seed=1)
    plan = attention.plan_recorded(batches[0])
    launches: list[Callable[[], object]] = []
    launch = InterpretedFunction.run
    with monkeypatch.context() as recording:
        recording.setattr(
            InterpretedFunction,
            "run",
            lambda *args, **options: launches.append(lambda: launch(*args, **options)),
        )
        out = decode(attention, plan, batches[0], q)
    assert out.isnan().all()
    assert len(launches) == 2, "segments, and their sum"
    for batch in batches:
        attention.update(plan, batch)
        for again in launches:
            again()
        assert torch.equal(out, decode(attention, attention.plan(batch), batch, q))


def test_a_recorded_plan_refuses_a_batch_of_another_shape(
    interpreted: Interpreted, pages: PagedKV
) -> None:
    attention = interpreted.attention
    tables = [pages.take(30)]
    plan = attention.plan_recorded(pages.batch(tables, (30,), (1,)))
    with pytest.raises(ContractError, match="query_start"):
        attention.update(plan, pages.batch(tables, (30,), (2,)))


def test_appended_tokens_of_a_recorded_plan_go_to_the_new_slots(
    interpreted: Interpreted, pages: PagedKV
) -> None:
    attention = interpreted.attention
    table = pages.take(40)
    plan = attention.plan_recorded(pages.batch([table], (3,), (1,)))
    batch = pages.batch([table], (40,), (1,))
    attention.update(plan, batch)
    k, v = randoms(interpreted, "bfloat16", 2, 1, 1, 64, seed=1)
    attention.append(plan, 0, k, v)
    page = pages.tensor[table[2] * LAYOUT.page_stride :][: LAYOUT.page_stride].view(2, 16, 64)
    assert torch.equal(page[0, 7], k[0, 0])
    assert torch.equal(page[1, 7], v[0, 0])
    assert int(page.isnan().logical_not().sum()) == 2 * 64


def test_no_launch_has_more_programs_along_an_axis_than_a_device_takes(
    interpreted: Interpreted, pages: PagedKV, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CUDA C++ Programming Guide, table of technical specifications: 65,535 along y and z."""
    grids: list[tuple[int, ...]] = []

    class Asked:
        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            return lambda *args, **options: grids.append(grid)

    monkeypatch.setattr("kvrt_kernels.triton.attention.decode_kernel", Asked())
    many = 70_000
    batch = pages.batch([pages.take(16)] * many, (1,) * many, (1,) * many)
    q = torch.empty(many, 4, 64, dtype=torch.bfloat16)
    attention = interpreted.attention
    attention.run(attention.plan(batch), 0, q, torch.empty_like(q), PARAMS)
    assert [len(grid) for grid in grids] == [3]
    assert max(grids[0][1:]) <= 65_535
