"""`POST /profile`, and `kvrt profile --url`: what a server that runs does."""

import json
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.cli.conftest import Kvrt
from tests.cli.conftest import kvrt as kvrt
from tests.cli.conftest import start as start

from .conftest import PROMPT, Server, until


@contextmanager
def recorded(server: Server, seconds: float) -> Iterator[list[tuple[int, dict[str, object]]]]:
    """The profile of what is done meanwhile: status and answer, which are there behind it."""
    found: list[tuple[int, dict[str, object]]] = []
    asking = threading.Thread(
        target=lambda: found.append(server.post("/profile", {"seconds": seconds}))
    )
    asking.start()
    until(lambda: going(server) or bool(found))
    yield found
    asking.join(90)


def going(server: Server) -> bool:
    """Whether a profile is being made: one of a model that is not there is refused for another
    reason else."""
    status, _ = server.post("/profile", {"model": "other"})
    assert status in (400, 409)
    return status == 409


def test_an_admin_gets_a_trace_of_what_the_server_does(server: Server) -> None:
    with recorded(server, 30) as found:
        body = {"model": "tiny", "prompt": PROMPT, "max_tokens": 5, "ignore_eos": True}
        assert server.post("/v1/completions", body)[0] == 200
        assert server.ask("DELETE", "/profile")[0] == 200, "30 s are too long"
    ((status, told),) = found
    assert status == 200
    assert told["requests"] == 1
    assert told["answer_tokens"] == 4, "the first is of the prompt's step"
    trace = told["trace"]
    assert isinstance(trace, dict)
    assert sum(each["name"] == "decode" for each in trace["traceEvents"]) == 1
    assert sum(each["name"] == "step" for each in trace["traceEvents"]) == told["steps"] >= 5
    assert PROMPT.split("(")[0] not in json.dumps(told), "and nothing of what was said"
    assert server.ask("DELETE", "/profile")[0] == 404


def test_a_profile_ends_when_its_client_leaves(server: Server) -> None:
    body = json.dumps({"seconds": 60}).encode()
    head = f"POST /profile HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    server.raw(head.encode() + body, timeout=0.5)  # which hears nothing, and leaves
    until(lambda: not going(server))


def test_what_makes_no_sense_is_refused(server: Server) -> None:
    for body in ({"seconds": 0}, {"seconds": 61}, {"secnds": 1}, {"model": "other"}):
        assert server.post("/profile", body)[0] == 400, body


def test_the_command_writes_the_trace_and_prints_a_table(
    kvrt: Kvrt, server: Server, tmp_path: Path
) -> None:
    path = tmp_path / "trace.json"
    words = ("--url", server.url, "--seconds", "0.2", "-o", str(path))
    result = kvrt("profile", *words)
    assert result.exit_code == 0, result.stderr
    assert "0 requests that ended" in result.stdout
    assert json.loads(path.read_text())["traceEvents"]
    refused = kvrt("profile", "--url", server.url, "-p", "8")
    assert refused.exit_code == 2
    assert "is of a model in this process" in refused.stderr
    refused = kvrt("profile", "tiny", "--seconds", "1")
    assert "it needs --url" in refused.stderr
    lost = kvrt("profile", "--url", "http://127.0.0.1:9", "-o", str(path))
    assert lost.exit_code == 1
    assert "gives no answer: ConnectError" in lost.stderr


def test_ctrl_c_writes_what_was_recorded_so_far(
    start: Callable[..., "subprocess.Popen[bytes]"], server: Server, tmp_path: Path
) -> None:
    path = tmp_path / "trace.json"
    process = start("profile", "--url", server.url, "--seconds", "60", "-o", str(path))
    until(lambda: going(server))
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert json.loads(path.read_text())["traceEvents"]
    assert not going(server)
