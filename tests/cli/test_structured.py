"""`kvrt run` with answers that are held to a schema, a pattern or a grammar."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from tests.cli.conftest import Kvrt

Run = Callable[..., Result]
SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["a"],
    "additionalProperties": False,
}


@pytest.fixture
def run(kvrt: Kvrt) -> Run:
    def invoke(*args: str) -> Result:
        return kvrt("run", "tiny", "--backend", "cpu", "-q", *args, "x = ")

    return invoke


def test_an_answer_is_what_a_file_or_a_pattern_says(run: Run, tmp_path: Path) -> None:
    schema, grammar = tmp_path / "schema.json", tmp_path / "grammar.lark"
    schema.write_text("\ufeff" + json.dumps(SCHEMA), encoding="utf-8")
    grammar.write_text('start: "<" /[0-9]{2}/ ">"')
    answer = json.loads(run("--json-schema", str(schema)).stdout)
    assert answer.keys() == {"a"}
    assert set(run("--regex", "[ab]{4}").stdout.strip()) <= {"a", "b"}
    assert run("--grammar", str(grammar)).stdout.startswith("<")


@pytest.mark.promise("P41")
def test_what_cannot_be_held_to_is_refused_before_it_is_quoted(run: Run, tmp_path: Path) -> None:
    bad = tmp_path / "bad.json"
    bad.write_text('{"secretword": ')
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe\xfd")
    for args in (
        ("--regex", "(secretword"),
        ("--json-schema", str(bad)),
        ("--json-schema", str(tmp_path / "absent")),
        ("--grammar", str(binary)),
        ("--regex", "a", "--grammar", str(bad)),
        ("--regex", ""),
    ):
        result = run(*args)
        assert result.exit_code == 2, result.output
        assert "secretword" not in result.output
