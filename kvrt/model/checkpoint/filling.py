"""Copying a checkpoint's tensors into the arena, and naming what was copied.

One file is mapped at a time. Each block is read once: copied, searched for values that are not
finite, and hashed.
"""

import hashlib
import logging
import mmap
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path

import torch
import xxhash
from torch import Tensor

from kvrt.errors import ModelError
from kvrt.model.checkpoint.blocks import (
    BLOCK_BYTES,
    PIECE,
    blocks,
    mapped,
    numbers,
    raw_blocks,
    read_bytes,
)
from kvrt.model.checkpoint.checkpoint import Checkpoint
from kvrt.model.checkpoint.header import TensorEntry
from kvrt.model.checkpoint.rows import Rows
from kvrt.model.checkpoint.targets import Codes, Floats, Target, Turned, targets_of
from kvrt.model.files.jsonfile import few, shown
from kvrt.model.gguf.types import BY_NAME
from kvrt.model.packed.method import plain_of, values_of
from kvrt.model.packed.tensors import format_of, read_matrix
from kvrt.model.progress import Progress
from kvrt.model.spec import ModelSpec
from kvrt.model.weights.weights import NOTHING_PACKED, Packing, Part, Weight, place
from kvrt.spi import DType, Matrices
from kvrt.spi.plain import finite_rows

log = logging.getLogger(__name__)


def fill(
    checkpoint: Checkpoint,
    spec: ModelSpec,
    dtype: DType,
    arena: Tensor,
    packing: Packing = NOTHING_PACKED,
    progress: Progress | None = None,
    elsewhere: Iterable[tuple[Weight, Tensor | Matrices]] = (),
) -> dict[str, bytes]:
    """Copy a checkpoint into an arena, converted to what each weight is kept as.

    Args:
        arena: uint8 [`weights.weight_bytes`], on any device.
        progress: told about the bytes of the files that have been read.
        elsewhere: where weights go that are not in the arena. They may share their places.

    Returns:
        XXH3-128 of all bytes of each tensor, as the file has them: see `fingerprint`.

    Raises:
        ModelError: a value is not finite, or too large for `dtype`; the tensor is named.
    """
    everything = (*place(spec, dtype, arena, packing), *elsewhere)
    targets = _targets(checkpoint, everything, packing)
    parts = {name for names in checkpoint.matrices.values() for name in names.values()}
    by_file: dict[Path, list[str]] = {}
    for name, (path, _) in sorted(checkpoint.tensors.items(), key=lambda item: item[1][1].start):
        if name not in parts:
            by_file.setdefault(path, []).append(name)
    digests: dict[str, bytes] = {}
    sizes = {name: entry.nbytes for name, (_, entry) in checkpoint.tensors.items()}
    report = progress or (lambda done, total: None)
    with ThreadPoolExecutor(1, "kvrt-hash") as hasher:
        for path, names in by_file.items():
            mapping = mapped(path)
            for name in names:
                entry, target = checkpoint.tensors[name][1], targets[name]
                digests[name], odd = _copy(mapping, path, entry, target, hasher)
                target.finish(checkpoint.rows.get(name))
                embeds = name.partition("[")[0] == checkpoint.embedding  # or some rows of it
                if odd and (not embeds or spec.tied or isinstance(target, Codes)):
                    raise _not_finite(path, entry.name)
                if odd:  # only the requests that have these tokens meet them
                    log.warning("%s: %s is not finite in rows %s", path, entry.name, few(odd))
                report(sum(map(sizes.__getitem__, digests)), sum(sizes.values()))

    def read(name: str) -> Tensor:
        raw = read_bytes(*checkpoint.tensors[name])
        digests[name] = xxhash.xxh3_128(raw.numpy().data).digest()
        return raw

    for name in checkpoint.matrices:
        put_matrix(checkpoint, name, targets[name], read)
        report(sum(map(sizes.__getitem__, digests)), sum(sizes.values()))
    return digests


