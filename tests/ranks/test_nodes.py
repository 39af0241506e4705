"""One model on several machines: who is let in, who is waited for, and a wire that is pulled."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kvrt.config import RuntimeConfig
from kvrt.errors import ConfigError, DeviceError
from kvrt.net.address import Address
from kvrt.ranks import door as door_module
from kvrt.ranks.door import MAGIC, VERSION, Door, Place, reach
from kvrt.ranks.link import Kind, Link
from kvrt.ranks.node import master_of, serve_node
from kvrt.runtime import Runtime
from kvrt.sampling import SamplingParams
from tests.two_machines import ip, two_machines

KEY = b"a key of twenty bytes"
PROMPT = "def read_lines(path):"
SAID = SamplingParams(max_tokens=24, ignore_eos=True)


@pytest.fixture
def door() -> Iterator[Door]:
    """Waits for ranks 2 and 3 of four, on two machines."""
    one = Door(Address("127.0.0.1", 0), KEY, ranks=4, nodes=2)
    yield one
    one.close()


def come(door: Door, rank: int, *, key: bytes = KEY, ranks: int = 4, nodes: int = 2) -> Link:
    place = Place(rank, ranks, nodes)
    return reach(Address("127.0.0.1", door.port), key, place, os.getpid(), 5.0)


def wanted() -> None:
    """Somebody still waits."""


# --- who is let in ----------------------------------------------------------------------------


def test_ranks_of_other_machines_come_in_any_order(door: Door) -> None:
    links = {rank: come(door, rank) for rank in (3, 2)}
    came = door.wait(5.0, wanted)
    assert {rank: (other.host, other.process) for rank, other in came.items()} == {
        2: ("127.0.0.1", None), 3: ("127.0.0.1", None),
    }  # fmt: skip
    for rank, other in came.items():
        other.link.send(Kind.HELLO, b"%d" % rank)
        assert links[rank].receive() == (Kind.HELLO, b"%d" % rank)
        other.link.close()
        links[rank].close()


def test_who_has_another_key_is_not_let_in_and_says_so(
    door: Door, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ConfigError, match="is not rank 0 with the same key"):
        come(door, 2, key=b"another key of bytes")
    with pytest.raises(DeviceError, match="by their --node-rank: 1"):
        door.wait(0.2, wanted)
    assert "it has another key" in caplog.text


def test_another_release_is_not_let_in(
    door: Door, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    mine, release = threading.get_ident(), door_module._release

    def other() -> bytes:
        return b"0.0.9".ljust(32, b"\0") if threading.get_ident() == mine else release()

    monkeypatch.setattr(door_module, "_release", other)
    with pytest.raises(ConfigError, match="release"):
        come(door, 2)
    assert "another release of kvrt" in caplog.text


@pytest.mark.parametrize(
    ("rank", "ranks", "nodes", "said"),
    [
        (2, 8, 2, "rank 0 has 4 ranks on 2 machines, and rank 2 8 on 2"),
        (2, 4, 4, "rank 0 has 4 ranks on 2 machines, and rank 2 4 on 4"),
        (1, 4, 2, "rank 1 of 4 ranks on 2 machines is there already, or is rank 0's to start"),
        (9, 4, 2, "rank 9 of 4 ranks on 2 machines is there already"),
    ],
)
def test_a_rank_of_another_cut_is_told_why_not(
    door: Door, rank: int, ranks: int, nodes: int, said: str
) -> None:
    link = come(door, rank, ranks=ranks, nodes=nodes)
    kind, body = link.receive()
    assert kind is Kind.FAILED
    assert said in json.loads(body)["message"]
    link.close()


def test_the_same_rank_does_not_come_twice(door: Door) -> None:
    first, second = come(door, 3), come(door, 3)
    kind, body = second.receive()
    assert kind is Kind.FAILED
    assert "there already" in json.loads(body)["message"]
    second.close()
    last = come(door, 2)
    for other in door.wait(5.0, wanted).values():
        other.link.close()
    first.close()
    last.close()


def nothing(one: socket.socket) -> None:
    """Says nothing."""


def garbage(one: socket.socket) -> None:
    one.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 9)


def half(one: socket.socket) -> None:
    one.sendall(door_module._ANSWER.pack(MAGIC, VERSION, bytes(32), bytes(32), 2, 4, 2, 1)[:50])


@pytest.mark.parametrize("behave", [nothing, garbage, half])
def test_others_at_the_door_keep_nobody_waiting(
    door: Door, behave: Callable[[socket.socket], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door_module, "TALK_S", 1.0)
    many = [socket.create_connection(("127.0.0.1", door.port)) for _ in range(80)]
    for one in many:
        with_one(one, behave)
    links = [come(door, 2), come(door, 3)]
    came = door.wait(5.0, wanted)
    assert came.keys() == {2, 3}
    for link in (*links, *(other.link for other in came.values())):
        link.close()
    for one in many:
        one.close()


def with_one(one: socket.socket, behave: Callable[[socket.socket], None]) -> None:
    with contextlib.suppress(OSError):  # it was sent away
        behave(one)


def test_waiting_for_machines_ends_when_nobody_waits_for_the_model(door: Door) -> None:
    class Left(Exception):
        pass

    def left() -> None:
        raise Left

    link = come(door, 2)
    with pytest.raises(Left):
        door.wait(60.0, left)
    link.close()


# --- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"nodes": 2, "tensor_parallel": 2}, "master is None"),
        ({"nodes": 2, "tensor_parallel": 3, "master": "a"}, "there are 3 ranks"),
        ({"nodes": 2, "master": "a"}, "there are 1 ranks"),
        ({"master": "a", "tensor_parallel": 2}, "nodes is 1"),
    ],
)
def test_machines_that_ranks_cannot_be_dealt_out_to_are_refused(
    options: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        RuntimeConfig(**options)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("10.0.0.1", Address("10.0.0.1", 7708)),
        ("10.0.0.1:99", Address("10.0.0.1", 99)),
        ("leader.group.svc", Address("leader.group.svc", 7708)),
        ("fd00::1", Address("fd00::1", 7708)),
        ("[fd00::1]", Address("fd00::1", 7708)),
        ("[fd00::1]:99", Address("fd00::1", 99)),
    ],
)
def test_the_first_machine_is_a_host_and_perhaps_a_port(text: str, address: Address) -> None:
    assert master_of(text) == address


@pytest.mark.parametrize("text", ["", "a b", "0.0.0.0", "[::]:7", "host:port", "a:99999"])
def test_what_is_no_address_of_a_machine_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        master_of(text)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"master": "10.0.0.1"}, "no key guards it"),
        ({"node_rank": 2}, "node_rank is 2, and there are 2 machines"),
        ({"ranks": 3}, "3 ranks cannot be dealt out"),
        ({"key": Path("/nowhere/key")}, "the key cannot be read"),
    ],
)
def test_a_machine_says_at_once_what_is_wrong(given: dict[str, Any], said: str) -> None:
    usual = {"master": "127.0.0.1:1", "key": None, "node_rank": 1, "nodes": 2, "ranks": 2}
    with pytest.raises(ConfigError, match=said):
        serve_node(**(usual | given))


# --- two machines -----------------------------------------------------------------------------

FIRST = """
import json, sys
from kvrt.runtime import Runtime
from kvrt.sampling import SamplingParams
params = SamplingParams(max_tokens=24, ignore_eos=True)
with Runtime("tiny", backend="cpu", tensor_parallel=2, nodes=2, master=sys.argv[1],
             master_key=sys.argv[2], rank_timeout=3.0, memory_limit="256MiB", threads=1) as runtime:
    for _ in range(2):
        (result,) = runtime.generate(sys.argv[3], params)
        print(json.dumps([result.token_ids, str(result.error)]), flush=True)
        sys.stdin.readline()
