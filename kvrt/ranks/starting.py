"""Rank 0 starts the others, on its own machine."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace

from kvrt.config import RuntimeConfig
from kvrt.errors import ConfigError, ModelError, OutOfMemory, PeerLost
from kvrt.model.loader import Model
from kvrt.model.shard import Shard, Split
from kvrt.ranks.joining import Hello, collectives_of, join
from kvrt.ranks.link import Link
from kvrt.ranks.others import Other, Others
from kvrt.registry import load
from kvrt.spi import Device, Invitation

LOOPBACK = "127.0.0.1"


def shard_of(config: RuntimeConfig) -> Shard:
    """What rank 0 has of the model."""
    return Shard(parts=config.tensor_parallel, stages=config.pipeline_parallel)


def threads_of(config: RuntimeConfig) -> int | None:
    """Host threads of each rank's kernels: the processors are dealt out among them. None: the
    backend's choice, where there is one rank."""
    ranks = shard_of(config).ranks
    if config.threads is not None or ranks == 1:
        return config.threads
    return max(1, len(os.sched_getaffinity(0)) // ranks)


class Ranks:
    """The other ranks, and rank 0 among them.

    Args:
        config: of the runtime.
        device: of rank 0.
        stack: ends them, also if something that comes later fails.
        on_failure: see `Others`.

    Raises:
        ConfigError: the backend has not as many devices, or they cannot talk.
    """

    split: Split

    def __init__(
        self,
        config: RuntimeConfig,
        device: Device,
        stack: ExitStack,
        on_failure: Callable[[], None],
    ) -> None:
        self._config, self._device = config, device
        self.shard, info = shard_of(config), device.info
        ranks = self.shard.ranks
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

    def begin(self) -> Split:
        """Start them, and meet them.

        Raises:
            OutOfMemory: there is no memory for another process.
            KvrtError: one of them failed.
        """
        info, config = self._device.info, self._config
        self._invitation = self._collectives.invite(LOOPBACK, config.rank_timeout)
        hello = Hello(
            config, self.shard, info.backend, info.index, threads_of(config),
            LOOPBACK, self._invitation.port, LOOPBACK,
        )  # fmt: skip
        try:
            for rank in range(1, self.shard.ranks):
                place = info.index + (0 if self._together else rank)
                own = replace(hello, shard=self.shard.of_rank(rank), device=place)
                self.others.add(rank, _start(), own.write())
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
        return least // self.shard.ranks if self._together else least


def _start() -> Other:
    here, there = socket.socketpair()
    try:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "kvrt.ranks.rank", str(there.fileno()), str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[there.fileno()],
        )
    except OSError as error:
        here.close()
        raise OutOfMemory(f"another rank could not be started: {error.strerror}") from error
    finally:
        there.close()
    return Other(Link(here), process, f"process {process.pid}")
