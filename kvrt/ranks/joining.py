"""How a rank learns who it is, and meets the others."""

import dataclasses
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvrt.config import RuntimeConfig
from kvrt.errors import ConfigError
from kvrt.model.shard import Shard, Split
from kvrt.spi import Collectives, Device, Meeting


@dataclass(frozen=True, slots=True)
class Hello:
    """What rank 0 tells a rank first.

    Args:
        config: the options of the runtime.
        shard: what it has of the model.
        backend: of all ranks.
        device: which of the backend's, on its machine.
        host, port: where ranks meet.
        own_host: the rank's own address, for others.
    """

    config: RuntimeConfig
    shard: Shard
    backend: str
    device: int
    host: str
    port: int
    own_host: str

    def write(self) -> bytes:
        said = dataclasses.asdict(self)
        for name, value in said["config"].items():
            if isinstance(value, Path):
                said["config"][name] = str(value)
        return json.dumps(said).encode()

    @classmethod
    def read(cls, body: bytes) -> "Hello":
        said = json.loads(body)
        config, shard = RuntimeConfig(**said.pop("config")), Shard(**said.pop("shard"))
        return cls(config=config, shard=shard, **said)


def shard_of(config: RuntimeConfig) -> Shard:
    """What rank 0 has of the model."""
    return Shard(
        parts=config.tensor_parallel,
        stages=config.pipeline_parallel,
        exact=config.tensor_parallel_mode == "exact",
    )


def threads_of(config: RuntimeConfig) -> int | None:
    """Host threads of each rank's kernels: a machine's processors are dealt out among its ranks.
    None: the backend's choice, where there is one rank."""
    ranks = shard_of(config).ranks // config.nodes
    if config.threads is not None or ranks == 1:
        return config.threads
    return max(1, len(os.sched_getaffinity(0)) // ranks)


def join(device: Device, hello: Hello, meet: Callable[[Any], list[Any]]) -> Split:
    """Meet the other ranks, all of which call it.

    Raises:
        ConfigError: the device's ranks cannot talk.
        PeerLost: another rank does not come.
    """
    collectives = collectives_of(device)
    shard, seconds = hello.shard, hello.config.rank_timeout
    meet({})  # all have opened their devices: none waits long for another from here on

    def group(name: str, rank: int, size: int) -> Meeting:
        return Meeting(hello.host, hello.port, hello.own_host, name, rank, size, seconds)

    world = collectives.meet(group("world", shard.rank, shard.ranks))
    tensor = None
    if shard.parts > 1:
        tensor = collectives.meet(group(f"stage {shard.stage}", shard.part, shard.parts))
    meet({})  # until all have met, rank 0 listens
    return Split(shard, tensor, world, meet)


def collectives_of(device: Device) -> Collectives:
    """Raises `ConfigError` if a device has none."""
    found = device.extension(Collectives)  # type: ignore[type-abstract]
    if found is None:
        raise ConfigError(
            f"devices of {device.info.backend} cannot compute one model together",
            fix="use one rank, or another backend",
        )
    return found
