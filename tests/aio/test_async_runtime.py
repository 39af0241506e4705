"""`kvrt.AsyncRuntime`: many coroutines ask one engine, and each may leave at any time."""

import asyncio
import contextlib
import gc

import pytest

import kvrt
from kvrt.engine.events import Event, RequestFinished
from kvrt.errors import ConfigError, KvrtError, RequestError
from kvrt.outputs import Delta
from kvrt.runtime import Runtime
from kvrt.sampling import SamplingParams

from .conftest import LONG, PROMPT, SHORT, Play, until


def texts(deltas: list[Delta]) -> str:
    return "".join(delta.text for delta in deltas)


def test_many_coroutines_are_told_what_each_would_be_told_alone(tiny: Runtime, play: Play) -> None:
    prompts = [f"def f{n}(a, b):\n" for n in range(12)]
    alone = [result.text for result in tiny.generate(prompts, SHORT)]

    async def scene(runtime: kvrt.AsyncRuntime) -> None:
        async def ask(prompt: str) -> str:
            stream = await runtime.stream(prompt, SHORT)
            deltas = [delta async for delta in stream]
            result = await stream.result()
            assert texts(deltas) == result.text
            assert sum((delta.token_ids for delta in deltas), ()) == result.token_ids
            return result.text

        assert await asyncio.gather(*map(ask, prompts)) == alone
        assert (await runtime.generate(prompts[0], SHORT)).text == alone[0]

    play(scene)


def test_the_loop_is_woken_at_most_once_a_step(tiny: Runtime, play: Play) -> None:
    async def scene(runtime: kvrt.AsyncRuntime) -> None:
        steps, hops = tiny.stats().steps, runtime._hop.hops
        streams = [await runtime.stream(f"{PROMPT}{n}", SHORT) for n in range(8)]
        tokens = sum([len((await stream.result()).token_ids) for stream in streams])
        taken = tiny.stats().steps - steps
        assert tokens == 8 * 24
        assert runtime._hop.hops - hops <= taken < tokens

    play(scene)


def test_pieces_have_the_log_probabilities_of_their_tokens(play: Play) -> None:
    async def scene(runtime: kvrt.AsyncRuntime) -> None:
        params = SamplingParams(max_tokens=12, logprobs=3, n=2, temperature=1.0, seed=5)
        stream = await runtime.stream(PROMPT, params)
        said: dict[int, list[object]] = {0: [], 1: []}
        async for delta in stream:
            if delta.token_ids:
                assert delta.logprobs is not None
                assert [entry.token_id for entry in delta.logprobs] == list(delta.token_ids)
                said[delta.index] += delta.logprobs
        result = await stream.result()
        assert [tuple(said[c.index]) for c in result.completions] == [
            c.logprobs for c in result.completions
        ]

    play(scene)


@pytest.mark.promise("P14")
@pytest.mark.parametrize("way", ["cancel", "close", "leave", "drop"])
def test_a_consumer_that_leaves_aborts_its_request_alone(play: Play, way: str) -> None:
    ends: dict[str, str] = {}

    def watch(event: Event) -> None:
        if isinstance(event, RequestFinished):
            ends[event.result.request_id] = event.result.finish_reason

    async def scene(runtime: kvrt.AsyncRuntime) -> None:
        begun, kept = asyncio.Event(), []
        runtime.runtime.add_observer(watch)
        other = asyncio.create_task(runtime.generate(PROMPT, SHORT))

        async def ask() -> None:
            stream = await runtime.stream(PROMPT, LONG, request_id="impatient")
            if way != "drop":
                kept.append(stream)
            async for _ in stream:
                begun.set()
                if way != "cancel":
                    break
            if way == "close":
                stream.close()
            elif way == "leave":
                async with stream:
                    pass

        task = asyncio.create_task(ask())
        await begun.wait()
        if way == "cancel":
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        del task
        gc.collect()
        await until(lambda: "impatient" in ends, 5)
        runtime.runtime.remove_observer(watch)
        assert ends["impatient"] == "abort"
        assert len((await other).token_ids) == 24

    play(scene)


def test_a_second_taker_is_refused_and_the_first_goes_on(play: Play) -> None:
    async def scene(runtime: kvrt.AsyncRuntime) -> None:
        async def all_of(stream: kvrt.AsyncStream) -> str:
            return texts([delta async for delta in stream])

        stream = await runtime.stream(PROMPT, SHORT)
        first = asyncio.create_task(all_of(stream))
        await until(lambda: stream._arrivals.awaited)
        for second in (anext(stream), stream.wait(), stream.result()):
            with pytest.raises(RequestError, match="by another task") as refused:
                await second
            assert refused.value.fix
        assert await first == (await stream.result()).text

    play(scene)


