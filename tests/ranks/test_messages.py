"""What rank 0 says, the others read: ops, and steps of which only what is new is sent."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from kvrt.executor.interface import Ints, Step
from kvrt.kv.pages.ops import Copy, Map, Move, Op, Scrub, Unmap
from kvrt.model.shard import Shard
from kvrt.ranks.messages import StepReader, StepWriter, ops_from_bytes, ops_to_bytes

number = st.integers(0, 2**31 - 1)
ops = st.lists(
    st.one_of(
        st.builds(Map, number, number),
        st.builds(Unmap, number, number),
        st.builds(Copy, number, number, number),
        st.builds(Move, number, number, number, number, number),
        st.builds(Scrub, number, number),
    )
)


def ints(count: int) -> st.SearchStrategy[Ints]:
    return st.lists(number, min_size=count, max_size=count).map(lambda n: np.array(n, np.int32))


@st.composite
def steps(draw: st.DrawFn) -> Step:
    """Over two groups, of few different numbers of pages, so that many stay."""
    seqs, tokens = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    widths = draw(st.tuples(st.integers(0, 3), st.integers(0, 3)))
    pages = tuple(
        np.array(draw(st.lists(st.integers(0, 2), min_size=seqs * width, max_size=seqs * width)))
        .astype(np.int32)
        .reshape(seqs, width)
        for width in widths
    )
    return Step(
        pages,
        draw(ints(seqs + 1)),
        draw(ints(seqs)),
        draw(st.none() | ints(tokens)),
        draw(ints(tokens)),
        draw(ints(draw(st.integers(0, tokens)))),
        draw(st.none() | ints(seqs)),
    )


@given(ops)
def test_ops_come_as_they_were_sent(sent: list[Op]) -> None:
    assert ops_from_bytes(ops_to_bytes(sent)) == sent


@given(st.lists(steps(), max_size=5))
def test_steps_come_as_they_were_sent_one_after_the_other(sent: list[Step]) -> None:
    writer, reader = StepWriter(), StepReader()
    for step in sent:
        came = reader.read(writer.write(step))
        for ours, theirs in zip(step[:7], came[:7], strict=True):
            np.testing.assert_equal(ours, theirs)
        for pages in step.pages:
            pages[...] = -1  # whose they are may change them, and nobody else notices


def test_what_has_not_changed_is_not_sent() -> None:
    writer = StepWriter()
    pages = np.arange(4096 * 256, dtype=np.int32).reshape(4096, 256)
    one = np.zeros(4096, np.int32)
    step = Step((pages,), np.zeros(4097, np.int32), one, None, one, one)
    first = len(writer.write(step))
    pages[17, 3] = 5
    assert len(writer.write(step)) < first / 50


@given(st.integers(1, 9), st.integers(1, 300))
def test_parts_have_every_row_once(parts: int, count: int) -> None:
    spans = Shard(parts=parts).spans(count)
    assert [row for span in spans for row in span] == [*range(count)]
    assert max(map(len, spans)) - min(map(len, spans)) <= 1
