"""A batch from its input to its outputs, on answers without a model."""

import asyncio
import json
import random
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from kvrt.batches import run as running
from kvrt.batches.run import Rules
from kvrt.batches.store import Store
from kvrt.batches.words import Batch
from kvrt.errors import ConfigError

from .inputs import RULES, Echo, entered, line, many, results, runner, write


class Clock:
    """Stands still unless it is set."""

    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock, database: str | None) -> Iterator[Store]:
    made = Store(tmp_path / "state", clock, url=database)
    yield made
    made.close()


def done(store: Store, batch: Batch, echo: Echo, **options: object) -> Batch:
    return asyncio.run(runner(store, echo, **options).run(batch.id))  # type: ignore[arg-type]


def test_each_line_is_answered_once_and_stands_in_the_order_of_the_input(
    store: Store, tmp_path: Path
) -> None:
    input = many(tmp_path / "in.jsonl", 300)
    found = done(store, entered(store, input), Echo())
    output, errors = results(input)
    assert [each["custom_id"] for each in output] == [f"line-{n}" for n in range(300)]
    assert [each["response"]["body"]["prompt"] for each in output] == [
        f"say {n}" for n in range(300)
    ]
    assert not errors
    assert not (tmp_path / "errors.jsonl").exists()
    assert (found.status, found.total, found.done, found.failed) == ("completed", 300, 300, 0)
    assert (found.tokens.prompt, found.tokens.cached, found.tokens.said) == (600, 300, 900)
    assert {"in_progress", "finalizing", "completed"} <= found.times.keys()


def test_a_line_that_fails_is_an_error_and_only_it(store: Store, tmp_path: Path) -> None:
    lines = [line(f"{n}", **({"status": 400} if n % 3 == 0 else {})) for n in range(9)]
    input = write(tmp_path / "in.jsonl", lines)
    found = done(store, entered(store, input), Echo())
    output, errors = results(input)
    assert [each["custom_id"] for each in output] == ["1", "2", "4", "5", "7", "8"]
    assert [each["custom_id"] for each in errors] == ["0", "3", "6"]
    assert {each["response"]["status_code"] for each in errors} == {400}
    assert (found.status, found.done, found.failed) == ("completed", 6, 3)


def test_what_failed_is_asked_again_and_what_was_answered_is_not(
    store: Store, tmp_path: Path
) -> None:
    input = write(tmp_path / "in.jsonl", [line("a"), line("b", status=400), line("c")])
    batch = entered(store, input)
    done(store, batch, Echo())
    again = Echo()
    found = store.batches.get(batch.id)
    assert found is not None
    store.batches.reopen(found)
    write(input, [line("a"), line("b", status=200), line("c")])  # its fault is mended
    found = done(store, batch, again)
    assert len(again.asked) == 1
    output, errors = results(input)
    assert [each["custom_id"] for each in output] == ["a", "b", "c"]
    assert not errors
    assert (found.done, found.failed) == (3, 0)


def test_a_line_that_fails_for_no_reason_of_its_own_is_asked_again(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "DELAYS_S", (0.0, 0.0))
    echo, input = Echo(), write(tmp_path / "in.jsonl", [line("a", status=503)])
    assert done(store, entered(store, input), echo).failed == 1
    assert len(echo.asked) == 3


WRONG: dict[str, tuple[object, str, str | None]] = {
    "no JSON": (b"{", "invalid_json_line", None),
    "no text": (b'{"custom_id": "\xff"}', "invalid_json_line", None),
    "deep": (b'{"a":' * 5000, "invalid_json_line", None),
    "a list": ([], "invalid_line", None),
    "no name": ({**line("x"), "custom_id": ""}, "invalid_line", "custom_id"),
    "a name that is none": ({**line("x"), "custom_id": 7}, "invalid_line", "custom_id"),
    "a method": ({**line("x"), "method": "GET"}, "invalid_method", "method"),
    "a route": ({**line("x"), "url": "/v1/secrets"}, "invalid_url", "url"),
    "no body": (
        {"custom_id": "x", "method": "POST", "url": "/v1/completions"},
        "missing_required_parameter", "body",
    ),
    "a body that is none": ({**line("x"), "body": "secret"}, "invalid_line", "body"),
    "a name twice": (line("fine"), "duplicate_custom_id", "custom_id"),
    "too long": (line("x", prompt="secret" * 20_000), "line_too_long", None),
}  # fmt: skip


