"""Runtimes that share pages by a store: what one has computed, the other begins with, and no answer
changes, whatever becomes of the store or of the way there."""

import asyncio
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvrt.errors import ConfigError
from kvrt.kv.tiers.remote.client import RemoteStore
from kvrt.kv.tiers.remote.desk import RemoteStats
from kvrt.kv.tiers.remote.shelves import MemoryShelves
from kvrt.net.address import Address
from kvrt.outputs import Result
from kvrt.runtime import Runtime
from kvrt.sampling import SamplingParams
from kvrt.testing.chaos import Chaos
from tests.tiers.elsewhere import KEY, Way, pretended, served, until

from .conftest import Break, MakeRuntime

PAGE = 16
GREEDY = SamplingParams(max_tokens=24, ignore_eos=True)
FIRST = SamplingParams(max_tokens=1, ignore_eos=True)
rng = random.Random(5)
PROMPTS = [[rng.randrange(199) for _ in range(length)] for length in (40, 150, 97, 129)]
PAGES = sum((len(prompt) - 1) // PAGE for prompt in PROMPTS)
"""That an answer can begin with."""


@pytest.fixture(scope="module")
def right(tiny_lm: Path) -> list[tuple[int, ...]]:
    """What a runtime says that has nothing from anywhere."""
    with Runtime(tiny_lm, backend="cpu", load_format="dummy", seed=1, prefix_cache=False) as cold:
        return [result.token_ids for result in cold.generate(PROMPTS, GREEDY)]


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "pages.key"
    path.write_bytes(KEY)
    return path


@pytest.fixture
def address() -> Iterator[Address]:
    with served() as address:
        yield address


def there(runtime: Runtime) -> RemoteStats:
    offload = runtime.stats().offload
    assert offload is not None
    assert offload.remote is not None
    return offload.remote


def tokens(results: list[Result]) -> list[tuple[int, ...]]:
    assert all(result.error is None for result in results)
    return [result.token_ids for result in results]


@pytest.mark.promise("P15")
@pytest.mark.promise("P43")
@pytest.mark.parametrize("copies", ["early", "late", "mixed"])
@pytest.mark.parametrize("tiers", [None, "host:64MiB"])
def test_a_decoder_begins_with_what_a_prefiller_has_computed(
    make_runtime: MakeRuntime,
    right: list[tuple[int, ...]],
    address: Address,
    key: Path,
    break_device: Break,
    copies: str,
    tiers: str | None,
) -> None:
    break_device(lambda device: Chaos(device, 7, copies=copies))
    shared = {"remote_store": str(address), "remote_key": key, "offload": tiers}
    prefill = make_runtime(**shared)
    decode = make_runtime(**shared, preemption="move")
    assert until(lambda: there(decode).connected)
    tokens(prefill.generate(PROMPTS, FIRST))
    assert until(lambda: there(decode).pages >= PAGES)
    results = decode.generate(PROMPTS, GREEDY)
    assert tokens(results) == right
    assert [r.usage.cached_tokens for r in results] == [
        (len(prompt) - 1) // PAGE * PAGE for prompt in PROMPTS
    ]
    # It shares what it adds, and the first goes on with that.
    said = [[*prompt, *answer] for prompt, answer in zip(PROMPTS, right, strict=True)]
    assert until(lambda: there(prefill).pages == there(decode).pages > PAGES)
    more = prefill.generate(said, FIRST)
    assert sum(r.usage.cached_tokens for r in more) > PAGES * PAGE


def test_pages_are_there_before_the_prompt_is_all_computed(
    make_runtime: MakeRuntime, address: Address, key: Path
) -> None:
    shared = {"remote_store": str(address), "remote_key": key}
    prefill = make_runtime(**shared, max_batch_tokens=32)
    decode = make_runtime(**shared)
    assert until(lambda: there(prefill).connected and there(decode).connected)
    long = [rng.randrange(199) for _ in range(1000)]
    with prefill.stream(long, SamplingParams(max_tokens=1)) as stream:
        assert until(lambda: there(decode).pages > 0)
        assert stream._result is None, "the prompt was computed before"
        assert stream.result.usage.completion_tokens == 1


def test_what_is_private_or_forgotten_is_nobody_elses(
    make_runtime: MakeRuntime, address: Address, key: Path
) -> None:
    shared = {"remote_store": str(address), "remote_key": key, "preemption": "move"}
    one, two = make_runtime(**shared), make_runtime(**shared)
    assert until(lambda: there(one).connected and there(two).connected)
    one.generate(PROMPTS[0], FIRST, private=True)
    one.generate(PROMPTS[1], FIRST, cache_salt="a")
    one.generate(PROMPTS[2], FIRST, cache_salt="b")
    assert until(lambda: there(two).pages == 9 + 6)
    assert two.generate(PROMPTS[1], FIRST, cache_salt="b")[0].usage.cached_tokens == 0
    assert until(lambda: there(one).pages == 9 + 6 + 9)
    one.invalidate(PROMPTS[2], cache_salt="b")  # what begins with all of its six pages
    assert until(lambda: there(two).pages == 9 + 5 + 9)
    one.invalidate(cache_salt="a")
    assert until(lambda: there(two).pages == 5 + 9)
    assert two.generate(PROMPTS[1], FIRST, cache_salt="a")[0].usage.cached_tokens == 0


@pytest.mark.promise("P43")
@settings(max_examples=10, deadline=None)
@given(
    fault=st.tuples(
        st.booleans(),
        st.sampled_from(["cut_at", "stall_at", "flip_at"]),
        st.integers(0, 400) | st.integers(0, PAGES << 18),
    )
)
def test_a_way_that_breaks_anywhere_changes_no_token(
    fault: tuple[bool, str, int],
    tiny_lm: Path,
    right: list[tuple[int, ...]],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    back, what, at = fault
    key = tmp_path_factory.mktemp("key") / "key"
    key.write_bytes(KEY)
    options = {"backend": "cpu", "load_format": "dummy", "seed": 1, "memory_limit": "512MiB",
               "preemption": "move", "remote_key": key}  # fmt: skip
    with served(patience=0.5) as address, pytest.MonkeyPatch.context() as patch:
        patch.setitem(RemoteStore.__init__.__kwdefaults__, "patience", 0.5)  # type: ignore[arg-type]
        way = Way(address)
        way.back = back
        setattr(way, what, at)
        with (
            pretended(way) as broken,
            Runtime(tiny_lm, remote_store=str(address), **options) as prefill,  # type: ignore[arg-type]
            Runtime(tiny_lm, remote_store=str(broken), **options) as decode,  # type: ignore[arg-type]
        ):
            assert until(lambda: there(prefill).connected)
            until(lambda: there(decode).connected, 0.2)
            tokens(prefill.generate(PROMPTS, FIRST))
            until(lambda: there(decode).pages >= PAGES, 0.2)
            begun = time.monotonic()
            assert tokens(decode.generate(PROMPTS, GREEDY)) == right
            assert time.monotonic() - begun < 10


@pytest.mark.promise("P12")
def test_a_store_that_never_answers_blocks_nobody(
    make_runtime: MakeRuntime, right: list[tuple[int, ...]]
) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(3600)

    with pretended(silent) as address:
        runtime = make_runtime(remote_store=str(address))
        begun = time.monotonic()
        assert tokens(runtime.generate(PROMPTS, GREEDY)) == right
        assert not there(runtime).connected
        runtime.close()
        assert time.monotonic() - begun < 10


def test_a_store_that_goes_and_comes_back_is_used_again(
    make_runtime: MakeRuntime, right: list[tuple[int, ...]], key: Path
) -> None:
    shelves = MemoryShelves(64 << 20)
    with served(shelves) as address:
        runtime = make_runtime(remote_store=str(address), remote_key=key)
        assert until(lambda: there(runtime).connected)
        assert tokens(runtime.generate(PROMPTS[:2], GREEDY)) == right[:2]
        assert until(lambda: there(runtime).pages > 5)
    assert until(lambda: not there(runtime).connected)
    assert tokens(runtime.generate(PROMPTS[2:], GREEDY)) == right[2:]
    with served(shelves, port=address.port):
        assert until(lambda: there(runtime).pages > 5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"remote_store": "10.0.0.7:7707"}, "no key guards it"),
        ({"remote_store": "nowhere"}, "is not an address"),
        ({"remote_store": "127.0.0.1:1", "prefix_cache": False}, "prefix_cache is off"),
        ({"remote_key": "pages.key"}, "there is none"),
        ({"remote_store": "127.0.0.1:1", "remote_key": "/proc/nowhere"}, "cannot be read"),
    ],
)
def test_what_cannot_be_is_an_error(
    make_runtime: MakeRuntime, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        make_runtime(**options)