"""


def test_two_machines_say_what_one_says_until_the_wire_is_pulled(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_bytes(KEY)
    key.chmod(0o600)
    with Runtime("tiny", backend="cpu", memory_limit="256MiB", threads=1) as alone:
        right = list(alone.generate(PROMPT, SAID)[0].token_ids)
    cut = ["--tp", "2", "--nodes", "2", "--node-rank", "1"]
    at = ["--master", "10.213.8.1", "--master-key", str(key)]
    with two_machines("10.213.8") as (here, there):
        second = subprocess.Popen(
            ["ip", "netns", "exec", there, sys.executable, "-m", "kvrt_cli", "run", "tiny", "Hello",
             *cut, *at], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        first = subprocess.Popen(
            ["ip", "netns", "exec", here, sys.executable, "-c", FIRST, "10.213.8.1", str(key),
             PROMPT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert first.stdout is not None
        assert first.stdin is not None
        assert json.loads(first.stdout.readline()) == [right, "None"]
        ip("-n", here, "link", "set", here, "down")
        pulled = time.monotonic()
        first.stdin.write("again\n")
        first.stdin.flush()
        _, error = json.loads(first.stdout.readline())
        assert time.monotonic() - pulled < 20
        assert "rank 1 (process " in error
        assert "at 10.213.8.2" in error
        first.communicate("\n", timeout=30)
        said, complaint = second.communicate(timeout=60)
        assert (second.returncode, said) == (1, "")
        assert "rank 1" in complaint


def test_a_machine_ends_when_the_first_does(tmp_path: Path) -> None:
    lonely = Door(Address("127.0.0.1", 0), b"", ranks=2, nodes=2)
    command = [
        sys.executable, "-m", "kvrt_cli", "run", "tiny", "--tp", "2", "--nodes", "2",
        "--node-rank", "1", "--master", f"127.0.0.1:{lonely.port}",
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as second:
        (other,) = lonely.wait(60.0, wanted).values()
        other.link.close()
        lonely.close()
        said, complaint = second.communicate(timeout=30)
    assert (second.returncode, said, complaint) == (0, b"", b"")
