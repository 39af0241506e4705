"""Pages over chunks, counted in closed form and byte by byte."""

from dataclasses import replace
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvrt.errors import ConfigError
from kvrt.kv.pages.geometry import Geometry
from kvrt.spi import KVFormat, KVLayout

from .shapes import KIB, LAYERS, shape

GEOMETRIES = st.builds(
    Geometry,
    page_bytes=st.integers(1, 200).map(lambda n: 256 * n),
    page_size=st.integers(1, 17),
    chunk_bytes=st.sampled_from([KIB, 16 * KIB]),
    pages=st.integers(2, 40),
)


@given(geometry=GEOMETRIES)
def test_pages_and_chunks_find_each_other_as_bytes_do(geometry: Geometry) -> None:
    pages_of: dict[int, list[int]] = {}
    own_pages: dict[int, list[int]] = {}
    for page in range(geometry.pages):
        first = page * geometry.page_bytes
        last = first + geometry.page_bytes - 1
        under = range(first // geometry.chunk_bytes, last // geometry.chunk_bytes + 1)
        assert geometry.chunks_of(page) == under
        own_pages.setdefault(under[0], []).append(page)
        for chunk in under:
            pages_of.setdefault(chunk, []).append(page)
    assert set(pages_of) == set(range(geometry.chunks)), "no chunk is reserved in vain"
    for chunk in range(geometry.chunks):
        assert list(geometry.pages_of(chunk)) == pages_of[chunk]
        assert list(geometry.own_pages(chunk)) == own_pages.get(chunk, [])
        fitting = [p for p in range(geometry.pages) if geometry.chunks_of(p).stop <= chunk + 1]
        assert geometry.pages_in(chunk + 1) == len(fitting)
    assert 0 <= geometry.span_bytes - geometry.pages * geometry.page_bytes < geometry.chunk_bytes


@given(
    format=st.sampled_from(get_args(KVFormat)),
    layers=st.integers(1, 12),
    kv_heads=st.integers(1, 2),
    head_dim=st.sampled_from([5, 8, 24]),
    page_size=st.integers(1, 17),
)
def test_the_layout_has_no_gaps(format: KVFormat, **sizes: int) -> None:
    layout = KVLayout.packed(format, **sizes)
    head = layout.head_stride
    if layout.quantization is None:
        assert head == layout.page_size * layout.head_dim
    else:
        assert 0 <= head - layout.keys.items < 64
        assert head % 64 == 0
        align = layout.quantization.scale_bytes
        assert layout.keys.scale_offset % align == 0
        assert 0 <= layout.keys.scale_offset - layout.page_size * layout.keys.slot_stride < align
    assert layout.v_offset == layout.kv_heads * head
    assert layout.layer_stride == 2 * layout.v_offset
    assert layout.page_stride == layout.layers * layout.layer_stride
    itemsize = {"float32": 4, "bfloat16": 2, "float16": 2}.get(format, 1)
    assert layout.page_bytes == layout.page_stride * itemsize


def test_the_shapes_of_these_tests_are_what_they_are_called() -> None:
    sizes = {name: shape(name).page_bytes // KIB for name in LAYERS}
    assert sizes == {
        "many in a chunk": 8, "straddling": 40, "one chunk": 64, "larger": 160, "two chunks": 128,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("field", "value"),
    [("page_bytes", 0), ("page_bytes", 1.5), ("page_size", -1), ("chunk_bytes", 0),
     ("pages", 1), ("pages", 2**31)],
)  # fmt: skip
def test_a_bad_value_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=field):
        replace(shape(), **{field: value})  # type: ignore[arg-type]
