"""A machine besides the first: it starts its ranks, which come to rank 0, and ends with them."""

import os
import subprocess
import sys
import time
from pathlib import Path

from kvrt.errors import ConfigError, DeviceError
from kvrt.net.address import Address, parse_address, read_key
from kvrt.ranks.door import PORT

POLL_S = 0.05


def master_of(text: str) -> Address:
    """Read ``HOST`` or ``HOST:PORT``: where rank 0 listens.

    Raises:
        ConfigError: it has another form, or is no address that others could reach.
    """
    bare = not text.endswith("]") and text.count(":") != 1
    whole = f"[{text}]" if bare and ":" in text and not text.startswith("[") else text
    has_port = whole.rpartition(":")[2].isdigit() and (":" in whole) and not whole.endswith("]")
    address = parse_address(whole if has_port else f"{whole}:{PORT}")
    if address.host in ("0.0.0.0", "::", "*"):
        raise ConfigError(
            f"master is {text!r}, which is no address of a machine",
            fix="name the address by which the others reach the first machine",
        )
    return address


def key_of(path: Path | None, master: Address) -> bytes:
    """The key of all machines. Raises `ConfigError`, as `read_key` does."""
    return read_key(path, master, danger="whoever comes first is a rank, and sees what is asked")


def serve_node(master: str, key: Path | None, *, node_rank: int, nodes: int, ranks: int) -> None:
    """Run the ranks of a machine until rank 0 ends; it says what they compute.

    Args:
        master: where rank 0 listens.
        key: a file with the key of all machines.
        node_rank: of this machine, from 1 on.
        nodes: machines, which have as many ranks each.
        ranks: of all machines.

    Raises:
        ConfigError: an argument is wrong, or names something that is not there.
        DeviceError: a rank has failed, which has said why; the others are ended.
    """
    address = master_of(master)
    key_of(key, address)
    if not 0 < node_rank < nodes:
        raise ConfigError(
            f"node_rank is {node_rank}, and there are {nodes} machines",
            fix=f"use 1 to {nodes - 1}; the first machine, 0, is the one at {address}",
        )
    if ranks % nodes:
        raise ConfigError(
            f"{ranks} ranks cannot be dealt out to {nodes} machines evenly",
            fix="let tensor_parallel times pipeline_parallel be a multiple of nodes",
        )
    each = ranks // nodes
    processes: dict[int, subprocess.Popen[bytes]] = {}
    try:
        for rank in range(node_rank * each, (node_rank + 1) * each):
            processes[rank] = subprocess.Popen(
                [
                    sys.executable, "-P", "-m", "kvrt.ranks.rank", "reach", str(os.getpid()),
                    str(address), "" if key is None else str(key), str(rank), str(ranks),
                    str(nodes),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )  # fmt: skip
        while True:
            codes = {rank: process.poll() for rank, process in processes.items()}
            for rank, code in codes.items():
                if code:
                    raise DeviceError(f"rank {rank}, of this machine, ended with status {code}")
            if all(code == 0 for code in codes.values()):
                return
            time.sleep(POLL_S)
    finally:
        for process in processes.values():
            process.kill()
            process.wait()
