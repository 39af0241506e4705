"""A profile by its path or name."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kvrt.errors import ConfigError
from kvrt_cli.profiles.document import Entry, read
from kvrt_cli.profiles.keys import nearest

TEMPLATES = Path(__file__).parent / "templates"
ENDINGS = (".yaml", ".yml")


@dataclass(frozen=True, slots=True)
class Profile:
    """What a file says.

    Args:
        name: as it was asked for.
        entries: by command, and ``runtime``; and ``description``, which is for people.
    """

    name: str
    path: Path
    entries: Mapping[str, Entry]

    @property
    def description(self) -> str:
        entry = self.entries.get("description")
        return " ".join(entry.value.split()) if entry and isinstance(entry.value, str) else ""


def own_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """Where the user's own profiles are found by name."""
    return Path(environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "kvrt" / "profiles"


def known() -> dict[str, Path]:
    """All profiles that have a name: the user's own, and the built-in ones."""
    found: dict[str, Path] = {}
    for folder in (TEMPLATES, own_folder()):
        for ending in ENDINGS:
            found |= {path.stem: path for path in sorted(folder.glob(f"*{ending}"))}
    return found


def find(name: str) -> Profile:
    """The profile of a path, or of a name.

    Raises:
        ConfigError: there is none, or it is not YAML of the form of profiles.
    """
    if "/" in name or name.endswith(ENDINGS):
        try:
            path = Path(name).expanduser()
        except RuntimeError as error:  # no such user
            raise ConfigError(f"there is no profile {name:.60}: {error}") from None
        return Profile(name, path, read(path, name))
    profiles = known()
    if name not in profiles:
        like = nearest(name, profiles)
        raise ConfigError(
            f"there is no profile {name[:60]!r}" + (f"; did you mean {like!r}?" if like else ""),
            fix=f"use one of {', '.join(sorted(profiles))}, or a file: ./NAME.yaml",
        )
    return Profile(name, profiles[name], read(profiles[name], name))
