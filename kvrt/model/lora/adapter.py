"""An adapter made ready for a model: what it adds to each of the model's weights."""

import itertools
from collections.abc import Mapping
from weakref import WeakValueDictionary

import torch

from kvrt.errors import CapacityError, ModelError
from kvrt.model.checkpoint.rows import rows_of
from kvrt.model.gguf.architectures import ARCHITECTURES
from kvrt.model.lora.peft import AdapterFile, check_all_used
from kvrt.model.spec import ModelSpec
from kvrt.model.weights import arena
from kvrt.model.weights.layers import Weights
from kvrt.model.weights.naming import RowOrder
from kvrt.model.weights.weights import ALIGNMENT, Part, Weight, weights_of
from kvrt.spi import Device, DType, LowRank

ADAPTED = ("qkv", "q_up", "mixer_in", "mixer_z", "mixer_out", "o", "gate_up", "down")
"""Weights that an adapter may change."""


class Adapter:
    """An adapter on a device. Whoever holds it keeps it; the table of a decoder does not.

    Args:
        number: from 1 on; no other adapter of the model ever has it.
        digest: SHA-256 over its content.
        deltas: by the `id` of the model's weight.
    """

    def __init__(self, number: int, digest: bytes, deltas: dict[int, LowRank]) -> None:
        self.number = number
        self.digest = digest
        self.deltas = deltas
        self.nbytes = sum(
            each.a.nbytes + sum(b.nbytes for _, b in each.parts) for each in deltas.values()
        )


class _Block:
    """Memory for an adapter's matrices: one behind the other, in the order that steps read them.

    Args:
        count: of matrices, at most.
        numel: of all of them.
    """

    def __init__(self, count: int, numel: int, dtype: torch.dtype, torch_device: str) -> None:
        self._dtype = dtype
        self._memory = arena.allocate(numel * dtype.itemsize + count * ALIGNMENT, torch_device)
        self._at = 0

    def place(self, matrix: torch.Tensor) -> torch.Tensor:
        nbytes = matrix.numel() * self._dtype.itemsize
        placed = self._memory[self._at : self._at + nbytes].view(self._dtype).view(matrix.shape)
        self._at += -(-nbytes // ALIGNMENT) * ALIGNMENT
        return placed.copy_(matrix)


class Adapters:
    """The adapters of a decoder, as far as anyone holds them.

    Args:
        spec: of the model.
        weights: of the model.
        device: they are on.
        dtype: of their matrices, one of the device's `weight_dtypes`.
        whole: the weights are all of the model's.
    """

    _whole = True

    def __init__(
        self,
        spec: ModelSpec,
        weights: Weights,
        device: Device,
        dtype: DType,
        *,
        whole: bool = True,
    ) -> None:
        self._spec = spec
        self._whole = whole
        self._device = device
        self._dtype: torch.dtype = getattr(torch, dtype)
        self._ids = {
            (number, name): id(getattr(layer, name))
            for number, layer in enumerate(weights.every_layer)
            for name in ADAPTED
        }
        self._numbers = itertools.count(1)
        self._held: WeakValueDictionary[int, Adapter] = WeakValueDictionary()

    @property
    def by_number(self) -> Mapping[int, Adapter]:
        return self._held

    def check(self) -> None:
        """That there can be any. Raises `ModelError`."""
        if not self._whole:
            raise ModelError(
                "a model that several ranks compute takes no adapters yet",
                fix="run it on one rank, or merge the adapter into it: kvrt merge",
            )

    def make(self, file: AdapterFile) -> Adapter:
        """An adapter as the model uses it.

        Raises:
            ModelError: it does not belong to the model.
            CapacityError: it does not fit in the device's free memory.
        """
        numel = sum(each.a.numel() + each.b.numel() for each in file.deltas.values())
        needed = numel * self._dtype.itemsize
        if needed > (free := self._device.memory.info().free):
            raise CapacityError(
                f"{file.path}: the adapter takes {needed:,} bytes, but {free:,} are free",
                needed=needed,
                free=free,
                fix="unload another, or lower memory_limit",
            )
        place = self._device.info.torch_device
        block = _Block(2 * len(file.deltas), numel, self._dtype, place)
        used: set[str] = set()
        deltas = {
            self._ids[weight.layer, weight.field]: added
            for weight in weights_of(self._spec)
            if weight.layer is not None and weight.field in ADAPTED and weight.is_matrix
            if (added := self._added(file, weight, used, block)) is not None
        }
        check_all_used(file, used)
        adapter = Adapter(next(self._numbers), file.digest, deltas)
        self._held[adapter.number] = adapter
        return adapter

    def _added(
        self, file: AdapterFile, weight: Weight, used: set[str], block: _Block
    ) -> LowRank | None:
        """What is added to a weight: that of its parts, if it has any."""
        first: list[torch.Tensor] = []
        second: list[tuple[int, torch.Tensor]] = []
        row = 0
        for part in weight.parts:
            module = (part.gguf if file.architecture else part.name).removesuffix(".weight")
            if module not in file.deltas:
                module = module.removeprefix("model.")
            if delta := file.deltas.get(module):
                used.add(module)
                if (len(delta.b), delta.a.shape[1]) != part.shape:
                    raise ModelError(
                        f"{file.path}: adds to {module} a matrix"
                        f" {[len(delta.b), delta.a.shape[1]]}; the model's is {list(part.shape)}",
                        fix="check that the adapter belongs to this model",
                    )
                b = delta.b.clone()
                if (rows := rows_of(part, _order(file, part), self._spec)) is not None:
                    rows.put_in_order(b)
                first.append(delta.a)
                second.append((row, b.T))
            row += part.shape[0]
        if not first:
            return None
        a = block.place(torch.cat(first))
        return LowRank(a, tuple((at, block.place(b)) for at, b in second))


def _order(file: AdapterFile, part: Part) -> RowOrder:
    """How the rows of what is added to a tensor lie."""
    if not file.architecture:
        return part.order
    paired = ARCHITECTURES[file.architecture].paired and part.kind in ("q", "k")
    return "pairs" if paired else ""
