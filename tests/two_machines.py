"""Two machines, as far as one can be two: network namespaces with a wire between them."""

import os
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


def ip(*args: str) -> None:
    subprocess.run(["ip", *args], check=True, capture_output=True, text=True)


@contextmanager
def two_machines(network: str) -> Iterator[tuple[str, str]]:
    """Names of two namespaces, whose ends of the wire are called as they are.

    Args:
        network: the first three numbers of their addresses, of which the last are 1 and 2.
    """
    try:
        subprocess.run(["ip", "netns", "list"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("ip is not here: no network namespaces")
    names = [f"kvrt{os.getpid()}{end}{uuid.uuid4().hex[:3]}" for end in "ab"]
    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", names[0], "type", "veth", "peer", "name", names[1])
        for number, name in enumerate(names, 1):
            ip("link", "set", name, "netns", name)
            ip("-n", name, "addr", "add", f"{network}.{number}/24", "dev", name)
            ip("-n", name, "link", "set", name, "up")
            ip("-n", name, "link", "set", "lo", "up")
    except (OSError, subprocess.CalledProcessError) as error:
        _take_down(names)
        pytest.skip(
            f"no right to make network namespaces: {getattr(error, 'stderr', error)!r:.100}"
        )
    try:
        yield names[0], names[1]
    finally:
        _take_down(names)


def _take_down(names: list[str]) -> None:
    for name in names:
        subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
