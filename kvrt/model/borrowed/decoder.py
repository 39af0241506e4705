"""A step of a model through transformers' module, over kvrt's pages."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kvrt.errors import ModelError
from kvrt.model.borrowed.attention import Call, asking
from kvrt.model.borrowed.trial import Found, module_logits
from kvrt.model.decoder.rope import positions_of
from kvrt.model.decoder.seen import Seen, Turns
from kvrt.model.lora.adapter import Adapter, Adapters
from kvrt.model.lora.peft import AdapterFile
from kvrt.model.spec import ModelSpec
from kvrt.spi import AttentionBatch, AttentionParams, Device, DType, PagedAttention


class NoAdapters(Adapters):
    """Of a model that has no place for them."""

    def __init__(self) -> None:
        pass

    @property
    def by_number(self) -> Mapping[int, Adapter]:
        return {}

    def make(self, file: AdapterFile) -> Adapter:
        raise ModelError(
            f"{file.path}: adapters need kvrt's own implementation of a model",
            fix="merge the adapter into the model's weights, and load those",
        )


class _OverPages:
    """Attends over the pages of a step.

    Args:
        places: of each layer, by the `id` of its module: its group, and its number there.
        head_dim: width of keys and values as pages have them; zeros make narrower ones so wide.
    """

    def __init__(
        self,
        attention: PagedAttention,
        plans: Sequence[object],
        places: Mapping[int, tuple[int, int]],
        head_dim: int,
    ) -> None:
        self._attention, self._plans = attention, plans
        self._places, self._head_dim = places, head_dim

    def attend(self, call: Call) -> Tensor:
        group, number = self._places[id(call.module)]
        plan = self._plans[group]
        q, k, v = (
            F.pad(heads, (0, self._head_dim - heads.shape[-1])).contiguous() for heads in call[1:4]
        )
        self._attention.append(plan, number, k, v)
        out = torch.empty_like(q)
        sinks = None if call.sinks is None else call.sinks.float().contiguous()
        params = AttentionParams(call.scale, call.window, call.softcap, sink_logits=sinks)
        self._attention.run(plan, number, q, out, params)
        return out[..., : call.v.shape[-1]]


class BorrowedDecoder:
    """A model on a device, as `kvrt.model.decoder.decoder.Decoder` is one.

    Args:
        spec: its shape.
        module: transformers', on the device.
        found: its attention.
        device: keeps the pages, and attends.
        dtype: of weights and activations.
        max_positions: the longest context that will be asked for.
    """

    def __init__(
        self,
        spec: ModelSpec,
        module: Any,
        found: Found,
        device: Device,
        dtype: DType,
        max_positions: int,
    ) -> None:
        self.spec = spec
        self.dtype = dtype
        self.max_positions = max_positions
        self.adapters: Adapters = NoAdapters()
        self._module = module
        self._attention = device.attention
        self._torch_device = device.info.torch_device
        self._places = {
            id(found.modules[layer]): (group, number)
            for group, own in enumerate(spec.groups)
            for number, layer in enumerate(own.layers)
        }

    def close(self) -> None:
        """Give the weights back. It computes no more."""
        del self._module

    @torch.inference_mode()
    def forward(
        self,
        tokens: Tensor,
        batches: Sequence[AttentionBatch],
        logits_rows: Tensor,
        adapters: Sequence[int] | None = None,
        seen: Sequence[Seen] = (),
        turns: Turns | None = None,
    ) -> Tensor:
        """See `kvrt.model.decoder.decoder.Decoder.forward`. It sees no images."""
        assert not seen, "a module of transformers has no tower here"
        plans = [*map(self._attention.plan, batches)]
        positions = torch.from_numpy(positions_of(batches[0]))
        where = self._torch_device
        over = _OverPages(self._attention, plans, self._places, self.spec.head_dim)
        with asking(over):
            logits = module_logits(
                self._module,
                tokens.to(where, torch.int64),
                positions.to(where),
                logits_rows.to(where, torch.int64),
            )
        return logits.float().clone()
