"""Which folder a model's name means.

tiny             the bundled model
a path           a GGUF file, or a folder: in the Hugging Face layout, or with one GGUF model in it
owner/name       a repository of the Hugging Face hub, downloaded once
owner/name:Q8_0  ... of GGUF files, of which that in this quantisation
"""

import os
import re
from pathlib import Path
from typing import Literal

from kvrt.errors import ModelError
from kvrt.model.files.foreign import told_by_neighbours
from kvrt.model.files.jsonfile import open_regular
from kvrt.model.gguf.choice import file_within
from kvrt.model.gguf.header import MAGIC
from kvrt.model.progress import Progress

BUNDLED = "tiny"
CONFIG = "config.json"
HUB_ID = re.compile(r"([A-Za-z0-9][\w.-]{0,95}/[\w.-]{1,96})(?::([\w.-]{1,96}))?", re.ASCII)
NAME = re.compile(r"[\w./~@:+-]{1,200}")

Want = Literal["all", "config", "encoder", "speech", "foreign"]


def resolve(
    model: str | Path,
    *,
    want: Want = "all",
    revision: str | None = None,
    offline: bool = False,
    progress: Progress | None = None,
    headers: Path | None = None,
) -> Path:
    """The folder or GGUF file of a model; downloads it if it is a hub id that is not here yet.

    Args:
        model: a path, a hub id, or ``tiny``. What exists as a folder is a path, except ``tiny``.
        want: ``config`` leaves out the weights; a path may then be that of a config.json.
            ``encoder`` is all of one that makes vectors of texts, ``speech`` of one that writes
            what is said, ``foreign`` all of one whose architecture somebody else knows.
        revision: branch, tag or commit; only for a hub id.
        offline: use only what has been downloaded before.
        progress: told about the bytes of a download.
        headers: a folder. Of GGUF files on the hub that are not here, the headers alone are
            downloaded, into that.

    Raises:
        ModelError: there is no such model, or it could not be downloaded completely.
    """
    name = str(model)
    if name == BUNDLED:
        return Path(__file__).parents[1] / "bundled" / BUNDLED
    path = _path(name)
    if path is not None and os.path.isdir(path):
        if (file := file_within(path)) is not None:
            return file
        if not os.path.exists(path / CONFIG) and (error := told_by_neighbours(path)):
            raise error
        return path
    if path is not None and os.path.exists(path):
        if path.name == CONFIG and want == "config":
            return path.parent
        fd = open_regular(path, expected=MAGIC)  # which may say what it is
        first = os.pread(fd, len(MAGIC), 0)
        os.close(fd)
        if first == MAGIC:
            return path
        raise ModelError(
            f"{path}: is a file, not the folder of a model",
            fix=f"give the folder, {path.parent}, if it is a Hugging Face checkpoint",
        )
    hub_id = None if name.startswith((".", "/", "~")) else HUB_ID.fullmatch(name)
    if isinstance(model, Path) or hub_id is None:
        # Anything that looks like no name may be a prompt in its place, which no error quotes.
        shown = repr(name) if NAME.fullmatch(name) else f"of {len(name)} characters"
        raise ModelError(
            f"model {shown}: there is no such folder or file, and it is not a hub id such as"
            " owner/name",
            fix=f"give a folder, a GGUF file, a hub id, or {BUNDLED}, the bundled model",
        )
    from kvrt.model.files.hub import download

    return download(
        hub_id[1],
        weights=want != "config",
        encoder=want == "encoder",
        speech=want == "speech",
        known=want != "foreign",
        quantization=hub_id[2],
        revision=revision,
        offline=offline,
        progress=progress,
        headers=headers,
    )


def _path(name: str) -> Path | None:
    """The path that a name is, or None if it cannot be one."""
    try:
        path = Path(name).expanduser()
        path.lstat()
    except (OSError, ValueError, RuntimeError):  # not there; too long; a NUL; nobody's home
        return None
    return path
