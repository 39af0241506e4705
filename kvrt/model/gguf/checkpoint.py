"""A GGUF file's tensors, checked against the model before any memory is taken."""

from collections import Counter
from collections.abc import Mapping

from kvrt.errors import ModelError
from kvrt.model.checkpoint.apart import taken_apart
from kvrt.model.checkpoint.blocks import FLOATS, READABLE
from kvrt.model.checkpoint.checkpoint import Checkpoint, is_further
from kvrt.model.checkpoint.header import Tensors
from kvrt.model.checkpoint.rows import Rows, rows_of
from kvrt.model.files.jsonfile import shown
from kvrt.model.gguf.architectures import ARCHITECTURES
from kvrt.model.gguf.files import GGUF
from kvrt.model.gguf.spec import LONG, ROPE_DIVISORS, SHORT
from kvrt.model.spec import ModelSpec
from kvrt.model.weights.naming import RowOrder
from kvrt.model.weights.weights import ALWAYS_FLOAT32, Part, parts_of
from kvrt.spi import DType

UNPACKED: DType = "bfloat16"
"""What packed weights become where they do not stay codes and nothing else is asked for: half the
bytes of float32. It rounds them, which changes the texts less than the packing did."""

GROUPED = ("q", "mixer_gates")
"""Parts whose rows converters leave together by heads."""

PAIRED = ("q", "k", "q_up", "kv_down")
"""Parts whose rows, or some of them, are in pairs in files of some architectures."""


def open_checkpoint(gguf: GGUF, spec: ModelSpec) -> Checkpoint:
    """The tensors of a model, found in a GGUF file. Reads headers only.

    Raises:
        ModelError: a tensor is missing, is not of the shape and type the model needs, or is one
            that the model would compute with and kvrt does not know.
    """
    parts = list(parts_of(spec))
    stored = taken_apart(gguf.tensors, parts, gguf=True)
    known = {part.gguf for part in parts} | {ROPE_DIVISORS, SHORT, LONG}
    left = {name for name in stored.keys() - known if not is_further(name, spec)}
    for name in sorted(left):
        raise ModelError(
            f"{stored[name][0]}: tensor {shown(name)} is not part of a {spec.architecture}"
            " as kvrt computes it",
            fix="look for a newer kvrt, or take another file of the model",
        )
    tensors: Tensors = {}
    rows: dict[str, Rows] = {}
    for part in parts:
        _check_tensor(gguf, stored, part)
        tensors[part.name] = stored[part.gguf]
        paired = ARCHITECTURES[spec.architecture].paired and part.kind in PAIRED
        paired = paired and bool(spec.ropes)  # where nothing is rotated, all orders are as good
        kept = part.order == "absorbed" or (part.order == "heads" and part.kind in GROUPED)
        order: RowOrder = "pairs" if paired else part.order if kept else ""
        if part.kind == "decay_log":
            order = "logged"
        if found := rows_of(part, order, spec):
            rows[part.name] = found
    matrices = {
        part.name: part
        for part in parts
        if len(part.shape) == 2 and part.kind not in ALWAYS_FLOAT32
    }
    return Checkpoint(spec, tensors, _matrix_dtype(matrices, tensors), rows=rows)


def _check_tensor(gguf: GGUF, stored: Tensors, part: Part) -> None:
    name = part.gguf
    if name not in stored:
        raise ModelError(
            f"{gguf.path}: tensor {shown(name)} is missing",
            fix="the file is not a whole model: download it again, or take another",
        )
    path, entry = stored[name]
    if entry.dtype not in READABLE:
        raise ModelError(
            f"{path}: tensor {shown(name)}: type is {entry.dtype}; supported are"
            f" {', '.join(READABLE)}",
            fix="take a file of the model in another quantisation, such as Q4_K_M or Q8_0",
        )
    if entry.shape != part.shape:
        raise ModelError(
            f"{path}: tensor {shown(name)}: sizes make it {list(entry.shape)}, but the keys make"
            f" it {list(part.shape)}",
            fix="the file is damaged or was made wrongly: take another",
        )


def _matrix_dtype(matrices: Mapping[str, Part], tensors: Tensors) -> DType:
    """The dtype of most of the numbers; of packed ones, what they become."""
    sizes: Counter[DType] = Counter()
    for name, part in matrices.items():
        sizes[FLOATS.get(tensors[name][1].dtype, UNPACKED)] += part.numel
    return sizes.most_common(1)[0][0]
