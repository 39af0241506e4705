"""What is cached, as routers hear of it that were written for vLLM."""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq

import kvrt
from kvrt.integrations.events import EventPublisher
from kvrt.integrations.events.wire import (
    AllBlocksCleared,
    BlockRemoved,
    BlockStored,
    EventBatch,
    block_events,
    block_hash,
)
from kvrt.kv.index.events import EventLog
from kvrt.kv.tiers.names import chain, root_key
from kvrt.runtime import Runtime

PROMPT = "def read_lines(path):\n    return open(path).readlines()\n" * 3
SHORT = kvrt.SamplingParams(max_tokens=2)
MINUTE_MS = 60_000

RECORDED = bytes.fromhex(
    "93cb3ff80000000000009488a474797065ab426c6f636b53746f726564ac626c6f636b5f68617368657392cfffff"
    "ffffffffffff07b1706172656e745f626c6f636b5f68617368c0a9746f6b656e5f6964739405060708aa626c6f63"
    "6b5f73697a6502a76c6f72615f6964c0a66d656469756da3475055a96c6f72615f6e616d65c088a474797065ab42"
    "6c6f636b53746f726564ac626c6f636b5f6861736865739109b1706172656e745f626c6f636b5f6861736807a974"
    "6f6b656e5f69647392cd012cce00011170aa626c6f636b5f73697a6502a76c6f72615f6964c0a66d656469756da3"
    "475055a96c6f72615f6e616d65c083a474797065ac426c6f636b52656d6f766564ac626c6f636b5f686173686573"
    "920907a66d656469756da347505581a474797065b0416c6c426c6f636b73436c656172656400"
)
"""`SAID` as vLLM 0.32.0's own classes encode it."""
SAID = EventBatch(
    1.5,
    [
        BlockStored([2**64 - 1, 7], None, [5, 6, 7, 8], 2, None, "GPU", None),
        BlockStored([9], 7, [300, 70000], 2, None, "GPU", None),
        BlockRemoved([9, 7], "GPU"),
        AllBlocksCleared(),
    ],
    0,
)


class Router:
    """What a router keeps of the events it hears: which blocks are cached, and what they hold."""

    def __init__(self, publisher: EventPublisher) -> None:
        assert publisher.replay is not None
        self._context = zmq.Context()
        self.heard = self._context.socket(zmq.SUB)
        self.heard.connect(publisher.endpoint)
        self.heard.subscribe(b"")
        self.asked = self._context.socket(zmq.REQ)
        self.asked.connect(publisher.replay)
        self.next = 0
        self.blocks: dict[int, tuple[int | None, tuple[int, ...]]] = {}

    def catch_up(self) -> None:
        """Ask for all that was published since it last did."""
        for number, payload in self.replay(self.next):
            assert number == self.next
            self.next += 1
            self.take(msgspec.msgpack.decode(payload, type=EventBatch))

    def replay(self, first: int) -> list[tuple[int, bytes]]:
        asked = self._context.socket(zmq.DEALER)  # several answers to one question
        asked.connect(self.asked.getsockopt_string(zmq.LAST_ENDPOINT))
        asked.send_multipart([b"", first.to_bytes(8, "big")])
        found = []
        while True:
            assert asked.poll(MINUTE_MS)
            empty, topic, number, payload = asked.recv_multipart()
            assert (empty, topic) == (b"", b"")
            if int.from_bytes(number, "big", signed=True) == -1:
                asked.close()
                return found
            found.append((int.from_bytes(number, "big"), payload))

    def take(self, batch: EventBatch) -> None:
        for event in batch.events:
            if isinstance(event, BlockStored):
                parent, size = event.parent_block_hash, event.block_size
                for at, block in enumerate(event.block_hashes):
                    assert block not in self.blocks
                    assert parent is None or parent in self.blocks
                    self.blocks[block] = parent, tuple(event.token_ids[at * size : (at + 1) * size])
                    parent = block
            elif isinstance(event, BlockRemoved):
                for block in event.block_hashes:
                    del self.blocks[block]
            else:
                self.blocks.clear()

    def close(self) -> None:
        self._context.destroy(linger=0)