def test_a_slow_consumer_finds_all_as_one_piece_and_keeps_nobody_waiting(play: Play) -> None:
    async def scene(runtime: kvrt.AsyncRuntime) -> None:
        slow = await runtime.stream(PROMPT, SamplingParams(max_tokens=200, n=2, ignore_eos=True))
        await anext(slow)
        await runtime.generate(PROMPT, LONG)
        await until(lambda: slow._arrivals.result is not None)
        rest = [delta async for delta in slow]
        assert len(rest) == 2, "one for each completion"
        assert all(delta.finish_reason == "length" for delta in rest)
        result = await slow.result()
        assert all(c.text.endswith(d.text) for c in result.completions for d in rest[c.index :][:1])

    play(scene)


def test_a_request_that_is_bad_or_fails_is_its_askers_business_alone(play: Play) -> None:
    async def scene(runtime: kvrt.AsyncRuntime) -> None:
        good = asyncio.create_task(runtime.generate(PROMPT, SHORT))
        for prompt, options, param in [
            ("", {}, "prompt"),
            ([10**9], {}, "prompt"),
            (PROMPT, {"cache_salt": "\0"}, "cache_salt"),
            (PROMPT, {"request_id": "a" * 300}, "request_id"),
            (PROMPT, {"params": "greedy"}, "params"),
        ]:
            with pytest.raises(RequestError) as caught:
                await runtime.stream(prompt, **options)  # type: ignore[arg-type]
            assert caught.value.param == param
        with pytest.raises(ConfigError, match="timeout"):
            await runtime.stream(PROMPT, timeout=-1)
        assert len((await good).token_ids) == 24

    play(scene)


def test_what_waits_longer_than_its_timeout_is_told_so_and_aborted(play: Play) -> None:
    async def scene(runtime: kvrt.AsyncRuntime) -> None:
        with pytest.raises(TimeoutError):
            await runtime.generate(PROMPT, LONG, timeout=1e-4)
        assert len((await runtime.generate(PROMPT, SHORT)).token_ids) == 24

    play(scene)


def test_metadata_comes_back_with_the_result_and_is_never_looked_at(play: Play) -> None:
    async def scene(runtime: kvrt.AsyncRuntime) -> None:
        mine = object()
        stream = await runtime.stream(PROMPT, SHORT, metadata=mine)
        assert stream.metadata is mine
        assert (await stream.result()).metadata is mine

    play(scene)


def test_closing_ends_streams_that_run_and_refuses_new_ones() -> None:
    async def scene() -> None:
        async with await kvrt.AsyncRuntime.open("tiny", backend="cpu") as runtime:
            stream = await runtime.stream(PROMPT, LONG)
            await anext(stream)
            reading = asyncio.create_task(stream.wait())
            await runtime.close()
            result = await reading
            assert result.error is not None or result.finish_reason == "abort"
            with pytest.raises(KvrtError, match="closed"):
                await runtime.stream(PROMPT)
        assert runtime._worker._left.is_set()

    asyncio.run(asyncio.wait_for(scene(), 60))


def test_an_engine_that_stops_is_told_to_every_stream() -> None:
    def fail() -> None:
        raise RuntimeError("the device is gone")

    async def scene() -> None:
        runtime = await kvrt.AsyncRuntime.open("tiny", backend="cpu")
        streams = [await runtime.stream(f"{PROMPT}{n}", LONG) for n in range(3)]
        for stream in streams:
            await anext(stream)
        runtime._worker.engine.step = fail  # type: ignore[method-assign]
        for stream in streams:
            assert "the device is gone" in str((await stream.wait()).error)
        with pytest.raises(KvrtError, match="the device is gone"):
            await runtime.stream(PROMPT)
        await runtime.close()

    asyncio.run(asyncio.wait_for(scene(), 60))


def test_a_loop_that_was_closed_hurts_nobody(tiny: Runtime) -> None:
    async def leave() -> None:
        streams.append(await kvrt.AsyncRuntime(tiny).stream(PROMPT, LONG))

    streams: list[kvrt.AsyncStream] = []
    asyncio.run(leave())
    assert len(tiny.generate(PROMPT, SHORT)[0].token_ids) == 24
    streams.clear()
