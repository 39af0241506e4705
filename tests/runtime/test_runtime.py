"""What a runtime promises its callers."""

import math
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from kvrt.errors import CapacityError, ConfigError, KvrtError, RequestError
from kvrt.outputs import Delta, Result
from kvrt.runtime import Runtime
from kvrt.sampling import SamplingParams
from kvrt.testing.host import physical_bytes

from .conftest import MakeRuntime, pages_in_use

CHUNK = 2 << 20
MANY = SamplingParams(max_tokens=400, ignore_eos=True)


def wait_until_idle(runtime: Runtime, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while pages_in_use(runtime) or runtime.busy:
        assert time.monotonic() < end, f"{pages_in_use(runtime)} pages still in use"
        time.sleep(0.002)


def wait_until_held(runtime: Runtime, nbytes: int, seconds: float = 30.0) -> None:
    """Until the cache holds so much physical memory, mapped and pooled."""
    end = time.monotonic() + seconds
    while (held := (s := runtime.stats().cache).mapped_bytes + s.pooled_bytes) != nbytes:
        assert time.monotonic() < end, f"the cache holds {held} bytes"
        time.sleep(0.002)


# --- answers ---------------------------------------------------------------------------------


def test_results_come_in_the_order_of_the_prompts(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime()
    params = [SamplingParams(max_tokens=n, ignore_eos=True) for n in (9, 1, 5)]
    results = runtime.generate([[1, 2], [3], [4, 5, 6]], params)
    assert [len(result.token_ids) for result in results] == [9, 1, 5]
    assert [result.prompt_token_ids for result in results] == [(1, 2), (3,), (4, 5, 6)]
    assert {result.finish_reason for result in results} == {"length"}
    assert results[0].usage.prompt_tokens == 2
    assert results[0].usage.completion_tokens == 9
    assert 0 <= results[0].timings.queued <= results[0].timings.first_token
    assert results[0].timings.first_token <= results[0].timings.total


def test_a_stream_gives_each_token_as_it_comes_and_then_the_result(
    make_runtime: MakeRuntime,
) -> None:
    runtime = make_runtime()
    stream = runtime.stream([5, 6, 7], SamplingParams(max_tokens=12, ignore_eos=True))
    deltas = list(stream)
    assert [len(delta.token_ids) for delta in deltas] == [1] * 12
    assert deltas[-1].finish_reason == "length"
    assert tuple(t for delta in deltas for t in delta.token_ids) == stream.result.token_ids


def test_a_stop_token_ends_the_answer_and_is_its_last_token(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime()
    free = runtime.generate([[7, 8]], SamplingParams(max_tokens=20, ignore_eos=True))[0]
    stop = free.token_ids[6]
    first = free.token_ids.index(stop)
    ended = runtime.generate([[7, 8]], SamplingParams(max_tokens=20, stop_token_ids=[stop]))[0]
    assert ended.token_ids == free.token_ids[: first + 1]
    assert ended.finish_reason == "stop"


def test_logprobs_of_prompt_and_answer_are_those_of_the_model(make_runtime: MakeRuntime) -> None:
    """The log-probability of an answer's token equals that of the same token in a prompt."""
    runtime = make_runtime(max_batch_tokens=5)
    want = SamplingParams(max_tokens=8, ignore_eos=True, logprobs=3)
    answer = runtime.generate([[9, 10, 11]], want)[0]
    logprobs = answer.completions[0].logprobs
    assert logprobs is not None
    assert [entry.token_id for entry in logprobs] == list(answer.token_ids)
    assert all(entry.top[0] == (entry.token_id, entry.logprob) for entry in logprobs), "greedy"
    asked = SamplingParams(max_tokens=1, prompt_logprobs=0)
    again = runtime.generate([[9, 10, 11, *answer.token_ids]], asked)[0]
    assert again.prompt_logprobs is not None
    assert len(again.prompt_logprobs) == 10
    assert [e.logprob for e in again.prompt_logprobs[2:]] == [e.logprob for e in logprobs]


def test_each_completion_says_what_its_own_seed_says_alone(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime()

    def drawn(seed: int, n: int = 1) -> list[tuple[int, ...]]:
        wish = SamplingParams(max_tokens=9, temperature=1.0, seed=seed, n=n, ignore_eos=True)
        return [c.token_ids for c in runtime.generate([[3, 1, 4]], wish)[0].completions]

    top = 2**64 - 2
    alone = [drawn(seed % 2**64)[0] for seed in range(top, top + 4)]
    assert drawn(top, n=4) == alone
    assert len(set(alone)) == 4


@pytest.mark.parametrize("chunk", [3, 512])
def test_a_prompt_token_has_the_log_probability_that_it_has_as_an_answer(
    chunk: int, make_runtime: MakeRuntime
) -> None:
    runtime = make_runtime(max_batch_tokens=chunk)
    prompt = [9, 10, 11, 10, 9, 150, 3, 3, 7]
    scored = runtime.generate([prompt], SamplingParams(max_tokens=1, prompt_logprobs=100))[0]
    assert scored.prompt_logprobs is not None
    assert [entry.token_id for entry in scored.prompt_logprobs] == prompt[1:]
    answer = SamplingParams(max_tokens=1, logprobs=100, ignore_eos=True)
    for place, entry in enumerate(scored.prompt_logprobs, start=1):
        said = runtime.generate([prompt[:place]], answer)[0].completions[0].logprobs
        assert said is not None
        assert entry.top == said[0].top
        assert entry.logprob == dict(entry.top).get(entry.token_id, entry.logprob)
        assert entry.logprob <= entry.top[0][1]


@pytest.mark.parametrize("n", [1, 3])
def test_an_answer_ends_where_the_context_does(n: int, make_runtime: MakeRuntime) -> None:
    runtime = make_runtime(max_model_len=40)
    for most in (None, 5, 100):
        for length in (30, 38, 39):
            wish = SamplingParams(max_tokens=most, n=n, ignore_eos=True)
            result = runtime.generate([[3] * length], wish)[0]
            room = 40 - length if most is None else min(40 - length, most)
            assert [len(c.token_ids) for c in result.completions] == [room] * n
            assert result.finish_reason == "length"
    with pytest.raises(RequestError, match="40 tokens"):
        runtime.stream([3] * 40)


def test_one_bad_request_in_a_batch_fails_alone(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime()
    results = runtime.generate([[1, 2], [], [10**9], [3]], SamplingParams(max_tokens=3))
    assert [result.error is None for result in results] == [True, False, False, True]
    assert isinstance(results[1].error, RequestError)
    assert results[1].error.param == "prompt"


def test_two_runtimes_work_in_one_process(make_runtime: MakeRuntime) -> None:
    one, two = make_runtime(), make_runtime(max_batch_tokens=7)
    params = SamplingParams(max_tokens=30, ignore_eos=True)
    streams = [r.stream([n, n + 1], params) for n in range(6) for r in (one, two)]
    for a, b in zip(streams[::2], streams[1::2], strict=True):
        assert a.result.token_ids == b.result.token_ids


# --- bad input -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "words"),
    [([], "empty"), ([199], "199"), ([-1], "-1"), ([1] * 1024, "1024 tokens"), ("text", "token")],
)
def test_a_bad_prompt_is_refused_at_once(
    prompt: object, words: str, make_runtime: MakeRuntime
) -> None:
    with pytest.raises(KvrtError, match=words):
        make_runtime().stream(prompt)  # type: ignore[arg-type]


def test_a_prompt_that_can_never_fit_the_memory_limit_is_refused(
    make_runtime: MakeRuntime,
) -> None:
    runtime = make_runtime()
    runtime.set_memory_limit(runtime.model.weight_bytes + 2 * CHUNK)
    with pytest.raises(CapacityError, match="700 tokens"):
        runtime.stream([1] * 700)
    assert runtime.generate([[1] * 100], SamplingParams(max_tokens=2))[0].error is None


def test_a_memory_limit_below_the_model_says_what_would_do(make_runtime: MakeRuntime) -> None:
    with pytest.raises(CapacityError, match="the weights take") as caught:
        make_runtime(memory_limit=1000)
    assert "at least" in caught.value.fix


@pytest.mark.parametrize(
    "options",
    [{"dtype": "int3"}, {"page_size": 0}, {"policy": "lifo"}, {"memory_limit": "much"},
     {"max_batch_tokens": -1}, {"no_such_option": 1}, {"max_model_len": 1}, {"seed": -1}],
)  # fmt: skip
def test_a_bad_option_is_refused_by_name(
    options: dict[str, object], make_runtime: MakeRuntime
) -> None:
    with pytest.raises(ConfigError):
        make_runtime(**options)


CALLS: dict[str, tuple[Callable[[Runtime], object], type[KvrtError]]] = {
    "params": (lambda r: r.generate([[1]], {"max_tokens": 3}), RequestError),  # type: ignore
    "priority": (lambda r: r.stream([1], priority="high"), RequestError),  # type: ignore
    "request_id": (lambda r: r.stream([1], request_id=5), RequestError),  # type: ignore
    "private": (lambda r: r.stream([1], private="no"), RequestError),  # type: ignore
    "cache_salt": (lambda r: r.pin([1], cache_salt=b"x"), RequestError),  # type: ignore
    "prompt": (lambda r: r.invalidate(b"x"), RequestError),  # type: ignore
    "prompts": (lambda r: r.generate(None), RequestError),  # type: ignore
    "limit": (lambda r: r.set_memory_limit(1.5e9), ConfigError),  # type: ignore
    "revision": (lambda r: r.set_memory_limit("64MiB", "x"), ConfigError),  # type: ignore
    "compress": (lambda r: r.save_cache("x", compress="a"), ConfigError),  # type: ignore
    "folder": (lambda r: r.load_cache("~nouserxyz/a"), ConfigError),
    "since": (lambda r: r.cache_events("x"), ConfigError),  # type: ignore
    "config": (lambda r: Runtime(config={}), ConfigError),  # type: ignore
}


@pytest.mark.promise("P27")
def test_an_argument_of_another_type_is_refused_by_its_name_and_the_engine_goes_on(
    make_runtime: MakeRuntime,
) -> None:
    runtime = make_runtime(policy="priority")
    other = runtime.stream([1, 2], MANY)
    for name, (call, kind) in CALLS.items():
        with pytest.raises(kind, match=name) as caught:
            call(runtime)
        assert getattr(caught.value, "param", name) == name
    assert other.wait().finish_reason == "length"
    wait_until_idle(runtime)
    assert runtime.generate([[1, 2]], MANY)[0].token_ids == other.result.token_ids


@pytest.mark.parametrize("seconds", [1e10, 1e300, math.inf])
def test_pages_may_be_kept_for_longer_than_a_system_can_wait(
    seconds: float, make_runtime: MakeRuntime
) -> None:
    runtime = make_runtime(prefix_cache_ttl=seconds)
    for _ in range(3):
        assert runtime.generate([[7] * 40], SamplingParams(max_tokens=2))[0].error is None
        wait_until_idle(runtime)
        time.sleep(0.05)  # until it waits, which is nothing that can be seen


# --- memory ----------------------------------------------------------------------------------


@pytest.mark.promise("P4")
def test_memory_follows_use(make_runtime: MakeRuntime) -> None:
    """After a burst of 64 requests the process is as large as before, within 5 %."""
    runtime = make_runtime(keep_warm=0, prefix_cache_ttl=0)
    params = SamplingParams(max_tokens=100, ignore_eos=True)
    burst = [[i % 199] * 150 for i in range(64)]
    prompts = 64 * 150 // 16 * runtime.stats().cache.page_bytes
    runtime.generate(burst, params)  # warms everything but the cache: threads, allocator
    wait_until_held(runtime, CHUNK)
    before, process = physical_bytes(), psutil.Process()
    resident = process.memory_info().rss
    streams = [runtime.stream(prompt, params) for prompt in burst]
    for stream in streams:
        next(stream)
    assert physical_bytes() - before > prompts / 2, "the burst takes memory"
    assert all(len(stream.wait().token_ids) == 100 for stream in streams)
    wait_until_held(runtime, CHUNK)
    assert abs(process.memory_info().rss - resident) < 0.05 * resident
    assert abs(physical_bytes() - before) < 0.05 * before
    stats = runtime.stats().cache
    assert stats.peak_mapped_bytes >= 64 * 11 * stats.page_bytes


@pytest.mark.promise("P4")
def test_a_limit_below_what_is_in_use_is_applied_as_pages_come_back(
    make_runtime: MakeRuntime,
) -> None:
    runtime = make_runtime()
    streams = [runtime.stream([n] * 60, MANY) for n in range(8)]
    for stream in streams:
        next(stream)
    small = runtime.model.weight_bytes + 4 * CHUNK
    assert runtime.set_memory_limit(small).value == "deferred"
    results = [stream.wait() for stream in streams]
    assert all(len(result.token_ids) == 400 for result in results)
    wait_until_idle(runtime)
    assert runtime.stats().cache.limit_bytes == 4 * CHUNK
    assert runtime.set_memory_limit(small + CHUNK).value == "applied"


@pytest.mark.promise("P4")
def test_a_limit_lowered_while_idle_is_applied_at_once(make_runtime: MakeRuntime) -> None:
    """Nothing else is asked of the runtime after it: no step will come by and do it."""
    runtime = make_runtime(keep_warm=8 * CHUNK, prefix_cache_ttl=0)
    runtime.generate([[n] * 150 for n in range(16)], SamplingParams(max_tokens=4, ignore_eos=True))
    wait_until_held(runtime, 8 * CHUNK)
    small = runtime.model.weight_bytes + 3 * CHUNK
    before = physical_bytes()
    assert runtime.set_memory_limit(small).value == "deferred"
    wait_until_held(runtime, 3 * CHUNK, seconds=1.0)
    assert before - physical_bytes() > 4 * CHUNK
    assert runtime.set_memory_limit(small + 9 * CHUNK).value == "applied"
    wait_until_held(runtime, 8 * CHUNK)


# --- aborts ----------------------------------------------------------------------------------


@pytest.mark.promise("P13")
def test_two_thousand_aborts_leak_nothing(make_runtime: MakeRuntime) -> None:
    """Aborted waiting, in the middle of a prompt, while decoding, preempted, forked, and ended."""
    runtime = make_runtime(max_batch_tokens=64, max_running=16)
    runtime.set_memory_limit(runtime.model.weight_bytes + 4 * CHUNK)
    rng = random.Random(3)
    reasons: set[str] = set()
    live: list = []
    for number in range(2000):
        params = SamplingParams(
            max_tokens=rng.randint(1, 12), ignore_eos=True, n=rng.choice([1, 1, 3])
        )
        live.append(runtime.stream([number % 199] * rng.randint(1, 90), params))
        while len(live) > rng.randint(0, 24):
            stream = live.pop(rng.randrange(len(live)))
            if rng.random() < 0.3:
                next(stream, None)
            runtime.abort(stream.request_id)
            reasons.add(stream.wait().finish_reason)
    for stream in live:
        runtime.abort(stream.request_id)
        stream.wait()
    assert "abort" in reasons
    wait_until_idle(runtime)
    runtime.cache.check_integrity()
    assert pages_in_use(runtime) == 0


@pytest.mark.promise("P13")
@pytest.mark.parametrize("prefix_cache", [False, True])
def test_what_an_abort_frees_is_there_for_whoever_waits(
    prefix_cache: bool, make_runtime: MakeRuntime
) -> None:
    """Each fits alone, and not beside the other."""
    runtime = make_runtime(prefix_cache=prefix_cache)
    runtime.set_memory_limit(runtime.model.weight_bytes + 2 * CHUNK)
    for n in range(4):
        first = runtime.stream([n] * 150, SamplingParams(max_tokens=80, ignore_eos=True))
        next(iter(first))
        waits = runtime.stream([9, n] * 75, SamplingParams(max_tokens=9, ignore_eos=True))
        first.close()
        assert waits.wait().error is None


def test_leaving_a_stream_aborts_its_request(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime()
    with runtime.stream([1, 2, 3], MANY) as stream:
        next(stream)
    result = stream.wait()
    assert result.finish_reason == "abort"
    assert len(result.token_ids) < 400
    wait_until_idle(runtime)


def test_an_exception_in_the_caller_aborts_what_it_asked(
    make_runtime: MakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = make_runtime()

    def interrupted(stream: object) -> Result:
        raise KeyboardInterrupt

    monkeypatch.setattr("kvrt.stream.Stream.wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        runtime.generate([[1, 2]] * 8, MANY)
    wait_until_idle(runtime)


def test_closing_ends_what_runs_and_later_calls_say_so(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime()
    stream = runtime.stream([1, 2], MANY)
    assert isinstance(next(stream), Delta)
    runtime.close()
    runtime.close()
    assert stream.wait().finish_reason == "error"
    with pytest.raises(KvrtError, match="closed"):
        runtime.stream([1])


def test_many_threads_share_one_runtime(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime()
    params = SamplingParams(max_tokens=10, ignore_eos=True)
    expected = [runtime.generate([[n]], params)[0].token_ids for n in range(8)]
    wrong: list[int] = []

    def ask(n: int) -> None:
        for _ in range(5):
            if runtime.generate([[n]], params)[0].token_ids != expected[n]:
                wrong.append(n)

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_perplexity_of_a_prompt_is_finite(make_runtime: MakeRuntime) -> None:
    asked = SamplingParams(max_tokens=1, prompt_logprobs=1)
    entries = make_runtime().generate([list(range(100))], asked)[0].prompt_logprobs
    assert entries is not None
    assert len(entries) == 99
    assert math.isfinite(sum(entry.logprob for entry in entries))


UNDER_LIMIT = """
import resource, sys
limit = int(sys.argv[2]) << 30
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
from kvrt.runtime import Runtime
from kvrt.sampling import SamplingParams
with Runtime(sys.argv[1], backend="cpu", load_format="dummy", seed=1, threads=1) as runtime:
    answers = runtime.generate([[n] * 200 for n in range(20)], SamplingParams(max_tokens=50))
    assert [answer.error for answer in answers] == [None] * 20
    with open("/proc/self/statm") as file:
        print(int(file.read().split()[0]) * resource.getpagesize())
"""


@pytest.mark.parametrize("gib", [4, 6])
def test_no_more_addresses_are_reserved_than_a_process_may_have(tiny_lm: Path, gib: int) -> None:
    """As batch systems limit them (ulimit -v): whatever the machine's memory is."""
    done = subprocess.run(
        [sys.executable, "-c", UNDER_LIMIT, str(tiny_lm), str(gib)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < gib << 30