@pytest.mark.promise("P34")
@pytest.mark.parametrize("name", WRONG)
def test_an_input_with_a_bad_line_is_refused_as_a_whole(
    store: Store, tmp_path: Path, name: str
) -> None:
    """With the line's number, and nothing of what it says."""
    wrong, code, param = WRONG[name]
    input = write(tmp_path / "in.jsonl", [line("fine"), b"", wrong, line("last")])
    echo = Echo()
    found = done(store, entered(store, input), echo)
    assert found.status == "failed"
    assert not echo.asked
    (problem,) = found.problems
    assert (problem.code, problem.line, problem.param) == (code, 3, param)
    assert "secret" not in problem.message
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.promise("P34")
def test_an_input_that_is_empty_too_long_or_gone_is_refused(store: Store, tmp_path: Path) -> None:
    empty = done(store, entered(store, write(tmp_path / "empty", [b"", b" "])), Echo())
    gone = done(store, entered(store, tmp_path / "gone"), Echo())
    short = Rules(RULES.urls, RULES.longest, most=4)
    long = entered(store, many(tmp_path / "long", 5))
    long = done(store, long, Echo(), rules=short)
    codes = [batch.problems[0].code for batch in (empty, gone, long)]
    assert codes == ["empty_file", "input_missing", "too_many_tasks"]


def test_no_more_problems_are_told_than_a_hundred(store: Store, tmp_path: Path) -> None:
    input = write(tmp_path / "in.jsonl", [b"{"] * 2000)
    assert len(done(store, entered(store, input), Echo()).problems) == 100


def test_lines_are_asked_by_model_and_shared_prefix(store: Store, tmp_path: Path) -> None:
    rng = random.Random(3)
    cook, poet = "You are a cook. " * 20, "You are a poet. " * 20
    systems = [cook, poet, cook[:200] + poet]
    lines = [
        line(f"{m}-{s}-{n}", model=model, messages=[{"role": "system", "content": f"{system}{n}"}])
        for m, model in enumerate(["first", "second"])
        for s, system in enumerate(systems)
        for n in range(20)
    ]
    rng.shuffle(lines)
    echo = Echo()
    done(store, entered(store, write(tmp_path / "in.jsonl", lines)), echo, places=1)
    for length in (150, 250):  # of the first part, and of the second
        texts = [(each["model"], each["messages"][0]["content"][:length]) for each in echo.asked]
        changes = sum(a != b for a, b in pairwise(texts))
        assert changes == len(set(texts)) - 1


def test_so_many_lines_are_asked_at_once(store: Store, tmp_path: Path) -> None:
    echo = Echo(0.001)
    done(store, entered(store, many(tmp_path / "in.jsonl", 60)), echo, places=7)
    assert echo.together == 7


@pytest.mark.promise("P34")
@pytest.mark.parametrize("after", [0, 5, 39])
def test_a_batch_that_is_cancelled_keeps_what_was_answered(
    store: Store, tmp_path: Path, after: int
) -> None:
    input = many(tmp_path / "in.jsonl", 40)
    batch, echo = entered(store, input), Echo(most=after)
    worker = runner(store, echo, places=1)

    async def cancelled() -> Batch:
        task = asyncio.create_task(worker.run(batch.id))
        while len(echo.asked) <= after:
            await asyncio.sleep(0)
        await worker.end(batch.id, "cancelled")
        return await task

    found = asyncio.run(cancelled())
    output, errors = results(input)
    assert found.status == "cancelled"
    assert found.done == len(output) == after
    assert len(output) + len(errors) == 40
    assert {each["custom_id"] for each in output + errors} == {f"line-{n}" for n in range(40)}
    assert {each["error"]["code"] for each in errors} <= {"batch_cancelled"}


