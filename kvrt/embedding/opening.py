"""What a model beside the one that answers is opened with: its folder, and its device."""

from pathlib import Path
from typing import Literal

from kvrt.config import Environment
from kvrt.errors import ModelError
from kvrt.model.files.resolve import resolve
from kvrt.registry import open_device
from kvrt.spi import Device, DeviceOptions


def folder_of(
    model: str | Path,
    want: Literal["encoder", "speech"],
    *,
    offline: bool,
    revision: str | None,
) -> Path:
    """The folder that a model's name means; see `resolve`.

    Raises:
        ModelError: there is none.
    """
    folder = resolve(model, want=want, offline=offline, revision=revision)
    if not folder.is_dir():
        raise ModelError(
            f"{folder}: is not the folder of a model",
            fix="give a folder in the Hugging Face layout",
        )
    return folder


def device_of(backend: str, index: int, threads: int | None) -> Device:
    """A device, opened; ``auto`` is what the environment says.

    Raises:
        BackendUnavailable: the backend cannot be used here.
    """
    name = Environment().backend_for(backend)
    return open_device(name, index, DeviceOptions(threads=threads))
