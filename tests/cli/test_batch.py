"""`kvrt batch run` on the bundled model."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import kvrt
from kvrt.sampling import SamplingParams
from tests.batches.inputs import line, read, write
from tests.embedding.encoders import make_encoder

from .conftest import Kvrt

Start = Callable[..., Any]
PROMPTS = [f"def read_{name}(path):" for name in ("lines", "words", "numbers", "all")]


@pytest.fixture
def run(kvrt: Kvrt, tmp_path: Path) -> Callable[..., Any]:
    def call(*args: str) -> Any:
        files = ("-i", str(tmp_path / "in.jsonl"), "-o", str(tmp_path / "out.jsonl"))
        return kvrt("batch", "run", *files, "--backend", "cpu", *args)

    return call


def asked(name: str, prompt: str, **body: Any) -> dict[str, Any]:
    return line(name, **{"prompt": prompt, "max_tokens": 6, "temperature": 0, **body})


def test_answers_are_those_of_the_runtime(run: Callable[..., Any], tmp_path: Path) -> None:
    write(tmp_path / "in.jsonl", [asked(f"{n}", text) for n, text in enumerate(PROMPTS)])
    done = run()
    assert done.exit_code == 0, done.output
    with kvrt.Runtime("tiny", backend="cpu") as runtime:
        results = runtime.generate(PROMPTS, SamplingParams(max_tokens=6))
    bodies = [each["response"]["body"] for each in read(tmp_path / "out.jsonl")]
    assert [body["choices"][0]["text"] for body in bodies] == [each.text for each in results]
    assert "4 of 4 lines answered" in done.stderr


def test_routes_have_what_they_have_in_the_server(run: Callable[..., Any], tmp_path: Path) -> None:
    make_encoder("bert", tmp_path / "encoder")
    said = [{"role": "user", "content": "Say something."}]
    lines = [
        {**asked("a", "x"), "url": "/v1/embeddings",
         "body": {"model": str(tmp_path / "encoder"), "input": ["w1 w2", "w3"]}},
        {**asked("b", "x"), "url": "/v1/chat/completions",
         "body": {"model": "tiny", "messages": said, "max_tokens": 3}},
        {**asked("c", "x"), "url": "/v1/responses",
         "body": {"model": "tiny", "input": "Say.", "max_output_tokens": 3}},
        asked("d", "x"),
    ]  # fmt: skip
    write(tmp_path / "in.jsonl", lines)
    done = run("--chat-template", "plain")
    assert done.exit_code == 0, done.output
    output = read(tmp_path / "out.jsonl")
    assert [each["custom_id"] for each in output] == ["a", "b", "c", "d"]
    kinds = [each["response"]["body"]["object"] for each in output]
    assert kinds == ["list", "chat.completion", "response", "text_completion"]
    assert len(output[0]["response"]["body"]["data"]) == 2


def test_a_line_that_cannot_be_answered_costs_no_other(
    run: Callable[..., Any], tmp_path: Path
) -> None:
    wrong = {
        "temperature": asked("temperature", "x", temperature=9),
        "stream": asked("stream", "x", stream=True),
        "long": asked("long", "x " * 5000),
        "vectors": {**asked("vectors", "x"), "url": "/v1/embeddings", "body": {"input": "x"}},
        "other": asked("other", "x", model="other"),
    }
    last = {**asked("last", "x"), "body": {"prompt": "x", "max_tokens": 2}}  # it names no model
    write(tmp_path / "in.jsonl", [asked("first", "x"), *wrong.values(), last])
    done = run("tiny")
    assert done.exit_code == 1, done.output
    assert [each["custom_id"] for each in read(tmp_path / "out.jsonl")] == ["first", "last"]
    errors = read(tmp_path / "out.errors.jsonl")
    assert [each["custom_id"] for each in errors] == list(wrong)
    assert [each["response"]["status_code"] for each in errors] == [400, 400, 400, 400, 404]
    assert "5 of 7 lines have no answer" in done.stderr
    assert "--retry" in done.stderr
    again = run("tiny", "--retry", "--json")
    told = json.loads(again.stdout.splitlines()[-1])
    assert (told["status"], told["completed"], told["failed"]) == ("completed", 2, 5)


def test_nothing_is_asked_where_a_line_cannot_be(run: Callable[..., Any], tmp_path: Path) -> None:
    write(tmp_path / "in.jsonl", [asked("same", "x"), asked("same", "y")])
    done = run()
    assert done.exit_code == 2
    assert "line 2: custom_id: a line before has the same" in done.stderr
    assert not (tmp_path / "out.jsonl").exists()
    write(tmp_path / "in.jsonl", [asked("same", "x"), asked("another", "y")])
    assert run().exit_code == 0  # it is mended


def test_nothing_is_written_over_and_nothing_is_done_twice(
    run: Callable[..., Any], tmp_path: Path
) -> None:
    out = write(tmp_path / "out.jsonl", [{"some": "thing"}])
    write(tmp_path / "in.jsonl", [asked("a", "x")])
    refused = run()
    assert refused.exit_code == 2
    assert "--restart" in refused.stderr
    assert read(out) == [{"some": "thing"}]
    assert run("--restart").exit_code == 0
    before = out.read_bytes()
    again = run()
    assert (again.exit_code, out.read_bytes()) == (0, before)
    assert "none of them now" in again.stderr
    write(tmp_path / "in.jsonl", [asked("b", "x")])
    other = run()
    assert other.exit_code == 2
    assert "of another input" in other.stderr
    out.unlink()
    write(tmp_path / "in.jsonl", [asked("a", "x")])
    assert "it is gone" in run().stderr


def test_no_memory_is_too_little_for_many_lines(run: Callable[..., Any], tmp_path: Path) -> None:
    """Lines wait, or give way and are computed later; none fails."""
    lines = [asked(f"{n}", f"{n} " * 20, max_tokens=100, ignore_eos=True) for n in range(24)]
    write(tmp_path / "in.jsonl", lines)
    done = run("--memory-limit", "12MiB", "--max-running", "40", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout.splitlines()[-1])["completed"] == 24


def test_a_disk_that_is_full_is_an_error_that_says_so_and_the_same_command_goes_on(
    run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "in.jsonl", [asked(f"{n}", text) for n, text in enumerate(PROMPTS)])

    def full(file: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("kvrt.batches.run.os.fdatasync", full)
        stopped = run()
    assert stopped.exit_code == 1
    assert "answers cannot be kept: [Errno 28] No space left on device" in stopped.stderr
    assert "fix: make room; the same command goes on from there" in stopped.stderr
    assert run().exit_code == 0
    assert len(read(tmp_path / "out.jsonl")) == len(PROMPTS)


def test_progress_is_told_as_json(run: Callable[..., Any], tmp_path: Path) -> None:
    shared = "The quick brown fox jumps over the lazy dog. " * 4
    write(tmp_path / "in.jsonl", [asked(f"{n}", f"{shared}{n}") for n in range(40)])
    done = run("--json", "--max-running", "4", "--price", "36/h")
    told = [json.loads(each) for each in done.stdout.splitlines()]
    last = told[-1]
    assert (last["status"], last["total"], last["completed"], last["failed"]) == (
        "completed", 40, 40, 0,
    )  # fmt: skip
    assert last["completion_tokens"] <= 240
    assert last["cached_tokens"] > last["prompt_tokens"] / 2
    assert last["tokens_per_s"] > 0
    assert last["seconds_left"] == 0
    assert last["cost"] == pytest.approx(last["seconds"] / 100, rel=0.05)
    assert (last["energy_j"] is None) == (last["energy_why"] is not None)
    assert run("--price", "much").exit_code == 2


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["ctrl-c", "sigterm"]
)
def test_a_signal_stops_it_and_the_same_command_goes_on(
    start: Start, run: Callable[..., Any], tmp_path: Path, number: int, code: int
) -> None:
    lengths = [3] * 20 + [600] * 5  # seconds, after the first has been told of
    lines = [
        asked(f"{n}", "x", max_tokens=length, ignore_eos=True) for n, length in enumerate(lengths)
    ]
    write(tmp_path / "in.jsonl", lines)
    files = ("-i", str(tmp_path / "in.jsonl"), "-o", str(tmp_path / "out.jsonl"))
    process = start("batch", "run", *files, "--backend", "cpu", "--max-running", "1", "--json")
    for told in process.stdout:
        if json.loads(told)["completed"]:
            break
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == code, stderr.decode()
    assert b"the same command goes on" in stderr
    assert b"Traceback" not in stderr
    assert not (tmp_path / "out.jsonl").exists()
    done = run()
    assert done.exit_code == 0, done.output
    assert "going on:" in done.stderr
    assert [each["custom_id"] for each in read(tmp_path / "out.jsonl")] == [
        f"{n}" for n in range(25)
    ]
