"""The tiers a user asks for: ``host:8GiB,disk:PATH:64GiB``."""

from dataclasses import dataclass
from pathlib import Path

from kvrt.errors import ConfigError
from kvrt.units import parse_bytes

FORM = "write it as host:8GiB, disk:PATH:64GiB, or both with a comma between"


@dataclass(frozen=True, slots=True)
class TierConfig:
    """Where pages go that leave the device. A tier of 0 bytes is not there.

    Args:
        host_bytes: of host memory for pages.
        disk_bytes: of disk space for pages.
        disk_path: the folder for them; None if `disk_bytes` is 0.
    """

    host_bytes: int = 0
    disk_bytes: int = 0
    disk_path: Path | None = None


def parse_tiers(text: str) -> TierConfig:
    """Read ``host:8GiB,disk:PATH:64GiB``; either part may be missing, and come first.

    The size is what follows the last colon, so a path may contain colons, but no comma.

    Raises:
        ConfigError: a part has another form, a size of nothing, or comes twice.
    """
    sizes: dict[str, int] = {}
    path: Path | None = None
    for part in text.split(","):
        kind, _, rest = part.strip().partition(":")
        if kind == "host":
            size = rest
        elif kind == "disk":
            folder, _, size = rest.rpartition(":")
            if not folder:
                raise ConfigError(f"tier {part.strip()!r} has no path or no size", fix=FORM)
            try:
                path = Path(folder).expanduser()
            except RuntimeError as error:  # no such user
                raise ConfigError(f"tier {part.strip()!r}: {error}", fix=FORM) from None
        else:
            raise ConfigError(f"{part.strip()!r} is not a tier in {text!r}", fix=FORM)
        if kind in sizes:
            raise ConfigError(f"tier {kind} comes twice in {text!r}", fix=FORM)
        try:
            sizes[kind] = parse_bytes(size)
        except ConfigError as error:
            raise ConfigError(f"tier {part.strip()!r}: {error}", fix=FORM) from None
        if sizes[kind] < 1:
            raise ConfigError(f"tier {part.strip()!r} has no bytes", fix="give more, or leave it")
    return TierConfig(sizes.get("host", 0), sizes.get("disk", 0), path)
