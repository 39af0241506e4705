"""What quantised pages do to the bundled model's loss on text it was not trained on."""

import math
from functools import cache

import pytest
import torch

from kvrt.model.loader import load_model
from kvrt.spi import KVFormat
from tests.bench.formats import device_for, heldout_loss

MOST: dict[KVFormat, float] = {"bfloat16": 0.001, "int8": 0.005, "fp8": 0.01, "int4": 0.03}
"""By how much perplexity may rise."""


@cache
def perplexity(kv: KVFormat, windows: int | None) -> float:
    device = device_for(kv)
    with torch.inference_mode():
        loss = heldout_loss(load_model("tiny", device), device, kv, windows)
    device.close()
    return math.exp(loss)


@pytest.mark.parametrize(
    "windows", [4, pytest.param(None, marks=[pytest.mark.extra, pytest.mark.timeout(600)])]
)
@pytest.mark.parametrize("kv", MOST)
def test_perplexity_hardly_rises(kv: KVFormat, windows: int | None) -> None:
    assert perplexity(kv, windows) < perplexity("float32", windows) * (1 + MOST[kv])