def refill(
    checkpoint: Checkpoint,
    spec: ModelSpec,
    dtype: DType,
    arena: Tensor,
    packing: Packing = NOTHING_PACKED,
) -> None:
    """Copy again what `fill` has copied before from files that are the same: by all processors, and
    without looking at the numbers. Offloaded experts are not copied."""
    targets = _targets(checkpoint, place(spec, dtype, arena, packing), packing)
    mappings = {path: mapped(path) for path in {path for path, _ in checkpoint.tensors.values()}}

    def copy(name: str) -> None:
        path, entry = checkpoint.tensors[name]
        raws = raw_blocks(mappings[path], entry, _bytes_at_once(entry))
        put_again(entry, raws, targets[name], checkpoint.rows.get(name))

    with ThreadPoolExecutor(os.cpu_count(), "kvrt-read") as pool:
        for _ in pool.map(copy, targets.keys() - checkpoint.matrices.keys()):
            pass
    for name in targets.keys() & checkpoint.matrices.keys():
        put_matrix(
            checkpoint, name, targets[name], lambda end: read_bytes(*checkpoint.tensors[end])
        )


def put_again(
    entry: TensorEntry, raws: Iterable[Tensor], target: Target, rows: Rows | None
) -> None:
    """Put all of a tensor that has been looked at before.

    Args:
        raws: its bytes, as the file has them, in one or more parts of whole rows.
        rows: how its rows lie there.
    """
    for raw in raws:
        if isinstance(target, Codes) and target.stays(entry.dtype):
            target.put_blocks(entry.dtype, raw)
            continue
        # What is converted in small parts wakes none of torch's threads.
        for piece in numbers(raw, BY_NAME[entry.dtype]):
            stays = isinstance(target, Floats) and target.dtype == piece.dtype
            for part in torch.split(piece, piece.numel() if stays else PIECE):
                target.put(part)
    target.finish(rows)


def _targets(
    checkpoint: Checkpoint, placed: Iterable[tuple[Weight, Tensor | Matrices]], packing: Packing
) -> dict[str, Target]:
    """Where the numbers of each tensor go, and of each matrix that is several."""
    return {
        part.name: target_in(checkpoint, part, target)
        for weight, view in placed
        for part, target in targets_of(weight, view, packing)
    }


def target_in(checkpoint: Checkpoint, part: Part, target: Floats | Codes) -> Target:
    """Where the numbers of a tensor go, as they lie in a checkpoint's files."""
    turned = part.columns and len(part.shape) == 2 and part.name in checkpoint.tensors
    return Turned(target, part.shape[1]) if turned else target


