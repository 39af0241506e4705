"""Planning while the machine's memory runs short, and may come back."""

from hypothesis import given, settings
from hypothesis import strategies as st

from kvrt.kv.seq import Seq
from kvrt.sched.plan import Limits

from .test_batching import GROUPS, Clock, least_chunks

CHUNKS = 60


def short(clock: Clock, chunks: int, later: int | None = CHUNKS, *, shed: bool = False) -> None:
    """Others take memory, or give it back: the limit is so many chunks now."""
    clock.table = clock.table.with_limit(chunks)
    clock.later = None if later is None or chunks >= later else later
    clock.shed = shed


def grown(clock: Clock, seq: Seq, tokens: int) -> None:
    while len(seq.tokens) < tokens:
        clock.tick()


def test_one_that_has_no_room_waits_and_goes_on_when_there_is_some() -> None:
    clock = Clock(CHUNKS, Limits(64, 8))
    seq = clock.add(10, 300)
    grown(clock, seq, 40)
    short(clock, 8)
    for _ in range(100):
        clock.tick()
    assert not clock.stuck
    assert not clock.running
    assert clock.table.used_pages == 0, "it holds nothing that others could need"
    short(clock, CHUNKS)
    clock.run(1000)
    assert clock.finished == [seq]


def test_others_that_have_room_pass_it() -> None:
    clock = Clock(CHUNKS, Limits(64, 8))
    short(clock, 12)
    large, small = clock.add(200, 5), clock.add(8, 8)
    for _ in range(20):
        clock.tick()
    assert clock.finished == [small]
    assert clock.tick().held == "memory"
    short(clock, CHUNKS)
    clock.run(1000)
    assert clock.finished == [small, large]


def test_those_that_pass_do_not_keep_it_for_ever() -> None:
    clock = Clock(CHUNKS, Limits(64, 2))
    short(clock, 12)
    large = clock.add(200, 5)
    for _ in range(20):
        clock.add(8, 60)
        clock.tick()
    short(clock, CHUNKS)
    for _ in range(100):
        clock.add(8, 60)
        clock.tick()
    assert large in clock.finished


def test_what_could_never_have_room_ends_at_once() -> None:
    """Of others' memory, too little to help."""
    clock = Clock(CHUNKS, Limits(64, 8))
    short(clock, 8, later=12)
    seq = clock.add(120, 5)
    clock.run(20)
    assert clock.stuck == [seq]


def test_what_has_all_that_there_may_be_ends() -> None:
    clock = Clock(CHUNKS, Limits(64, 8))
    seq = clock.add(10, 300)
    grown(clock, seq, 20)
    short(clock, 8, later=9)
    short(clock, 9, later=9)
    clock.run(300)
    assert clock.stuck == [seq]


def test_one_alone_gives_its_pages_when_it_is_asked_and_may_have_them_back() -> None:
    clock = Clock(CHUNKS, Limits(64, 8))
    seq = clock.add(10, 300)
    grown(clock, seq, 200)
    short(clock, 8)
    assert clock.tick().rows, "what it has, it keeps for a moment"
    short(clock, 8, shed=True)
    assert clock.tick().aside == (seq,)
    assert clock.table.used_pages == 0
    short(clock, CHUNKS)
    clock.run(1000)
    assert clock.finished == [seq]


def test_it_is_not_begun_with_again_each_time_there_is_a_little_more() -> None:
    clock = Clock(200, Limits(16, 8))
    seq = clock.add(10, 700)
    grown(clock, seq, 40)
    begun = 0
    for chunks in range(8, 100):
        short(clock, chunks, later=200)
        for _ in range(40):
            begun += len(clock.tick().admitted)
    assert 1 <= begun < 25
    assert not clock.stuck


@settings(max_examples=60, deadline=None)
@given(
    requests=st.lists(
        st.tuples(st.integers(1, 40), st.integers(1, 60)),
        min_size=1,
        max_size=12,
    ),
    turns=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 30), st.booleans()), max_size=15),
    tokens=st.integers(4, 40),
    groups=st.sampled_from([*GROUPS]),
)
def test_however_others_take_and_give_each_request_ends_as_it_would_without_them(
    requests: list[tuple[int, int]],
    turns: list[tuple[int, int, bool]],
    tokens: int,
    groups: str,
) -> None:
    windows = GROUPS[groups]
    longest = max(prompt + new for prompt, new in requests)
    full = least_chunks(longest, tokens, windows)
    least = least_chunks(1, tokens, windows)
    clock = Clock(full, Limits(tokens, 8), windows=windows)
    for number, (steps, chunks, shed) in enumerate(turns):
        if number < len(requests):
            prompt, new = requests[number]
            clock.add(prompt, new)
        short(clock, max(least, min(full, chunks)), later=full, shed=shed)
        for _ in range(steps):
            clock.tick()
    for prompt, new in requests[len(turns) :]:
        clock.add(prompt, new)
    short(clock, full)
    clock.run(clock.step + 500 + 60 * sum(prompt + new for prompt, new in requests))
    assert not clock.stuck
    assert len(clock.finished) == len(requests)
    assert clock.table.used_pages == 0


def test_those_that_have_room_once_their_pages_are_moved_together_are_not_preempted() -> None:
    """What is left of many sequences lies one page here and one there; who runs loses nothing for
    a limit that it has room in."""
    clock = Clock(200, Limits(256, 24))
    seqs = [clock.add(3, 100 if n % 4 == 0 else 20) for n in range(24)]
    while len(clock.finished) < 18:
        clock.tick()
    held = clock.table.mapped_chunks - clock.table.warm_chunks
    fits = clock.table.packed_chunks + 2
    assert fits < held - 4, "they lie apart"
    short(clock, fits, later=None, shed=True)
    assert not clock.tick().preempted
    short(clock, fits // 2, later=None, shed=True)
    assert 3 <= len(clock.tick().preempted) <= 4, "half of them, and what those need next"
    assert seqs[0] in clock.running
