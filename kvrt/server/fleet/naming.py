"""Which models a server has, and how clients call them."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kvrt.config import RuntimeConfig
from kvrt.errors import ConfigError

CONFIG = "config.json"
GGUF = ".gguf"
NAME = re.compile(r"[\w./@:+-]{1,200}", re.ASCII)


def named(models: Sequence[str], base: RuntimeConfig) -> dict[str, RuntimeConfig]:
    """Models of the command line, by their names.

    Args:
        models: each a model as of `kvrt.Runtime`, or ``NAME=MODEL``; its name is else the last part
            of its path, or its hub id.
        base: all other options, which are those of each.

    Raises:
        ConfigError: two have one name, or a name is none.
    """
    found: dict[str, RuntimeConfig] = {}
    for each in models:
        name, equals, model = each.partition("=")
        if not equals:
            model, path = each, Path(each).expanduser()
            name = (path.name or path.resolve().name) if path.exists() else each
            name = name.removesuffix(GGUF)
        if not NAME.fullmatch(name) or not model:
            raise ConfigError("a model's name is not plain", fix="give it one: NAME=MODEL")
        if name in found:
            raise ConfigError(f"two models are called {name}", fix="name one of them: NAME=MODEL")
        found[name] = replace(base, model=model)
    return found


@dataclass(frozen=True, slots=True)
class Folder:
    """Where models are, and may come while the server runs.

    Args:
        path: has folders of models, and GGUF files. What is in further folders is not seen.
        base: the options of each.
    """

    path: Path
    base: RuntimeConfig

    def models(self) -> Mapping[str, RuntimeConfig]:
        """Those that are there now, by the names of their folders and files."""
        found: dict[str, RuntimeConfig] = {}
        try:
            entries = sorted(self.path.iterdir())
        except OSError as error:
            raise ConfigError(f"{self.path}: {error.strerror}", fix="give --models DIR") from None
        for entry in entries:
            if entry.is_dir() and ((entry / CONFIG).exists() or any(entry.glob(f"*{GGUF}"))):
                found[entry.name] = replace(self.base, model=str(entry))
            elif entry.suffix == GGUF and entry.is_file():
                found[entry.stem] = replace(self.base, model=str(entry))
        return {name: config for name, config in found.items() if NAME.fullmatch(name)}
