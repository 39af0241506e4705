"""A decoder whose layers have their pages in several places says what it says with one."""

from collections.abc import Iterator

import pytest
import torch

from kvrt import registry
from kvrt.model.decoder.decoder import Decoder
from kvrt.model.loader import load_model
from kvrt.spi import Device, KVLayout
from kvrt.testing.paged import PagedKV

STEPS = (((5, 5), (40, 40)), ((6, 1), (41, 1)), ((9, 3), (42, 1)), ((10, 1), (43, 1)))
"""The contexts and new tokens of two texts: prompts, then steps that are recorded where they can
be, the same one for the last and the second."""


@pytest.fixture(params=["cpu", "null"])
def device(request: pytest.FixtureRequest) -> Iterator[Device]:
    device = registry.open_device(request.param)
    yield device
    device.close()


def said(decoder: Decoder, device: Device, groups: list[list[int]]) -> list[torch.Tensor]:
    """The logits of every step."""
    spec, logits = decoder.spec, []
    places = [
        PagedKV(
            device,
            KVLayout.packed(
                "float32",
                layers=len(layers),
                kv_heads=spec.kv_heads,
                head_dim=spec.head_dim,
                page_size=16,
            ),
            8,
            seed=number,
        )
        for number, layers in enumerate(groups)
    ]
    tables = [[place.take(16), place.take(48)] for place in places]
    for step in STEPS:
        contexts, counts = zip(*step, strict=True)
        batches = [
            place.batch(rows, contexts, counts) for place, rows in zip(places, tables, strict=True)
        ]
        tokens = torch.arange(sum(counts)) * 7 + contexts[0]
        logits.append(decoder.forward(tokens, batches, torch.arange(sum(counts))).cpu())
    device.synchronize()
    for place in places:
        place.close()
    return logits


def test_layers_in_several_groups_say_the_same_bits(device: Device) -> None:
    model = load_model("tiny", device)
    every = list(range(len(model.spec.layers)))
    groups = [every[1::2], every[0::2]]
    apart = Decoder(
        model.spec, model.decoder.weights, device, model.dtype, model.max_model_len, groups
    )
    one = said(model.decoder, device, [every])
    for whole, grouped in zip(one, said(apart, device, groups), strict=True):
        assert whole.isfinite().all()
        assert torch.equal(whole, grouped)
