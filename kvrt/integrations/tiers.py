"""What an engine that keeps its pages in kvrt's tiers is told, among its own options."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from kvrt.checks import Checks, Maybe, Text, Whole, check_options
from kvrt.errors import ConfigError
from kvrt.kv.tiers.config import TierConfig, parse_tiers

TIER_OPTIONS: Checks = {
    "tiers": Text(),
    "compress": Maybe(Whole(-100, 22)),
    "identity": Maybe(Text()),
}
"""Of each option, what it may be."""


@dataclass(frozen=True, slots=True)
class TierOptions:
    """Checked when read.

    Args:
        tiers: where blocks go: ``host:8GiB``, ``disk:PATH:64GiB``, or both.
        compress: zstd's level for blocks on disk; None: as they are.
        identity: what the model's weights are, where it is not given as a folder.
    """

    tiers: TierConfig
    compress: int | None = None
    identity: str | None = None

    @property
    def disk_alone(self) -> tuple[Path, int]:
        """The disk's folder and bytes, for an engine that has host memory of its own.

        Raises:
            ConfigError: there is no disk, or host memory as well.
        """
        path = self.tiers.disk_path
        if path is None or self.tiers.host_bytes:
            raise ConfigError(
                "this engine keeps pages in host memory by itself", fix="tiers: disk:FOLDER:SIZE"
            )
        return path, self.tiers.disk_bytes

    @classmethod
    def read(cls, given: Mapping[str, object]) -> Self:
        """What was given.

        Raises:
            ConfigError: there are no tiers, or an option has a bad value.
        """
        checked = check_options(
            TIER_OPTIONS, **{n: v for n, v in given.items() if n in TIER_OPTIONS}
        )
        if "tiers" not in checked:
            raise ConfigError("kvrt's tiers are not said", fix="add tiers: host:8GiB, say")
        return cls(**checked | {"tiers": parse_tiers(checked["tiers"])})
