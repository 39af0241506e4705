"""The places in memory that experts are brought to, and those that are there."""

import os
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from kvrt.model.offload.forms import Form, of_expert
from kvrt.model.offload.reading import ExpertReader
from kvrt.model.offload.residency import Residency
from kvrt.model.spec import ExpertSpec, ModelSpec
from kvrt.model.weights.experts import experts_of
from kvrt.model.weights.layers import LayerWeights, Weights
from kvrt.model.weights.weights import Weight, placed, weights_of
from kvrt.spi import Experts, Matrices
from kvrt.units import format_bytes

READERS = min(4, os.cpu_count() or 1)
"""Experts that are read at once: more than one keeps a disk busy."""


@dataclass(frozen=True, slots=True)
class ExpertStats:
    """What has become of experts that are brought as needed.

    Args:
        places: experts that can be in memory at once.
        held: that are.
        hits: experts that a layer needed in a step, and that were there.
        misses: that had to be read.
        read_bytes: read for that, in all.
        read_seconds: how long steps have waited for it.
    """

    places: int
    held: int
    hits: int
    misses: int
    read_bytes: int
    read_seconds: float

    @property
    def hit_rate(self) -> float:
        """The part that was there, of what was needed; 1 as long as nothing was."""
        return self.hits / (self.hits + self.misses) if self.hits + self.misses else 1.0


class _Places:
    """The places of one form."""

    def __init__(self, form: Form, memory: Tensor, spec: ExpertSpec) -> None:
        self.form = form
        self.views: dict[str, Any] = {
            weight.field: view
            for weight, view in placed(form.weights, form.dtype, memory, form.packing)
        }
        self.residency = Residency(len(form.layers) * form.count, form.places, len(form.layers))
        self.experts = experts_of(spec, form.places, LayerWeights(o=(), **self.views))

    def place(self, field: str, number: int) -> "Tensor | Matrices":
        """What one place has of a weight."""
        view: Tensor | Matrices = self.views[field]
        each = len(view) // self.form.places
        return view[number * each : (number + 1) * each]


