"""A checkpoint's safetensors files, checked against the model before any memory is taken.

The checks read headers only, which costs milliseconds; `filling` then copies the tensors.
"""

import logging
import re
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from kvrt.errors import ModelError
from kvrt.model.checkpoint.apart import taken_apart
from kvrt.model.checkpoint.blocks import FLOATS, are_equal
from kvrt.model.checkpoint.header import Header, TensorEntry, Tensors, read_header
from kvrt.model.checkpoint.rows import Rows, rows_of
from kvrt.model.checkpoint.shards import find_weights
from kvrt.model.files.jsonfile import few, shown
from kvrt.model.packed.method import Method
from kvrt.model.packed.tensors import find_matrices
from kvrt.model.spec import ModelSpec
from kvrt.model.weights.names import NAMINGS
from kvrt.model.weights.weights import ALWAYS_FLOAT32, Part, parts_of, weights_of
from kvrt.spi import DType

COMPUTES = re.compile(
    r"((model|gpt_neox|transformer|backbone)\.((layers|h)\.\d+\..+|\w*norm|embed_\w+|ln_f|w[tp]e)|lm_head"
    r"|embed_out)\.(weight|bias)\w*"
)
"""Names of tensors that a model would compute with. One that is not expected is a bias or a norm
that config.json forgot, or the scale of quantised weights: without it, text is fluent and wrong."""

LAYER = re.compile(r"(?:model\.layers|blk)\.(\d+)\.")

BUFFERS = (
    ".rotary_emb.inv_freq",
    *(f".{module}.{mask}" for module in ("attention", "attn") for mask in ("bias", "masked_bias")),
)
"""Ends of names that old checkpoints have: computed from config.json instead, as are masks."""

PREFIX = "model."
OF_TEXT = {
    "model.language_model.": PREFIX,
    "language_model.model.": PREFIX,
    "language_model.lm_head.": "lm_head.",
}
"""What models that see put before the names of their decoder's tensors."""

OF_PREDICTOR = {
    "mtp.layers.0.": "",
    "mtp.fc.": "eh_proj.",
    "mtp.pre_fc_norm_embedding.": "enorm.",
    "mtp.pre_fc_norm_hidden.": "hnorm.",
    "mtp.norm.": "shared_head.norm.",
}
"""What some models call the tensors of what others have as a layer behind the last."""

PREFIXED = ("embed_tokens.", "layers.", "norm.", "wte.", "wpe.", "h.", "ln_f.")
"""What names begin with in files that were saved without the model's head, and without a prefix."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Files whose headers agree with a model.

    Args:
        spec: the model, as the files have it: an output matrix of its own is not tied.
        tensors: each of the model's tensors, with the file it is in.
        dtype: of the matrices; of packed ones, what they become.
        method: how matrices are kept that are several tensors each.
        matrices: of each of those its tensors' names, by their ends; see `Method`.
        rows: of the tensors and matrices whose rows are to be put in order: how they lie.
    """

    spec: ModelSpec
    tensors: Tensors
    dtype: DType
    method: Method | None = None
    matrices: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    rows: Mapping[str, Rows] = field(default_factory=dict)

    @property
    def embedding(self) -> str:
        """The name of the tensor that tokens are embedded by."""
        return f"{NAMINGS[self.spec.naming]['embedding'].file}.weight"


def open_checkpoint(folder: Path, spec: ModelSpec, method: Method | None = None) -> Checkpoint:
    """Find a model's weights and check every header.

    Reads no tensor, but where config.json ties the output matrix to the embedding and the files
    have both: these two are compared, and the stored matrix is used if it is another.

    Args:
        method: how matrices are quantised, if they are.

    Raises:
        ModelError: there are no safetensors, a file or a tensor is missing, damaged, or not of the
            shape and type the model needs. The message names the file, the tensor and the field.
    """
    files = find_weights(folder)
    headers = [read_header(path) for path in files.paths]
    tensors = _by_name(headers, files.assigned)
    unlisted = {name for name in tensors if files.assigned and name not in files.assigned}
    own = NAMINGS[spec.naming]["embedding"].file.partition(".")[0] + "."
    rename = partial(_prefixed, own) if _is_bare(tensors, own) else _of_text
    tensors = {rename(name): place for name, place in tensors.items()}
    if spec.predictor is not None:
        tensors = {_of_predictor(name, spec): place for name, place in tensors.items()}
    tensors = taken_apart(tensors, parts_of(spec))
    unlisted = {rename(name) for name in unlisted}
    embedding, head = (
        f"{NAMINGS[spec.naming][part].file}.weight" for part in ("embedding", "head")
    )
    if spec.tied and head in tensors:
        untied = replace(spec, tied=False)
        _expected(folder, untied, tensors, {})
        if are_equal(tensors[head], tensors[embedding]):
            del tensors[head]
        else:
            log.warning("%s: %s differs from the embedding, and is used", tensors[head][0], head)
            spec = untied
    matrices = {} if method is None else find_matrices(folder, spec, method, tensors)
    expected = _expected(folder, spec, tensors, matrices)
    needed = {*expected, *(name for parts in matrices.values() for name in parts.values())}
    left = tensors.keys() - needed
    for name in sorted(left - unlisted):
        unneeded = name.endswith(BUFFERS) or is_further(name, spec)
        if COMPUTES.fullmatch(name) and not unneeded:
            raise ModelError(
                f"{tensors[name][0]}: tensor {shown(name)} is not part of a {spec.architecture}"
                " as config.json describes it",
                fix="check that config.json belongs to these weights",
            )
    if left := {name for name in left if not name.endswith(BUFFERS)}:
        log.warning(
            "%s: tensors that the decoder does not need are left out: %s", folder, few(sorted(left))
        )
    chosen = {name: tensors[name] for name in sorted(needed)}
    dtype = _matrix_dtype(folder, expected, chosen, spec.dtype)
    rows = {
        part.name: found
        for weight in weights_of(spec)
        for part in weight.parts
        if (found := rows_of(part, part.order, spec)) is not None
    }
    return Checkpoint(spec, chosen, dtype, method if matrices else None, matrices, rows)


