"""Texts through a decoder: the states of their tokens, or what it would say behind them."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import Tensor

from kvrt.engine.sizing import FREE_SHARE
from kvrt.errors import ModelError
from kvrt.executor.local import LocalPages
from kvrt.kv.rows import Rows
from kvrt.model.config import is_decoder
from kvrt.model.decoder.decoder import Decoder
from kvrt.model.encoder.encoder import load_encoder
from kvrt.model.encoder.families import ENCODERS
from kvrt.model.layouts import layouts_of
from kvrt.model.loader import load_model
from kvrt.spi import Device, DType, StepBatch

STEP_TOKENS = 4096
"""Computed together, where they are of several texts; a longer text is computed in so many."""

PAGE_SIZE = 16
MOST_PAGES = 2**31 - 1
"""That addresses may be asked for: as many as the device could ever hold."""


class TextModel(Protocol):
    """What makes states of texts."""

    @property
    def vocab(self) -> int: ...

    @property
    def positions(self) -> int:
        """Tokens of the longest text."""

    @property
    def width(self) -> int:
        """Of a token's state."""

    def states(self, texts: Sequence[Sequence[int]]) -> list[Tensor]:
        """The last states of some texts' tokens: of each float32 [tokens, width], on the host."""

    def close(self) -> None:
        """Give the memory back."""


class TextDecoder:
    """A decoder, and pages for the texts that it is given, which it forgets at once.

    Args:
        path: of the model.
        device: it runs on; closed by the caller after this.
        dtype: of the weights.
        head: False: for states alone.

    Raises:
        ModelError, ConfigError, CapacityError: as `load_model`.
    """

    def __init__(
        self,
        path: Path,
        device: Device,
        *,
        dtype: DType | Literal["auto"] = "auto",
        head: bool = False,
    ) -> None:
        self.model = load_model(path, device, dtype=dtype, head=head)
        assert isinstance(self.model.decoder, Decoder), "kvrt's own was asked for"
        self._decoder = self.model.decoder
        spec = self.model.spec
        layouts = layouts_of(spec, PAGE_SIZE, self.model.dtype, self._decoder.dtype)
        self._rows = Rows(
            LocalPages(device, layouts, MOST_PAGES),
            [group.reach(PAGE_SIZE) for group in spec.groups],
            int(device.memory.info().free * FREE_SHARE),
        )

    @property
    def vocab(self) -> int:
        return self.model.spec.vocab

    @property
    def positions(self) -> int:
        return self.model.max_model_len

    @property
    def width(self) -> int:
        return self.model.spec.hidden

    @torch.inference_mode()
    def states(self, texts: Sequence[Sequence[int]]) -> list[Tensor]:
        """See `TextModel`.

        Raises:
            CapacityError: there is no memory for their pages.
        """
        found: list[list[Tensor]] = [[] for _ in texts]
        for tokens, batches, counts in self._steps(texts):
            every = torch.arange(len(tokens))
            made = self._decoder.states(tokens, batches, every).cpu()
            for own, states in zip(found, torch.split(made, counts), strict=True):
                own.append(states)
        return [torch.cat(own) for own in found]

    @torch.inference_mode()
    def logits(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """Of what would come behind each text: float32 [texts, vocab], on the host.

        Raises:
            CapacityError: there is no memory for their pages.
        """
        for tokens, batches, counts in self._steps(texts):
            last = torch.tensor(counts).cumsum(0) - 1
            made = self._decoder.forward(tokens, batches, last)
        return made.cpu()

    def _steps(
        self, texts: Sequence[Sequence[int]]
    ) -> Iterator[tuple[Tensor, list[StepBatch], list[int]]]:
        """A step's tokens, where their pages are, and how many are of each text. Texts are
        computed together if they have no more than `STEP_TOKENS` in all."""
        most = STEP_TOKENS if len(texts) == 1 else max(map(len, texts))
        try:
            for begin in range(0, max(map(len, texts)), most):
                parts = [text[begin : begin + most] for text in texts]
                counts = [len(part) for part in parts]
                batches = self._rows.begin(counts)
                yield torch.tensor([token for part in parts for token in part]), batches, counts
        finally:
            self._rows.clear()

    def close(self) -> None:
        """Give the memory back. It computes no more."""
        self._decoder.close()
        self._rows.close()


def open_texts(folder: Path, device: Device, dtype: DType | Literal["auto"]) -> TextModel:
    """An encoder or a decoder, whichever is in a folder.

    Raises:
        ModelError, ConfigError, CapacityError: as `load_model`.
    """
    if is_decoder(folder / "config.json"):
        return TextDecoder(folder, device, dtype=dtype)
    encoder = load_encoder(folder, device, dtype=dtype)
    if ENCODERS[encoder.spec.architecture].head:
        raise ModelError(
            f"{folder}: is a {encoder.spec.architecture}, which compares texts, and makes no"
            " vectors",
            fix="kvrt rerank sorts texts with it",
        )
    return encoder


def batches_of(lengths: Sequence[int]) -> Iterator[list[int]]:
    """The numbers of texts that are computed together."""
    some: list[int] = []
    total = 0
    for number, length in enumerate(lengths):
        if some and total + length > STEP_TOKENS:
            yield some
            some, total = [], 0
        some.append(number)
        total += length
    if some:
        yield some
