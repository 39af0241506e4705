"""What `ci/limits` compares with the machine's limits."""

from typing import get_args

import torch
from torch import Tensor

from kvrt.model.loader import load_model
from kvrt.model.packed.quantize import Quantize
from kvrt.registry import open_device

from .limits import FORMATS, operations


def test_the_operations_of_a_prompt_are_those_of_its_matrices() -> None:
    device = open_device("cpu")
    model = load_model("tiny", device)
    sizes = []
    for layer in model.decoder.weights.layers:
        matrices = (layer.qkv, layer.o, layer.gate_up, layer.down)
        sizes += [matrix.numel() for matrix in matrices if isinstance(matrix, Tensor)]
    head = model.decoder.weights.head
    assert isinstance(head, Tensor)
    assert operations(model.spec, 512) == 2 * (512 * sum(sizes) + head.numel())
    model.decoder.close()
    device.close()


def test_all_that_weights_can_be_made_into_has_a_goal() -> None:
    assert set(get_args(Quantize)) < set(FORMATS)
    goals = {name: format.goal.read for name, format in FORMATS.items()}
    assert goals["float32"] == goals["bfloat16"] == 0.9
    assert (goals["int8"], goals["int4"]) == (0.8, 0.7)
    assert FORMATS["bfloat16"].dtype is torch.bfloat16
