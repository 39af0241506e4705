"""How ranks talk, by torch.distributed: `kvrt.spi.Collectives`."""

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore, TCPStore  # as torch.distributed has them

from kvrt.errors import DeviceError, PeerLost, in_one_line
from kvrt.spi import Collective, Meeting

Connect = Callable[[Any, Meeting, timedelta], Any]
"""Makes a process group of torch's, over a store."""


class TorchCollectives:
    """Ranks that meet at a TCP store of torch's.

    Makes process groups by themselves: torch's default group, of which a process has one, is left
    to whoever else is in the process.

    Args:
        connect: of the device.
    """

    def __init__(self, connect: Connect) -> None:
        self._connect = connect

    def invite(self, own_host: str, seconds: float) -> "TorchInvitation":
        try:
            return TorchInvitation(own_host, seconds)
        except (OSError, RuntimeError) as error:
            raise DeviceError(
                f"cannot listen on {own_host} for other ranks: {in_one_line(error)}", call="listen"
            ) from error

    def meet(self, meeting: Meeting) -> Collective:
        with _blaming("meet"):
            patience = timedelta(seconds=meeting.seconds)
            store = TCPStore(meeting.host, meeting.port, is_master=False, timeout=patience)
            named = PrefixStore(meeting.name, store)
            return TorchCollective(self._connect(named, meeting, patience), meeting)


class TorchInvitation:
    """A TCP store, on one address alone: nobody is asked for a key there.

    Args:
        own_host: that address.
        seconds: that a call of the store waits.
    """

    def __init__(self, own_host: str, seconds: float) -> None:
        listening = socket.create_server((own_host, 0))
        self.port: int = listening.getsockname()[1]
        self._store: Any = TCPStore(
            own_host,
            self.port,
            is_master=True,
            wait_for_workers=False,
            timeout=timedelta(seconds=seconds),
            master_listen_fd=listening.detach(),
        )

    def close(self) -> None:
        self._store = None


class TorchCollective:
    """See `kvrt.spi.Collective`.

    Args:
        group: a process group of torch's.
        meeting: by which it came about.
    """

    def __init__(self, group: Any, meeting: Meeting) -> None:
        self._group = group
        self.rank, self.size, self.calls = meeting.rank, meeting.size, 0

    def all_gather(self, part: Tensor) -> Tensor:
        gathered = part.new_empty(self.size, *part.shape)
        self.calls += 1
        with _blaming("all_gather"):
            self._group.allgather([[*gathered.unbind()]], [part]).wait()
        return gathered

    def all_reduce(self, x: Tensor) -> None:
        self.calls += 1
        with _blaming("all_reduce"):
            self._group.allreduce([x]).wait()

    def send(self, x: Tensor, to: int) -> None:
        self.calls += 1
        with _blaming("send"):
            self._group.send([x], to, 0).wait()

    def receive(self, x: Tensor, source: int) -> None:
        self.calls += 1
        with _blaming("recv"):
            self._group.recv([x], source, 0).wait()

    def close(self) -> None:
        self._group = None


def over_sockets(store: Any, meeting: Meeting, patience: timedelta) -> Any:
    """A group of ranks whose tensors are in host memory."""
    options = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    options._timeout = patience
    device = dist.ProcessGroupGloo.create_device(hostname=meeting.own_host)
    options._devices = [device]
    return dist.ProcessGroupGloo(store, meeting.rank, meeting.size, options)


def over_links(store: Any, meeting: Meeting, patience: timedelta) -> Any:
    """A group of ranks with a GPU each, of which torch is built with the vendor's library."""
    options = dist.ProcessGroupNCCL.Options()
    options._timeout = patience
    return dist.ProcessGroupNCCL(store, meeting.rank, meeting.size, options)


@contextmanager
def _blaming(call: str) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # torch's own errors of its distributed part are such
        raise PeerLost(
            f"another rank has gone, or did not come in time: {in_one_line(error)}",
            call=call,
            code=type(error).__name__,
        ) from error