@pytest.mark.promise("P34")
def test_a_batch_whose_time_is_over_keeps_what_was_answered(
    store: Store, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "LOOK_S", 0.01)
    input = many(tmp_path / "in.jsonl", 40)
    batch, echo = entered(store, input, seconds=86_400), Echo(0.002)

    async def late() -> Batch:
        task = asyncio.create_task(runner(store, echo, places=1).run(batch.id))
        while len(echo.asked) < 5:
            await asyncio.sleep(0)
        clock.now += 86_400
        return await task

    found = asyncio.run(late())
    output, errors = results(input)
    assert found.status == "expired"
    assert len(output) + len(errors) == 40
    assert errors
    assert {each["error"]["code"] for each in errors} == {"batch_expired"}
    store.batches.reopen(found, 10)
    assert done(store, found, Echo()).status == "completed"
    assert len(results(input)[0]) == 40


def test_a_batch_that_is_stopped_goes_on_where_it_was(store: Store, tmp_path: Path) -> None:
    input = many(tmp_path / "in.jsonl", 200)
    batch, asked = entered(store, input), 0
    while (found := store.batches.get(batch.id)) and not found.over:
        echo = Echo()
        worker = runner(store, echo, places=4)

        async def some(worker: running.Runner, echo: Echo) -> None:
            task = asyncio.create_task(worker.run(batch.id))
            while len(echo.asked) < 50 and not task.done():
                await asyncio.sleep(0)
            worker.stop()
            await task

        asyncio.run(some(worker, echo))
        asked += len(echo.asked)
    assert [each["custom_id"] for each in results(input)[0]] == [f"line-{n}" for n in range(200)]
    assert asked < 200 + 5 * 70  # only what was being asked is asked again


def test_a_disk_that_takes_no_more_loses_nothing(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was answered before is kept, and the batch goes on once there is room."""
    input = many(tmp_path / "in.jsonl", 900)
    batch = entered(store, input)
    real, left = running.os.fdatasync, iter([0, 1, 1])

    def full(file: int) -> None:
        if next(left, 0):
            raise OSError(28, "No space left on device")
        real(file)

    monkeypatch.setattr(running.os, "fdatasync", full)
    for _ in range(2):
        with pytest.raises(OSError, match="No space"):
            done(store, batch, Echo(), places=16)
    found = store.batches.get(batch.id)
    assert found is not None
    assert 0 < found.done < 900
    assert done(store, batch, Echo()).done == 900
    assert [each["custom_id"] for each in results(input)[0]] == [f"line-{n}" for n in range(900)]


def test_a_fault_that_ends_all_answers_ends_the_run_and_fails_no_line(
    store: Store, tmp_path: Path
) -> None:
    class Dying(Echo):
        async def __call__(self, url: str, body: bytes, owner: str) -> running.Reply:
            if len(self.asked) > 20:
                raise ConfigError("the engine has stopped")
            return await super().__call__(url, body, owner)

    batch = entered(store, many(tmp_path / "in.jsonl", 60))
    with pytest.raises(ConfigError, match="stopped"):
        done(store, batch, Dying())
    found = store.batches.get(batch.id)
    assert found is not None
    assert found.status == "in_progress"
    assert not found.failed
    assert done(store, batch, Echo()).done == 60


def test_a_folder_has_one_process_at_a_time(store: Store, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="another process"):
        Store(tmp_path / "state")


def test_the_database_says_nothing_of_what_lines_say(store: Store, tmp_path: Path) -> None:
    input = write(tmp_path / "in.jsonl", [line("my-secret-name", prompt="my secret question")])
    done(store, entered(store, input), Echo())
    for path in (tmp_path / "state").rglob("*"):
        assert path.is_dir() or b"secret" not in path.read_bytes()


def test_answers_are_json_as_it_was_given(store: Store, tmp_path: Path) -> None:
    body = {"prompt": 'ü "\n\u2028', "numbers": [1e-9, 2**60, -0.0]}
    input = write(tmp_path / "in.jsonl", [line("ä\u2028", **body)])
    done(store, entered(store, input), Echo())
    (only,) = results(input)[0]
    assert only["custom_id"] == "ä\u2028"
    assert only["response"]["body"] == json.loads(json.dumps({"model": "tiny", **body}))