def is_further(name: str, spec: ModelSpec) -> bool:
    """Whether a tensor is of a layer behind the last one of a mixture of experts or a hybrid.

    There are heads, as layers, that predict further tokens.
    """
    number = LAYER.match(name)
    usual = spec.experts is not None or spec.recurrence is not None
    return number is not None and usual and int(number[1]) >= len(spec.layers)


def _by_name(headers: Sequence[Header], assigned: Mapping[str, str]) -> Tensors:
    """Each tensor with its file; the index decides between files that have one of the same name."""
    places: dict[str, list[tuple[Path, TensorEntry]]] = {}
    for header in headers:
        for name, entry in header.tensors.items():
            places.setdefault(name, []).append((header.path, entry))
    tensors: Tensors = {}
    for name, found in places.items():
        listed = [place for place in found if place[0].name == assigned.get(name)] or found
        if len(listed) > 1:
            other = listed[0][0].name
            raise ModelError(f"{listed[1][0]}: tensor {shown(name)} is also in {other}")
        tensors[name] = listed[0]
    return tensors


def _is_bare(names: Iterable[str], own: str) -> bool:
    """Whether the names have no prefix, as of a model that was saved without its head.

    Args:
        own: that of the model's family.
    """
    return not any(name.startswith((own, *OF_TEXT)) for name in names)


def _of_text(name: str) -> str:
    """The name in a decoder alone of a tensor of a model that sees."""
    for prefix, own in OF_TEXT.items():
        if name.startswith(prefix):
            return own + name.removeprefix(prefix)
    return name


def _of_predictor(name: str, spec: ModelSpec) -> str:
    """The name as of a layer behind the last of a tensor of a predictor."""
    for prefix, own in OF_PREDICTOR.items():
        if name.startswith(prefix):
            return f"model.layers.{len(spec.layers)}.{own}{name.removeprefix(prefix)}"
    return name


def _prefixed(own: str, name: str) -> str:
    return own + name if name.startswith(PREFIXED) else name


def _expected(
    folder: Path, spec: ModelSpec, tensors: Tensors, matrices: Container[str]
) -> dict[str, Part]:
    """The tensors that a model needs, which were found to be there; without quantised matrices."""
    expected = {
        part.name: part
        for weight in weights_of(spec)
        for part in weight.parts
        if part.name not in matrices
    }
    for part in expected.values():
        _check_tensor(folder, part, tensors)
    return expected


def _check_tensor(folder: Path, part: Part, tensors: Tensors) -> None:
    if part.name not in tensors:
        files = sorted({path.name for path, _ in tensors.values()})
        raise ModelError(
            f"{folder / files[0] if len(files) == 1 else folder}: tensor {shown(part.name)} is"
            " missing",
            fix="check that config.json belongs to these weights and the download is complete",
        )
    path, entry = tensors[part.name]
    if entry.dtype not in FLOATS:
        raise ModelError(
            f"{path}: tensor {shown(part.name)}: dtype is {entry.dtype}; supported are"
            f" {', '.join(FLOATS)}",
            fix="use the model's float32, bfloat16 or float16 checkpoint",
        )
    shape = part.shape[::-1] if part.columns else part.shape
    if entry.shape != shape:
        raise ModelError(
            f"{path}: tensor {shown(part.name)}: shape is {list(entry.shape)}, but"
            f" config.json makes it {list(shape)}",
            fix="check that config.json belongs to these weights",
        )


def _matrix_dtype(
    folder: Path, expected: Mapping[str, Part], tensors: Tensors, otherwise: DType
) -> DType:
    """The dtype of the matrices: float32 if any has it, else that of most of the bytes."""
    sizes: Counter[str] = Counter()
    for name, part in expected.items():
        if len(part.shape) == 2 and part.kind not in ALWAYS_FLOAT32:
            sizes[tensors[name][1].dtype] += part.numel
    if not sizes:
        return otherwise
    chosen = "F32" if "F32" in sizes else sizes.most_common(1)[0][0]
    if {"F16", "BF16"} <= sizes.keys() and chosen != "F32":
        log.warning("%s: has matrices of both F16 and BF16; all become %s", folder, chosen)
    return FLOATS[chosen]