def _at_once(entry: TensorEntry) -> int:
    """Numbers of a tensor that are a block: whole rows."""
    width = entry.shape[-1]
    return max(1, BLOCK_BYTES // 4 // width) * width


def _bytes_at_once(entry: TensorEntry) -> int:
    kind = BY_NAME[entry.dtype]
    return _at_once(entry) // kind.numbers * kind.nbytes


def _not_finite(path: Path, name: str) -> ModelError:
    return ModelError(
        f"{path}: tensor {shown(name)}: has values that are not finite",
        fix="the file is damaged or the training failed: download it again, or tell its author",
    )


def put_matrix(
    checkpoint: Checkpoint, name: str, target: Target, read: Callable[[str], Tensor]
) -> None:
    """Put all of a matrix that is several tensors.

    Args:
        read: gives the bytes of a tensor, by its name: uint8 [bytes].

    Raises:
        ModelError: as `fill`.
    """
    method, ends = checkpoint.method, checkpoint.matrices[name]
    assert method is not None
    held = read_matrix(method, ends, checkpoint.tensors, target.shape, read)
    format = format_of(method, ends, checkpoint.tensors)
    where = checkpoint.tensors[ends[method.first]][0], ends[method.first]
    if isinstance(target, Codes) and target.format == format:
        plain = plain_of(format, held)
        target.put_rows(plain)
        finite = bool(finite_rows(format, plain, held.codes.shape[1]).all())
    else:
        values = values_of(format, held)
        finite = bool(values.isfinite().all())
        _check_range(*where, values[values.isfinite()], target)
        target.put(values.flatten())
    if not finite:
        raise _not_finite(*where)
    target.finish(checkpoint.rows.get(name))


def _copy(
    mapping: mmap.mmap,
    path: Path,
    entry: TensorEntry,
    target: Target,
    hasher: Executor,
) -> tuple[bytes, list[int]]:
    """Copy a tensor block by block, each of which is hashed meanwhile.

    Returns:
        Its digest, and the rows that have a value which is not finite.
    """
    digest = xxhash.xxh3_128()
    odd: set[int] = set()
    row, width, kind = 0, entry.shape[-1], BY_NAME[entry.dtype]
    for raw, pieces in blocks(mapping, entry, _at_once(entry)):
        hashed = hasher.submit(digest.update, raw.numpy().data)
        if isinstance(target, Codes) and target.stays(entry.dtype):
            finite = target.put_blocks(entry.dtype, raw)
            odd.update((finite.logical_not().nonzero()[:, 0] + row).tolist())
        else:
            odd.update(_put(path, entry, pieces, target, row * width))
        hashed.result()
        row += len(raw) // kind.nbytes * kind.numbers // width
    return digest.digest(), sorted(odd)


def _put(
    path: Path, entry: TensorEntry, pieces: Iterable[Tensor], target: Target, at: int
) -> Iterator[int]:
    """Put numbers, of which the first is number `at` of the tensor.

    Yields:
        The rows that have a value which is not finite.
    """
    for source in pieces:
        low, high = (float(value) for value in torch.aminmax(source))
        if not max(-low, high) <= target.largest:  # also true of NaN
            finite = source.isfinite()
            _check_range(path, entry.name, source[finite], target)
            indices = finite.logical_not().nonzero()[:, 0] + at
            yield from torch.unique(indices // entry.shape[-1]).tolist()
        target.put(source)
        at += source.numel()


def _check_range(path: Path, name: str, values: Tensor, target: Target) -> None:
    largest = float(values.abs().max()) if values.numel() else 0.0
    if largest > target.largest:
        raise ModelError(
            f"{path}: tensor {shown(name)}: has the value {largest:g}, too large for"
            f" {target.kept_as}",
            fix="load it with --dtype bfloat16 or float32",
        )


def digests_of(checkpoint: Checkpoint) -> dict[str, bytes]:
    """The digests of a checkpoint's tensors, as `fill` gives them; by all processors."""

    def digest(name: str) -> bytes:
        path, entry = checkpoint.tensors[name]
        found = xxhash.xxh3_128()
        for raw in raw_blocks(mapped(path), entry):
            found.update(raw.numpy().data)
        return found.digest()

    with ThreadPoolExecutor(os.cpu_count(), "kvrt-hash") as pool:
        names = list(checkpoint.tensors)
        return dict(zip(names, pool.map(digest, names), strict=True))


def fingerprint(checkpoint: Checkpoint, digests: Mapping[str, bytes]) -> str:
    """A name for the exact weights of a model: SHA-256, in hexadecimal.

    It covers name, dtype, shape and every byte of each tensor that the model uses, and nothing of
    how they are spread over files. Two models that were fine-tuned from one base may differ in a
    few bytes in the middle of one tensor.

    Args:
        digests: of each tensor's bytes, from `fill`.
    """
    digest = hashlib.sha256()
    for name in sorted(digests):
        _, entry = checkpoint.tensors[name]
        rows = checkpoint.rows.get(name)
        digest.update(repr((name, entry.dtype, entry.shape, rows, digests[name])).encode())
    if checkpoint.method is not None:
        digest.update(repr(checkpoint.method).encode())
    return digest.hexdigest()
