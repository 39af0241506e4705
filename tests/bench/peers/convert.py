"""The same weights in the files that each engine reads."""

import os
from pathlib import Path

from tests.bench.peers.child import call
from tests.bench.peers.engines import Engine
from tests.bench.peers.shapes import SHAPES, make_checkpoint
from tests.model.ggufs import converted_tokenizer, save_gguf

OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "OMP_WAIT_POLICY": "passive"}
GROUP = 64
"""Elements that share a scale in OpenVINO's 4 bits: it divides every row of both shapes."""


def prepare(engine: Engine, shape: str, models: Path, python: Path) -> Path:
    """What an engine reads, made if it isn't there yet; a part that was cut short is made again.

    Raises:
        CalledProcessError: a converter failed; its words are in the log beside the models.
    """
    checkpoint = make_checkpoint(SHAPES[shape], models / shape)
    path = engine.path(models, shape)
    if path.exists():
        return path
    path.parent.mkdir(exist_ok=True)
    unfinished = path.with_name(f"{path.name}.new")
    if engine.files == "gguf":
        keys = converted_tokenizer(checkpoint / "tokenizer.json")
        save_gguf(checkpoint, unfinished, engine.weights, **keys)
    else:
        groups = ["--group-size", str(GROUP), "--ratio", "1.0", "--sym"]
        call(
            [python.parent / "optimum-cli", "export", "openvino", "-m", checkpoint,
             "--task", "text-generation-with-past", "--weight-format", engine.weights,
             *(groups if engine.weights == "int4" else ()), unfinished],
            models / f"{shape}.openvino.log", OFFLINE,
        )  # fmt: skip
    os.rename(unfinished, path)
    return path