class ExpertPool:
    """Brings the experts of a model to places in memory. Belongs to the thread that computes.

    Args:
        spec: of the model.
        forms: see `kvrt.model.offload.forms`.
        memory: uint8 of all their bytes, on the device.
    """

    def __init__(self, spec: ModelSpec, forms: tuple[Form, ...], memory: Tensor) -> None:
        assert spec.experts is not None
        self._count = spec.experts.count
        self._layers: dict[int, tuple[_Places, int]] = {}
        self._weights: dict[int, list[Weight]] = {}
        self._biases: dict[tuple[int, str], Tensor] = {}
        self._reader: ExpertReader | None = None
        self._hits = self._misses = self._read_bytes = 0
        self._read_seconds = 0.0
        self._all: list[_Places] = []
        at = 0
        for form in forms:
            places = _Places(form, memory[at : at + form.nbytes], spec.experts)
            at += form.nbytes
            self._all.append(places)
            self._layers |= {layer: (places, i) for i, layer in enumerate(form.layers)}
        for weight in weights_of(spec):
            if weight.layer is not None and weight.of_experts:
                self._weights.setdefault(weight.layer, []).append(weight)
        # On a device that goes on by itself, what is brought has to come in its own order.
        here = memory.device.type == "cpu"
        self._threads = ThreadPoolExecutor(READERS, "kvrt-experts") if here else None

    # --- how it is filled --------------------------------------------------------------------

    def views(self) -> Iterator[tuple[Weight, "Tensor | Matrices"]]:
        """What stands in a layer's weights for its experts' matrices: those of all places."""
        for layer, weights in self._weights.items():
            for weight in weights:
                yield weight, self._layers[layer][0].views[weight.field]

    def scratch(self) -> Iterator[tuple[Weight, "Tensor | Matrices"]]:
        """A place for each expert to be read to while the model is loaded and all are looked at:
        the first one. Nothing counts as being there."""
        for layer, weights in self._weights.items():
            places, _ = self._layers[layer]
            for weight in weights:
                for expert in range(self._count):
                    yield of_expert(weight, expert, self._count), places.place(weight.field, 0)

    def read_from(self, reader: ExpertReader) -> None:
        """They are read by this from now on."""
        if self._reader is not None:
            self._reader.close()
        self._reader = reader

    def biases_of(self, weights: Weights) -> None:
        """The biases of experts, which are in memory, and go where the experts go."""
        for layer in self._layers:
            for field in ("expert_gate_up_bias", "expert_down_bias"):
                bias = getattr(weights.every_layer[layer], field)
                if bias is not None:
                    self._biases[layer, field] = bias.view(self._count, -1)

    @property
    def note(self) -> str:
        """How many have room, for people."""
        places, experts = self.stats().places, len(self._layers) * self._count
        size = format_bytes(sum(each.form.nbytes for each in self._all))
        return f"{size} are for {places:,} of {experts:,} experts, which are read as needed"

    def clear(self) -> None:
        """Nothing is there any more: its memory has gone, or goes."""
        for places in self._all:
            places.residency.clear()
        if self._reader is not None:
            self._reader.close()

    def close(self) -> None:
        """Give files and threads back."""
        self.clear()
        if self._threads is not None:
            self._threads.shutdown()
        self._biases.clear()

    # --- how it is used ----------------------------------------------------------------------

    def experts(self, layer: int) -> Experts:
        """The places that a layer's experts are brought to, as if they were its experts."""
        return self._layers[layer][0].experts

    def order(self, layer: int, experts: NDArray[np.int64]) -> NDArray[np.int64]:
        """Experts of a layer in the order in which to bring them where all have no room at once:
        those that are there first."""
        places, number = self._layers[layer]
        there = places.residency.resident(number * self._count + experts)
        return experts[np.argsort(~there, kind="stable")]

    def bring(self, layer: int, experts: NDArray[np.int64]) -> NDArray[np.int64]:
        """Bring experts of a layer, and keep them at least until others are brought.

        Args:
            experts: each once, at most as many as `experts` of the layer has.

        Returns:
            Their places.

        Raises:
            WeightsUnreadable: one of them cannot be read. The others are there.
        """
        places, number = self._layers[layer]
        keys = number * self._count + experts
        taken = places.residency.take(keys)
        self._hits += len(experts) - len(taken.missing)
        self._misses += len(taken.missing)
        if not taken.missing:
            return taken.places
        began = time.perf_counter()
        jobs = [
            self._begin(places, layer, int(experts[at]), int(taken.places[at]))
            for at in taken.missing
        ]
        failed: BaseException | None = None
        for at, job in zip(taken.missing, jobs, strict=True):
            if error := job.exception():
                failed = failed or error
                places.residency.forget(int(keys[at]))
            else:
                self._read_bytes += job.result()
        self._read_seconds += time.perf_counter() - began
        if failed is not None:
            raise failed
        return taken.places

    def stats(self) -> ExpertStats:
        """From any thread."""
        return ExpertStats(
            sum(places.form.places for places in self._all),
            sum(places.residency.held for places in self._all),
            self._hits,
            self._misses,
            self._read_bytes,
            self._read_seconds,
        )

    def check_integrity(self) -> None:
        """Raise `IntegrityError` if what is where is not what it is taken for."""
        for places in self._all:
            places.residency.check_integrity()

    def _begin(self, places: _Places, layer: int, expert: int, place: int) -> "Future[int]":
        if self._threads is not None:
            return self._threads.submit(self._read, places, layer, expert, place)
        done: Future[int] = Future()
        try:
            done.set_result(self._read(places, layer, expert, place))
        except Exception as error:
            done.set_exception(error)
        return done

    def _read(self, places: _Places, layer: int, expert: int, place: int) -> int:
        """Returns the bytes that were read."""
        assert self._reader is not None, "the model has been loaded"
        nbytes = 0
        for weight in self._weights[layer]:
            mine = of_expert(weight, expert, self._count)
            nbytes += self._reader.read(mine, places.place(weight.field, place))
            bias = self._biases.get((layer, f"{weight.field}_bias"))
            if bias is not None:
                view = places.place(f"{weight.field}_bias", place)
                assert isinstance(view, Tensor)
                view.copy_(bias[expert])
        return nbytes