@contextmanager
def routed(folder: Path, **options: Any) -> Iterator[tuple[Runtime, Router]]:
    place = f"ipc://{folder}/events", f"ipc://{folder}/replay"
    with (
        Runtime("tiny", backend="cpu", memory_limit="64MiB", **options) as runtime,
        EventPublisher(place[0], replay=place[1]) as publisher,
    ):
        router = Router(publisher)
        publisher.follow(runtime)
        try:
            yield runtime, router
        finally:
            router.close()


def cached(runtime: Runtime) -> set[int]:
    """The hashes of what is cached, from the runtime's own account of it."""
    found: set[int] = set()
    for event in runtime.cache_events():
        if event.name is None:
            found.clear()
        elif event.kind == "stored":
            found.add(block_hash(event.name.key))
        else:
            found.remove(block_hash(event.name.key))
    return found


def settled(router: Router, runtime: Runtime) -> bool:
    """Ask until the router knows what is cached, which the publisher says at once."""
    return until(lambda: router.blocks.keys() == cached(runtime), router)


def until(true: Callable[[], bool], router: Router) -> bool:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        router.catch_up()
        if true():
            return True
    return False


def test_bytes_are_those_of_vllms_own_classes() -> None:
    assert msgspec.msgpack.encode(SAID) == RECORDED
    assert msgspec.msgpack.decode(RECORDED, type=EventBatch) == SAID


def test_a_router_hears_of_each_page_with_its_tokens_and_its_parent(tmp_path: Path) -> None:
    with routed(tmp_path) as (runtime, router):
        result = runtime.generate(PROMPT, SHORT)[0]
        assert settled(router, runtime)
        size = runtime.config.page_size
        names = [*chain(runtime.page_root(), result.prompt_token_ids, size)]
        assert len(names) > 2
        parent = None
        for name in names:
            assert router.blocks[block_hash(name.key)] == (parent, name.tokens)
            parent = block_hash(name.key)


def test_a_subscriber_hears_of_it_as_it_happens(tmp_path: Path) -> None:
    with routed(tmp_path) as (runtime, router):
        for number in range(1000):  # until its subscription has arrived
            runtime.generate(f"{number:04} is the number of this prompt, which nobody had", SHORT)
            if router.heard.poll(50):
                break
        topic, counted, payload = router.heard.recv_multipart()
        batch = msgspec.msgpack.decode(payload, type=EventBatch)
        assert topic == b""
        assert int.from_bytes(counted, "big") <= number
        assert isinstance(batch.events[0], BlockStored)
        assert batch.data_parallel_rank == 0


def test_a_router_that_comes_late_or_misses_something_asks_for_it(tmp_path: Path) -> None:
    with routed(tmp_path) as (runtime, router):
        runtime.generate(PROMPT, SHORT)
        runtime.generate("class Stack:\n    " * 8, SHORT)
        assert settled(router, runtime)
        every = router.replay(0)
        assert [number for number, _ in every] == [*range(len(every))]
        assert router.replay(len(every) - 1) == every[-1:]
        assert router.replay(len(every)) == []


def test_whatever_happens_a_router_knows_what_is_cached(tmp_path: Path) -> None:
    draw, asked = random.Random(1), ["import os"]
    with routed(tmp_path, prefix_cache_ttl=3600.0) as (runtime, router):
        for _ in range(50):
            text = f"class C{draw.randrange(12)}:\n" + "    pass\n" * draw.randrange(4, 150)
            what = draw.choice(["ask", "ask", "ask", "forget", "limit", "clear"])
            if what == "ask":
                runtime.generate(text, SHORT)
                asked.append(text)
            elif what == "forget":
                runtime.invalidate(draw.choice(asked))
            elif what == "limit":
                runtime.set_memory_limit(draw.choice([11, 12, 64]) << 20)
            elif draw.random() < 0.3:
                runtime.invalidate()
            assert settled(router, runtime)
        kinds = [event.kind for event in runtime.cache_events()]
        assert {*kinds} == {"stored", "removed", "cleared"}


