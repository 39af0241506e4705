"""Rank 0 starts the others of its own machine, and waits for those of other machines."""

import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from kvrt.config import RuntimeConfig
from kvrt.errors import ConfigError, ModelError, OutOfMemory, PeerLost
from kvrt.model.loader import Model
from kvrt.model.shard import Split
from kvrt.ranks.door import COME_S, Door
from kvrt.ranks.joining import Hello, collectives_of, join, shard_of
from kvrt.ranks.link import Link
from kvrt.ranks.node import key_of, master_of
from kvrt.ranks.others import Other, Others
from kvrt.registry import load
from kvrt.spi import Device, Invitation

LOOPBACK = "127.0.0.1"

log = logging.getLogger(__name__)


class Ranks:
    """The other ranks, and rank 0 among them.

    Args:
        config: of the runtime.
        device: of rank 0.
        stack: ends them, also if something that comes later fails.
        on_failure: see `Others`.
        still_wanted: asked while other machines are waited for; raises if nobody waits any more.

    Raises:
        ConfigError: the backend has not as many devices, or they cannot talk; or other machines
            cannot come to the address.
    """

    split: Split

    def __init__(
        self,
        config: RuntimeConfig,
        device: Device,
        stack: ExitStack,
        on_failure: Callable[[], None],
        still_wanted: Callable[[], None],
    ) -> None:
        self._config, self._device = config, device
        self.shard, info = shard_of(config), device.info
        self._each = ranks = self.shard.ranks // config.nodes  # on this machine
        self._still_wanted = still_wanted
        self._together = info.torch_device == "cpu"  # all processors are one device
        devices = load(info.backend).probe().devices
        if not self._together and config.device + ranks > devices:
            raise ConfigError(
                f"{ranks} ranks need as many devices, and {info.backend} has {devices}"
                + (f", of which {config.device} are left out" if config.device else ""),
                fix="lower tensor_parallel or pipeline_parallel",
            )
        self._collectives = collectives_of(device)
        self._on_failure = on_failure
        self._invitation: Invitation | None = None
        self.others = Others(config.rank_timeout, self._failed)
        stack.callback(self._close)
        self._door: Door | None = None
        if config.nodes > 1:
            assert config.master is not None
            address = master_of(config.master)
            key = key_of(None if config.master_key is None else Path(config.master_key), address)
            self._door = Door(address, key, self.shard.ranks, config.nodes)

    def begin(self) -> Split:
        """Start them, and meet them.

        Raises:
            OutOfMemory: there is no memory for another process.
            KvrtError: one of them failed.
        """
        info, config = self._device.info, self._config
        host, elsewhere = LOOPBACK, dict[int, Other]()
        if self._door is not None:
            log.info("waiting at port %d for %d machines", self._door.port, config.nodes - 1)
            host, elsewhere = self._door.host, self._door.wait(COME_S, self._still_wanted)
        self._invitation = self._collectives.invite(host, config.rank_timeout)
        hello = Hello(
            config, self.shard, info.backend, info.index, host, self._invitation.port, host
        )
        try:
            for rank in range(1, self.shard.ranks):
                other = elsewhere.get(rank) or _start(host)
                place = info.index + (0 if self._together else rank % self._each)
                own = replace(
                    hello, shard=self.shard.of_rank(rank), device=place, own_host=other.host
                )
                self.others.add(rank, other, own.write())
            self.split = join(self._device, hello, self.others.meet)
        except PeerLost as error:
            raise self.others.blame(error) from error
        finally:
            self._invitation.close()
        return self.split

    def _failed(self) -> None:
        """Wait no longer for one that will not come."""
        if self._invitation is not None:
            self._invitation.close()
        self._on_failure()

    def _close(self) -> None:
        self.others.close()
        if self._door is not None:
            self._door.close()
        if hasattr(self, "split"):  # else they have not met
            self.split.world.close()
            if self.split.tensor is not None:
                self.split.tensor.close()

    def loaded(self, model: Model, free: int) -> int:
        """All have loaded the same model.

        Args:
            free: bytes that are left on rank 0's device.

        Returns:
            Bytes that each of them may take, at most: on one device, they have a share each.

        Raises:
            ModelError: they have not.
        """
        every = self.split.meet({"free": free, "model": model.fingerprint})
        for rank, one in enumerate(every):
            if one["model"] != model.fingerprint:
                raise ModelError(
                    f"rank {rank} has loaded another model than rank 0",
                    fix="give all of them the same files",
                )
        least = min(int(one["free"]) for one in every)
        return least // self._each if self._together else least


def _start(host: str) -> Other:
    here, there = socket.socketpair()
    try:
        process = subprocess.Popen(
            [
                sys.executable, "-P", "-m", "kvrt.ranks.rank", "given", str(os.getpid()),
                str(there.fileno()),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[there.fileno()],
        )  # fmt: skip
    except OSError as error:
        here.close()
        raise OutOfMemory(f"another rank could not be started: {error.strerror}") from error
    finally:
        there.close()
    return Other(Link(here), process, f"process {process.pid}", host)
