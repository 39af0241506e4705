"""The checking wrapper refuses batches and tensors that attention must never see."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from kvrt import registry
from kvrt.errors import ContractError
from kvrt.spi import (
    AttentionBatch,
    AttentionParams,
    Capability,
    Device,
    DeviceInfo,
    KVFormat,
    KVLayout,
)
from kvrt.testing.paged import PagedKV, fill_past
from kvrt.wrappers import Call, Checked
from kvrt.wrappers.attention import checked_layout
from kvrt.wrappers.wrapper import Wrapper

LAYOUT = KVLayout.packed("float32", layers=2, kv_heads=2, head_dim=16, page_size=4)
PARAMS = AttentionParams(scale=0.25)
ROWS = 5  # of the batch below


@pytest.fixture
def pages(device: Device) -> Iterator[PagedKV]:
    with PagedKV(device, LAYOUT, 12) as pages:
        yield pages


@pytest.fixture
def batch(pages: PagedKV) -> AttentionBatch:
    """Two sequences: 9 tokens, of which 4 are new, and 1."""
    batch = pages.batch([pages.take(9), pages.take(1)], [9, 1], [4, 1])
    fill_past(batch)
    return batch


def ints(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def with_page(batch: AttentionBatch, sequence: int, index: int, page: int) -> AttentionBatch:
    table = batch.page_table.clone()
    table[sequence, index] = page
    return replace(batch, page_table=table)


def test_a_correct_step_passes(device: Device, batch: AttentionBatch) -> None:
    plan = device.attention.plan(batch)
    k, out = torch.randn(ROWS, 2, 16), torch.zeros(ROWS, 4, 16)
    device.attention.append(plan, 1, k, k)
    device.attention.run(plan, 1, torch.randn(ROWS, 4, 16), out, PARAMS)
    assert out.isfinite().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query_start": ints(1, 4, 5)}, r"query_start\[0\] = 1: must be 0"),
        ({"query_start": ints(0, 5, 4)}, r"query_start\[2\] = 4: is less than 5 before it"),
        ({"query_start": ints(0, 5)}, "query_start = .*2 sequences need 3 entries"),
        ({"query_start": torch.tensor([0, 4, 5])}, "query_start = int64.*must be an int32"),
        ({"query_start": [0, 4, 5]}, "query_start = .*must be a tensor"),
        ({"context_len": ints(3, 1)}, r"context_len\[0\] = 3: must include the 4 tokens"),
        ({"context_len": ints(9, 0)}, r"context_len\[1\] = 0: must include the 1 tokens"),
        ({"context_len": ints(4, 0)}, r"context_len\[1\] = 0: must include the 1 tokens"),
        ({"query_start": ints(0, 0, -1)}, r"query_start\[2\] = -1: is less than 0 before it"),
        ({"context_len": ints(90, 1)}, r"page_table = \[2, 5\]: sequence 0 has 90 tokens and"),
        ({"context_len": ints(9)}, "query_start = .*1 sequences need 2 entries"),
        ({"context_len": ints()}, "a batch has at least one sequence"),
        ({"context_len": ints(9, 1).view(1, 2)}, "context_len = .*1 dimensions"),
        ({"page_table": torch.zeros(3, 5, dtype=torch.int32)}, "page_table = 3 rows: there are 2"),
        ({"page_table": torch.zeros(5, 2, dtype=torch.int32).T}, "page_table = .*contiguous"),
        (
            {"page_table": torch.zeros(2, 5, dtype=torch.int32, device="meta")},
            "page_table = .*host",
        ),
        ({"kv": torch.zeros(100)}, "kv = .*tensor of a whole live span"),
        ({"kv": torch.zeros(100, device="meta")}, "kv = .*must be on cpu"),
    ],
)
def test_a_batch_is_consistent(
    device: Device,
    calls: list[Call],
    batch: AttentionBatch,
    change: dict[str, object],
    message: str,
) -> None:
    with pytest.raises(ContractError, match=message):
        device.attention.plan(replace(batch, **change))  # type: ignore[arg-type]
    assert calls[-1].name != "attention.plan"


@pytest.mark.parametrize(
    ("parents", "message"),
    [
        (ints(-1, 0, 1, 2), r"parents = \[4\]: there are 5 tokens"),
        (ints(-1, 1, 1, 2, -1), r"parents\[1\] = 1: must be -1 or a row before its own, .* 1 of"),
        (ints(-1, 0, 1, 2, 0), r"parents\[4\] = 0: .*, which is row 0 of its sequence"),
        (ints(-1, 0, -2, 2, -1), r"parents\[2\] = -2: must be -1 or"),
        (torch.tensor([-1, 0, 1, 2, -1]), "parents = int64.*must be an int32"),
    ],
)
def test_new_tokens_follow_earlier_ones_of_their_sequence(
    parents: torch.Tensor, message: str
) -> None:
    device = Checked(registry.load("cpu").open())
    with PagedKV(device, LAYOUT, 12) as pages:
        batch = pages.batch([pages.take(9), pages.take(1)], [9, 1], [4, 1])
        device.attention.plan(replace(batch, parents=ints(-1, 0, 1, 0, -1)))
        with pytest.raises(ContractError, match=message):
            device.attention.plan(replace(batch, parents=parents))
    device.close()


def test_a_device_that_knows_no_branches_is_not_given_any(
    device: Device, batch: AttentionBatch
) -> None:
    with pytest.raises(ContractError, match=r"parents = .*does not declare TREES"):
        device.attention.plan(replace(batch, parents=ints(-1, 0, 1, 2, -1)))


def test_kv_is_the_whole_span(device: Device, batch: AttentionBatch, pages: PagedKV) -> None:
    for kv in (pages.tensor[:-1], pages.tensor[1:], pages.tensor.view(torch.bfloat16)):
        with pytest.raises(ContractError, match="kv = "):
            device.attention.plan(replace(batch, kv=kv))


@pytest.mark.parametrize("page", [-1, 2**31 - 1])
def test_pages_lie_within_the_span(device: Device, batch: AttentionBatch, page: int) -> None:
    with pytest.raises(ContractError, match=rf"page_table\[0, 2\] = page {page}: must be from 0"):
        device.attention.plan(with_page(batch, 0, 2, page))


def test_pages_are_mapped(device: Device, calls: list[Call], batch: AttentionBatch) -> None:
    """The first chunk of the span is a hole, and page 0 lies in it."""
    with pytest.raises(ContractError, match=r"page_table\[1, 0\] = page 0: is not mapped"):
        device.attention.plan(with_page(batch, 1, 0, 0))
    assert calls[-1].name != "attention.plan"


def test_a_page_that_has_been_unmapped_is_refused(device: Device) -> None:
    granularity = device.info.granularity
    span = device.memory.reserve(granularity)
    chunk = device.memory.create()
    device.memory.map(span, 0, chunk)
    batch = AttentionBatch(
        device.memory.tensor(span, "float32"), LAYOUT, ints(3).view(1, 1), ints(0, 1), ints(1)
    )
    device.attention.plan(batch)
    device.memory.unmap(span, 0, chunk)
    with pytest.raises(ContractError, match=r"page_table\[0, 0\] = page 3: is not mapped"):
        device.attention.plan(batch)
    device.memory.map(span, 0, chunk)
    device.attention.plan(batch)


def test_entries_beyond_the_context_may_be_anything(device: Device, batch: AttentionBatch) -> None:
    device.attention.plan(with_page(batch, 1, 1, -7))


def test_a_layers_outermost_layout_is_checked_piece_by_piece(device: Device) -> None:
    """[layer][page][k|v][head][slot][dim]: a page has a piece in each layer, one in a hole."""
    granularity = device.info.granularity
    layer = granularity // 4
    layout = replace(LAYOUT, page_stride=LAYOUT.layer_stride, layer_stride=layer)
    span = device.memory.reserve(2 * granularity)
    device.memory.map(span, 0, device.memory.create())
    batch = AttentionBatch(
        device.memory.tensor(span, "float32"), layout, ints(3).view(1, 1), ints(0, 1), ints(1)
    )
    with pytest.raises(ContractError, match="page 3: is not mapped"):
        device.attention.plan(batch)
    device.memory.map(span, granularity, device.memory.create())
    device.attention.plan(batch)
    first_of_next_layer = layer // layout.page_stride
    beyond = replace(batch, page_table=ints(first_of_next_layer).view(1, 1))
    with pytest.raises(ContractError, match="must be from 0 and below"):
        device.attention.plan(beyond)


def test_pages_within_heads_within_layers_end_where_the_next_head_begins(device: Device) -> None:
    """[layer][head][page][k|v][slot][dim]"""
    block = LAYOUT.keys.items
    pages = 6
    layout = replace(
        LAYOUT, v_offset=block, page_stride=2 * block, head_stride=2 * block * pages,
        layer_stride=4 * block * pages,
    )  # fmt: skip
    span = device.memory.reserve(device.info.granularity)
    device.memory.map(span, 0, device.memory.create())
    kv = device.memory.tensor(span, "float32")

    def plan(page: int) -> None:
        table = ints(page).view(1, 1)
        device.attention.plan(AttentionBatch(kv, layout, table, ints(0, 1), ints(1)))

    plan(pages - 1)
    with pytest.raises(ContractError, match=f"must be from 0 and below {pages}"):
        plan(pages)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": 0}, "layout.layers = 0: must be positive"),
        ({"head_dim": -16}, "layout.head_dim = -16"),
        ({"page_size": 4.0}, "layout.page_size = 4.0"),
        ({"page_stride": 0}, "layout.page_stride = 0"),
        ({"v_offset": -1}, "layout.v_offset = -1: must not be negative"),
        ({"head_stride": 63}, "layout.head_stride = 63: must be 64 or more"),
        ({"v_offset": 127}, "layout.v_offset = 127: must be 128 or more"),
        ({"layer_stride": 255}, "layout.layer_stride = 255: must be 256 or more"),
        ({"page_stride": 511}, "layout.page_stride = 511: must be 512 or more"),
        ({"v_offset": 64}, "elements would share a place"),
    ],
)
def test_a_layout_gives_each_element_its_own_place(change: dict[str, object], message: str) -> None:
    checked_layout(LAYOUT)
    with pytest.raises(ContractError, match=message):
        checked_layout(replace(LAYOUT, **change))  # type: ignore[arg-type]


def test_the_layouts_dtype_is_one_of_the_devices(device: Device, batch: AttentionBatch) -> None:
    layout = replace(LAYOUT, format="int3")  # type: ignore[arg-type]
    with pytest.raises(ContractError, match=r"layout\.format = 'int3'"):
        device.attention.plan(replace(batch, layout=layout))


@pytest.mark.parametrize("queries", [(0, 2, 3), (2, 0, 3), (2, 3, 0), (0, 0, 1)])
def test_a_sequence_may_bring_nothing(
    device: Device, pages: PagedKV, queries: tuple[int, ...]
) -> None:
    tables = [pages.take(5) for _ in queries]
    device.attention.plan(pages.batch(tables, (5, 5, 5), queries))


class Narrow(Wrapper):
    """Can do heads of 8 and of 64, and keeps them in float32."""

    @property
    def info(self) -> DeviceInfo:
        return replace(self.inner.info, head_dims=(8, 64), kv_formats=("float32",))


@pytest.mark.parametrize(
    ("kv", "head_dim", "message"),
    [
        ("float32", 8, ""),
        ("float32", 64, ""),
        ("float32", 4, "layout.head_dim = 4: must be one of the device's 8, 64"),
        ("float32", 16, "layout.head_dim = 16: must be one of the device's 8, 64"),
        ("float32", 128, "layout.head_dim = 128: must be one of the device's 8, 64"),
        ("bfloat16", 8, "layout.format = 'bfloat16': must be one of the device's float32"),
    ],
)
def test_a_layout_has_a_size_and_a_format_that_the_device_names(
    kv: KVFormat, head_dim: int, message: str
) -> None:
    device = Checked(Narrow(registry.load("null", timeout=60).open()))
    layout = KVLayout.packed(kv, layers=1, kv_heads=1, head_dim=head_dim, page_size=4)
    with PagedKV(device, layout, 2) as pages:
        batch = pages.batch([pages.take(3)], (3,), (1,))
        if message:
            with pytest.raises(ContractError, match=message):
                device.attention.plan(batch)
        else:
            device.attention.plan(batch)
    device.close()


def test_values_like_no_key_need_a_device_that_declares_them() -> None:
    inner = registry.load("null", timeout=60).open()
    info = inner.info
    sizes = {"layers": 2, "kv_heads": 2, "head_dim": 16, "page_size": 4}
    narrow = KVLayout.packed("float32", **sizes, value_dim=8)
    shared = KVLayout.packed("float32", **sizes, shared=True)
    for layout in (narrow, shared, replace(shared, value_dim=8)):
        checked_layout(layout)
        for declared in (info.capabilities, info.capabilities - {Capability.VALUE_WIDTHS}):
            inner.info = replace(info, capabilities=declared)  # type: ignore[misc]
            device = Checked(inner)
            with PagedKV(device, layout, 12) as pages:
                batch = pages.batch([pages.take(9)], [9], [1])
                if Capability.VALUE_WIDTHS in declared:
                    device.attention.plan(batch)
                else:
                    with pytest.raises(ContractError, match="does not declare VALUE_WIDTHS"):
                        device.attention.plan(batch)
    inner.close()


def test_values_have_their_own_place_or_are_a_part_of_their_keys() -> None:
    sizes = {"layers": 2, "kv_heads": 2, "head_dim": 16, "page_size": 4}
    narrow = KVLayout.packed("float32", **sizes, value_dim=8)
    with pytest.raises(ContractError, match=r"layout\.v_offset = 63: must be 64 or more"):
        checked_layout(replace(narrow, v_offset=63))
    shared = KVLayout.packed("float32", **sizes, shared=True)
    with pytest.raises(ContractError, match=r"layout\.value_dim = 17: must be at most 16"):
        checked_layout(replace(shared, value_dim=17))


def test_scales_are_aligned(device: Device) -> None:
    layout = KVLayout.packed("int8", layers=2, kv_heads=2, head_dim=16, page_size=4)
    checked_layout(layout)
    with pytest.raises(ContractError, match=r"layout\.v_offset = .*multiple of 4"):
        checked_layout(replace(layout, v_offset=layout.v_offset + 2))


def rows(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype)


@pytest.mark.parametrize(
    ("k", "v", "message"),
    [
        (rows(4, 2, 16), rows(5, 2, 16), r"k = .*must be \[5 tokens, 2 heads, 16\]"),
        (rows(5, 3, 16), rows(5, 2, 16), "k = .*must be"),
        (rows(5, 2, 8), rows(5, 2, 16), "k = .*must be"),
        (rows(5, 32), rows(5, 2, 16), "k = .*must be"),
        (rows(5, 2, 16), rows(5, 2, 17), "v = .*must be"),
        (rows(5, 2, 16), rows(5, 2, 16, dtype=torch.bfloat16), "v = .*must have the dtype of k"),
        (rows(5, 2, 16, dtype=torch.int8), rows(5, 2, 16), "k = int8.*compute dtypes float32"),
        (rows(5, 16, 2).transpose(1, 2), rows(5, 2, 16), "k = .*heads of a row must be contiguous"),
        (rows(2, 5, 16).transpose(0, 1), rows(5, 2, 16), "k = .*heads of a row must be contiguous"),
        (rows(5, 2, 16).to("meta"), rows(5, 2, 16), "k = .*must be on cpu"),
        ([1.0], rows(5, 2, 16), "k = .*must be a tensor"),
    ],
)
def test_keys_and_values_have_the_batchs_shape(
    device: Device, calls: list[Call], batch: AttentionBatch, k: object, v: object, message: str
) -> None:
    plan = device.attention.plan(batch)
    with pytest.raises(ContractError, match=message):
        device.attention.append(plan, 0, k, v)  # type: ignore[arg-type]
    assert calls[-1].name == "attention.plan"


@pytest.mark.parametrize(
    ("q", "out", "params", "message"),
    [
        (rows(5, 3, 16), rows(5, 3, 16), PARAMS, "q = .*a multiple of 2 heads"),
        (rows(5, 0, 16), rows(5, 0, 16), PARAMS, "q = .*a multiple of 2 heads"),
        (rows(5, 4, 16), rows(5, 2, 16), PARAMS, "out = .*4 heads"),
        (rows(5, 4, 16), rows(5, 4, 16, dtype=torch.float16), PARAMS, "out = .*the dtype of q"),
        (rows(5, 4, 16), rows(5, 4, 16), AttentionParams(float("nan")), "params.scale = nan"),
        (rows(5, 4, 16), rows(5, 4, 16), AttentionParams(float("inf")), "params.scale = inf"),
        (rows(5, 4, 16), rows(5, 4, 16), AttentionParams(1.0, -1), "params.window = -1"),
        (rows(5, 4, 16), rows(5, 4, 16), AttentionParams(1.0, 0, -2.0), "params.softcap = -2"),
        (rows(5, 4, 16), rows(5, 4, 16), AttentionParams(1.0, 0, float("nan")), "softcap = nan"),
        (rows(5, 4, 16), rows(5, 4, 16), AttentionParams(1.0, sinks=-1), "params.sinks = -1"),
        (
            rows(5, 4, 16),
            rows(5, 4, 16),
            AttentionParams(1.0, 7, causal=False),
            "params.causal = False: must be True with a window",
        ),
        (
            rows(5, 4, 16),
            rows(5, 4, 16),
            AttentionParams(1.0, sink_logits=rows(2)),
            r"params.sink_logits = .*float32 \[4\]",
        ),
    ],
)
def test_queries_results_and_parameters_are_checked(
    device: Device,
    calls: list[Call],
    batch: AttentionBatch,
    q: torch.Tensor,
    out: torch.Tensor,
    params: AttentionParams,
    message: str,
) -> None:
    plan = device.attention.plan(batch)
    with pytest.raises(ContractError, match=message):
        device.attention.run(plan, 0, q, out, params)
    assert calls[-1].name == "attention.plan"


@pytest.mark.parametrize("layer", [-1, 2, 0.0, True, None])
def test_the_layer_is_one_of_the_layouts(
    device: Device, batch: AttentionBatch, layer: object
) -> None:
    plan = device.attention.plan(batch)
    with pytest.raises(ContractError, match=r"layer = .*from 0 and below 2"):
        device.attention.append(plan, layer, rows(5, 2, 16), rows(5, 2, 16))  # type: ignore[arg-type]


def test_only_the_latest_plan_of_its_pages_is_valid(device: Device, batch: AttentionBatch) -> None:
    k = rows(5, 2, 16)
    old = device.attention.plan(batch)
    new = device.attention.plan(batch)
    with PagedKV(device, LAYOUT, 12) as pages:
        beside = pages.batch([pages.take(9), pages.take(1)], [9, 1], [4, 1])
        other = device.attention.plan(beside)
        for plan in (new, other):
            device.attention.append(plan, 0, k, k)
        for plan in (old, None, object()):
            with pytest.raises(ContractError, match=r"what the latest attention.plan\(\) of its"):
                device.attention.append(plan, 0, k, k)


def test_a_layout_is_checked_again_when_it_changes(device: Device, batch: AttentionBatch) -> None:
    device.attention.plan(batch)
    wrong: KVLayout = replace(LAYOUT, head_stride=1)
    with pytest.raises(ContractError, match="head_stride"):
        device.attention.plan(replace(batch, layout=wrong))