def test_what_was_cached_before_is_told_first(tmp_path: Path) -> None:
    (tmp_path / "pages").mkdir(mode=0o700)
    with Runtime("tiny", backend="cpu", memory_limit="64MiB") as runtime:
        runtime.generate(PROMPT, SHORT)
        runtime.save_cache(tmp_path / "pages")
    with routed(tmp_path, cache_dir=tmp_path / "pages") as (runtime, router):
        runtime.generate(PROMPT, SHORT)
        assert settled(router, runtime)
        assert router.blocks


def test_a_tenants_prompts_are_told_to_nobody(tmp_path: Path) -> None:
    with routed(tmp_path) as (runtime, router):
        runtime.generate("a secret of alice, " * 20, SHORT, cache_salt="alice")
        tokens = runtime.generate(PROMPT, SHORT)[0].prompt_token_ids
        mine = {block_hash(name.key) for name in chain(runtime.page_root(), tokens, 16)}
        assert until(lambda: mine <= router.blocks.keys(), router)
        assert len(cached(runtime)) > len(router.blocks) > 0


def test_after_a_gap_a_router_is_told_that_nothing_is_cached() -> None:
    root, kept = root_key(b"model"), EventLog(kept=4)
    names = [*chain(root, range(96), 16)]
    kept.add("stored", names)
    cleared, stored = block_events(kept.since(0), 0, root)
    assert cleared == AllBlocksCleared()
    assert isinstance(stored, BlockStored)
    assert stored.block_hashes == [block_hash(name.key) for name in names[2:]]
    assert stored.parent_block_hash == block_hash(names[1].key)
    assert block_events(kept.since(2), 2, root) == [stored]


def test_pages_that_follow_each_other_are_one_event_and_others_are_not() -> None:
    root, log = root_key(b"model"), EventLog()
    one, other = [*chain(root, range(48), 16)], [*chain(root, range(50, 82), 16)]
    log.add("stored", [*one[:2], *other, one[2]])
    log.add("removed", [one[2], other[1]])
    first, second, third, gone = block_events(log.since(0), 0, root)
    assert first == BlockStored(
        [block_hash(name.key) for name in one[:2]], None, [*range(32)], 16, None, "GPU", None
    )
    assert isinstance(second, BlockStored)
    assert (second.parent_block_hash, second.token_ids) == (None, [*range(50, 82)])
    assert isinstance(third, BlockStored)
    assert third.parent_block_hash == block_hash(one[1].key)
    assert gone == BlockRemoved([block_hash(one[2].key), block_hash(other[1].key)], "GPU")


def test_requests_that_are_none_are_passed_over(tmp_path: Path) -> None:
    with routed(tmp_path) as (runtime, router):
        for nonsense in ([b"", b"abc"], [b"x"], [b"", b"", b"", b"", b""]):
            with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
                socket.connect(f"ipc://{tmp_path}/replay")
                socket.send_multipart(nonsense)
        runtime.generate(PROMPT, SHORT)
        assert settled(router, runtime)


def test_addresses_that_cannot_be_had_are_refused_by_name(tmp_path: Path) -> None:
    for address in ("nonsense", "tcp://127.0.0.1:0x", f"ipc://{tmp_path}/there/is/none"):
        with pytest.raises(kvrt.ConfigError, match="cannot be had"):
            EventPublisher(address)
    with EventPublisher("tcp://127.0.0.1:0") as publisher:
        assert publisher.endpoint.startswith("tcp://127.0.0.1:")
        with pytest.raises(kvrt.ConfigError, match="cannot be had"):
            EventPublisher("tcp://127.0.0.1:0", replay=publisher.endpoint)


def test_without_a_prefix_cache_there_is_nothing_to_publish() -> None:
    with (
        Runtime("tiny", backend="cpu", memory_limit="64MiB", prefix_cache=False) as runtime,
        EventPublisher("tcp://127.0.0.1:0") as publisher,
        pytest.raises(kvrt.ConfigError, match="nothing to publish"),
    ):
        publisher.follow(runtime)
