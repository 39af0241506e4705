"""Several servers, or several calls of `kvrt batch run`, on the batches of one database."""

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.batches.conftest import postgres  # noqa: F401
from tests.batches.inputs import line, read, write

from .conftest import Server, started, until

LINES = 240


def asked(count: int) -> list[dict[str, Any]]:
    return [line(f"n{n}", prompt=f"say {n}", max_tokens=4, ignore_eos=True) for n in range(count)]


def data(lines: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(each).encode() + b"\n" for each in lines)


@pytest.fixture(scope="module")
def two(
    tmp_path_factory: pytest.TempPathFactory,
    postgres: str,  # noqa: F811
) -> Iterator[tuple[Server, Server]]:
    """The last test that has them kills the first."""
    folders = [tmp_path_factory.mktemp(name) for name in ("batches", "first", "second")]
    options = ("--batches", str(folders[0]), "--batch-database", postgres, "--max-running", "4")
    with started(folders[1], *options) as first, started(folders[2], *options) as second:
        yield first, second


def counted(server: Server) -> float:
    """Lines that a server has answered."""
    found = server.metrics()
    return sum(value for name, value in found.items() if name.startswith("kvrt_batch_lines_total"))


def test_a_batch_is_cancelled_by_a_server_that_was_not_given_it(
    two: tuple[Server, Server],
) -> None:
    first, second = (server.client() for server in two)
    file = first.files.create(file=("in.jsonl", io.BytesIO(data(asked(2000)))), purpose="batch")
    batch = first.batches.create(
        input_file_id=file.id, endpoint="/v1/completions", completion_window="24h"
    )
    until(lambda: second.batches.retrieve(batch.id).status == "in_progress")
    second.batches.cancel(batch.id)
    until(lambda: first.batches.retrieve(batch.id).status == "cancelled")
    found = first.batches.retrieve(batch.id)
    assert found.request_counts is not None
    assert found.error_file_id is not None
    left = len(first.files.content(found.error_file_id).text.splitlines())
    assert left == 2000 - found.request_counts.completed


@pytest.mark.promise("P33")
def test_a_batch_is_answered_by_all_servers_and_outlives_the_one_that_was_given_it(
    two: tuple[Server, Server],
) -> None:
    first, second = two
    client = first.client()
    file = client.files.create(file=("in.jsonl", io.BytesIO(data(asked(LINES)))), purpose="batch")
    batch = client.batches.create(
        input_file_id=file.id, endpoint="/v1/completions", completion_window="24h"
    )
    until(lambda: counted(second) > 8 and counted(first) > 8, 60)
    first.process.kill()
    first.process.wait()
    other = second.client()
    until(lambda: other.batches.retrieve(batch.id).status == "completed", 120)
    counts = other.batches.retrieve(batch.id).request_counts
    assert counts is not None
    assert (counts.total, counts.completed, counts.failed) == (LINES, LINES, 0)
    output = other.batches.retrieve(batch.id).output_file_id
    assert output is not None
    names = [
        json.loads(each)["custom_id"] for each in other.files.content(output).text.splitlines()
    ]
    assert names == [f"n{n}" for n in range(LINES)]


@pytest.fixture
def calls() -> Iterator[list["subprocess.Popen[str]"]]:
    """Calls of the command; what still goes on is killed in the end."""
    begun: list[subprocess.Popen[str]] = []
    yield begun
    for each in begun:
        each.kill()
        each.communicate()


def test_calls_of_the_command_help_each_other_and_one_that_is_killed_is_not_missed(
    tmp_path: Path,
    postgres: str,  # noqa: F811
    calls: list["subprocess.Popen[str]"],
) -> None:
    input = write(tmp_path / "in.jsonl", asked(LINES))
    output = tmp_path / "out.jsonl"
    command = [
        sys.executable, "-m", "kvrt_cli", "batch", "run", "tiny", "-i", str(input), "-o",
        str(output), "--backend", "cpu", "--max-running", "4", "--json", "--database", postgres,
    ]  # fmt: skip
    for _ in range(2):
        calls.append(
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
    state = tmp_path / "out.jsonl.state"
    journals = state / "journals"

    def both_have_answered() -> bool:
        return len([each for each in journals.glob("*") if each.stat().st_size > 4000]) == 2

    until(both_have_answered, 90)
    calls[0].kill()
    told = calls[1].communicate(timeout=120)
    assert calls[1].returncode == 0, told
    assert [each["custom_id"] for each in read(output)] == [f"n{n}" for n in range(LINES)]
    assert json.loads(told[0].splitlines()[-1])["completed"] == LINES
    again = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert again.returncode == 0, "all was answered"
