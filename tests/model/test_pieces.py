"""Within a step on the CPU torch computes alone: its own threads would be in the kernels' way."""

import os
import threading

import pytest
import torch

from kvrt.model.decoder.pieces import ALONE, pieces
from kvrt.model.loader import load_model
from kvrt.registry import open_device
from kvrt.spi import DeviceOptions
from tests.model.stepping import stepping


@pytest.mark.parametrize(("rows", "width"), [(1, 64), (1000, 64), (513, 576), (7, 10 * ALONE)])
def test_pieces_are_all_rows_in_order_and_small_enough(rows, width):
    found = [range(rows)[piece] for piece in pieces(rows, width, "cpu")]
    assert [row for piece in found for row in piece] == [*range(rows)]
    assert all(len(piece) * width < ALONE or len(piece) == 1 for piece in found)


def test_elsewhere_all_rows_are_one_piece():
    assert [*pieces(100_000, 576, "cuda:0")] == [slice(0, 100_000)]
    assert [*pieces(0, 576, "cuda:0")] == []


@pytest.mark.parametrize("quantize", [None, "int8"])
def test_a_step_of_many_tokens_starts_none_of_torchs_threads(quantize):
    """In a thread of its own, as OpenMP has a team for each that ever needed one."""
    torch_threads = torch.get_num_threads()
    torch.set_num_threads(4)  # also where there is one processor
    device = open_device("cpu", 0, DeviceOptions(threads=1))
    model = load_model("tiny", device, quantize=quantize)
    counts = []

    def step() -> None:
        torch.set_num_threads(4)
        counts.append(len(os.listdir("/proc/self/task")))
        with torch.inference_mode():
            stepper.step([(text, 1000)])
        counts.append(len(os.listdir("/proc/self/task")))

    with stepping(model, device, texts=1, longest=1000) as stepper:
        text = stepper.add([i % 500 for i in range(1000)])
        thread = threading.Thread(target=step)
        thread.start()
        thread.join()
    torch.set_num_threads(torch_threads)
    model.decoder.close()
    device.close()
    assert counts[0] == counts[1]
