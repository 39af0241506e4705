"""Which safetensors files a checkpoint is made of, and which of them each tensor is read from."""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kvrt.errors import ModelError
from kvrt.model.files.foreign import told_by_neighbours
from kvrt.model.files.jsonfile import read_object, shown

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WeightFiles:
    """The files of a checkpoint.

    Args:
        paths: in the order of their names.
        assigned: the file that the index gives each tensor; empty where there is no index.
    """

    paths: list[Path]
    assigned: Mapping[str, str] = field(default_factory=dict)


def find_weights(folder: Path) -> WeightFiles:
    """The safetensors files of a folder: those that the index names, or the single one.

    A folder can have both, since whoever saves a model again leaves the other kind where it is. The
    index counts if all its files are there.

    Raises:
        ModelError: there are none, or the index is damaged or names a file that is not there.
    """
    single, index = folder / SINGLE, folder / INDEX
    if not index.exists():
        if not single.exists():
            raise _no_weights(folder)
        return WeightFiles([single])
    assigned = read_index(index)
    names = sorted(set(assigned.values()))
    missing = [name for name in names if not (folder / name).exists()]
    if not missing:
        if single.exists() and SINGLE not in names:
            log.warning("%s is left out: %s does not name it", single, INDEX)
        return WeightFiles([folder / name for name in names], assigned)
    if single.exists():
        log.warning("%s is left out: its files are not there, %s is", index, SINGLE)
        return WeightFiles([single])
    raise ModelError(
        f"{index}: weight_map names {missing[0]}, which is not in the folder"
        f" ({len(missing)} of {len(names)} files are missing)",
        fix="the download is not complete: run it again, without --offline",
    )


def read_index(index: Path) -> Mapping[str, str]:
    """The file that a checkpoint's index gives each tensor.

    Raises:
        ModelError: the index is damaged, or a name is not that of a file beside it.
    """
    mapping = read_object(index).get("weight_map")
    if not isinstance(mapping, dict) or not mapping:
        raise ModelError(f"{index}: weight_map is {shown(mapping)}; expected tensors and files")
    for tensor, name in mapping.items():
        plain = isinstance(name, str) and name.isprintable() and name == os.path.basename(name)
        if not plain or not name.endswith(".safetensors"):
            raise ModelError(
                f"{index}: weight_map has {shown(name)} for tensor {shown(tensor)}; expected the"
                " name of a .safetensors file in the same folder"
            )
    return mapping


def _no_weights(folder: Path) -> ModelError:
    return told_by_neighbours(folder) or ModelError(
        f"{folder}: has no {SINGLE} and no {INDEX}",
        fix="give the folder of a Hugging Face checkpoint, or --load-format dummy for random"
        " weights",
    )
