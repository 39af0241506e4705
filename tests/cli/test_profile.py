"""`kvrt profile`."""

import json
from pathlib import Path

from .conftest import DUMMY, Kvrt

SMALL = (*DUMMY, "-p", "20", "-n", "4", "-b", "2", "--memory-limit", "256MiB", "--quiet")


def test_it_writes_a_trace_and_prints_what_the_time_went_into(
    kvrt: Kvrt, plain_model: str, tmp_path: Path
) -> None:
    path = tmp_path / "trace.json"
    result = kvrt("profile", plain_model, *SMALL, "-o", str(path), "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert 3 <= found["steps"] <= 6, "the second may come while the first is computed, or behind it"
    assert (found["prompt_tokens"], found["answer_tokens"]) == (40, 6)
    turns = [phase for phase in found["phases"] if "/" not in phase["name"]]
    assert abs(sum(phase["seconds"] for phase in turns) - found["seconds"]) < 1e-6
    assert found["bottleneck"]["bound"] in found["bottleneck"]["parts"]
    events = json.loads(path.read_text())["traceEvents"]
    assert sum(event["name"] == "step" for event in events) == found["steps"]
    assert sum(event["name"] == "decode" for event in events) == 2


def test_a_file_of_prompts_is_asked_and_none_of_its_text_is_in_the_trace(
    kvrt: Kvrt, plain_model: str, tmp_path: Path
) -> None:
    file, path = tmp_path / "prompts.jsonl", tmp_path / "trace.json"
    file.write_text('my secret words\n{"prompt": "and others", "max_tokens": 2}\n')
    result = kvrt("profile", plain_model, str(file), *SMALL, "--no-warmup", "-o", str(path))
    assert result.exit_code == 0, result.stderr
    assert "2 requests of a file" in result.stdout
    assert "detokenise" in result.stdout
    assert "secret" not in path.read_text()


def test_what_cannot_be_measured_or_written_is_said_before_the_model_is_loaded(
    kvrt: Kvrt, plain_model: str, tmp_path: Path
) -> None:
    empty, bad = tmp_path / "empty", tmp_path / "bad"
    empty.write_text("")
    bad.write_text('{"prompt": 3}\n')
    for given, code, said in [
        ((str(empty),), 2, "the file is empty"),
        ((str(bad),), 2, "line 1: prompt is a number"),
        ((str(tmp_path / "none"),), 2, "No such file"),
        (("-o", str(tmp_path / "no" / "trace.json")), 2, "cannot be written"),
    ]:
        result = kvrt("profile", plain_model, *given, *SMALL)
        assert result.exit_code == code, result.stderr
        assert said in result.stderr
