"""Models that draft for the bundled one."""

import shutil
from importlib.resources import as_file, files
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


def noisy_copy(folder: Path, share: float) -> Path:
    """The bundled model with noise in its weights, so that it agrees with it on some tokens.

    Args:
        folder: becomes that model.
        share: of the noise, in standard deviations of each matrix: 0.05 leaves most tokens as they
            are, 1 none.
    """
    with as_file(files("kvrt.model.bundled").joinpath("tiny")) as tiny:
        shutil.copytree(tiny, folder)
    path = folder / "model.safetensors"
    random = torch.Generator().manual_seed(1)
    noisy = {}
    for name, tensor in load_file(path).items():
        matrix = tensor.float()
        noise = torch.randn(matrix.shape, generator=random) * matrix.std() * share
        noisy[name] = tensor if tensor.dim() < 2 else (matrix + noise).to(tensor.dtype)
    save_file(noisy, path, metadata={"format": "pt"})
    return folder
