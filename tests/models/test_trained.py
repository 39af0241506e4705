"""Trained models, as people have them: GGUF files with packed weights and a tokenizer.

Texts of two right engines may part where two tokens are about as likely, so what is compared are
the log-probabilities of all tokens at every place.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import kvrt
from kvrt.model.loader import Model, load_model
from kvrt.registry import open_device
from kvrt.spi import Device, DeviceOptions, DType
from tests.model.stepping import stepping
from tests.models.real import GEMMA, ROOT, SMOLLM, here, reference

pytestmark = pytest.mark.extra

LENGTH = {SMOLLM: 512, GEMMA: 640}
"""Tokens of text; of Gemma, more than its window of 512."""

KL: dict[str, float] = {"float32": 1e-9, "bfloat16": 3e-3, "auto": 4e-3, "exact": 1e-9}
"""Nats a token, at most. Computing all of it in bfloat16 costs 0.0014, and multiplying codes with
inputs of 8 bits, as a device may do for auto, 0.0030."""

PROMPTS = {
    SMOLLM: ("The capital of France is", "def fibonacci(n):"),
    GEMMA: ("The capital of France is", "Water boils at a temperature of"),
}


@pytest.fixture(scope="module")
def device() -> Iterator[Device]:
    device = open_device("cpu", 0)
    yield device
    device.close()


@pytest.fixture(scope="module")
def exact() -> Iterator[Device]:
    device = open_device("cpu", 0, DeviceOptions(exact=True))
    yield device
    device.close()


@pytest.fixture(scope="module", params=[SMOLLM, GEMMA], ids=lambda path: path.stem)
def path(request: pytest.FixtureRequest) -> Path:
    return here(request.param)


@pytest.fixture(scope="module")
def judge(path: Path) -> PreTrainedModel:
    return reference(path)


def text(model: Model, length: int) -> list[int]:
    return model.encode((ROOT / "docs" / "memory.md").read_text())[:length]


def logits(model: Model, device: Device, ids: list[int], kv: DType) -> list[Tensor]:
    with stepping(model, device, texts=1, longest=len(ids), kv=kv) as stepper:
        row = stepper.add(ids)
        while row.left:
            stepper.step([(row, min(128, row.left))])
    return row.logits


@pytest.mark.parametrize("mode", KL)
def test_the_probabilities_are_those_of_the_unpacked_weights(
    path: Path, judge: PreTrainedModel, device: Device, exact: Device, mode: Any
) -> None:
    if mode == "exact":
        device = exact
    model = load_model(path, device, dtype="auto" if mode == "exact" else mode)
    assert model.decoder.weights.packed == (mode in ("auto", "exact"))
    ids, kv = text(model, LENGTH[path]), "float32" if KL[mode] < 1e-6 else "bfloat16"
    with torch.no_grad():
        wanted = judge(torch.tensor([ids])).logits[0]
    divergence = agreement = 0.0
    surprise = torch.zeros(2, dtype=torch.float64)
    for row, given in enumerate(logits(model, device, ids, kv)):
        want, got = (some.double().log_softmax(-1) for some in (wanted[row], given))
        divergence += float((want.exp() * (want - got)).sum()) / len(ids)
        agreement += float(want.argmax() == got.argmax()) / len(ids)
        if row + 1 < len(ids):
            surprise -= torch.stack((want, got))[:, ids[row + 1]] / (len(ids) - 1)
    perplexities = surprise.exp().tolist()
    print(
        f"{path.stem} {mode}: KL {divergence:.3g} nats a token, same first token {agreement:.2%},"
        f" perplexity {perplexities[1]:.3f}, of the reference {perplexities[0]:.3f}"
    )
    assert divergence < KL[mode]
    # A token's surprise differs by about sqrt(2 KL) in either direction: three standard errors.
    chance = 3 * math.sqrt(2 * max(divergence, 0.0) / len(ids)) + 1e-6
    assert surprise[1] == pytest.approx(float(surprise[0]), abs=chance)


def test_the_text_is_that_of_the_unpacked_weights(path: Path, judge: PreTrainedModel) -> None:
    with kvrt.Runtime(path, dtype="float32") as runtime:
        for prompt in PROMPTS[path]:
            ids = runtime.model.encode(prompt)
            (result,) = runtime.generate(
                [prompt], kvrt.SamplingParams(max_tokens=48, temperature=0)
            )
            with torch.no_grad():
                chosen = judge(torch.tensor([ids + list(result.token_ids)])).logits[0].argmax(-1)
            assert list(result.token_ids) == chosen[len(ids) - 1 : -1].tolist()


def test_it_answers_a_question() -> None:
    with kvrt.Runtime(here(SMOLLM)) as runtime:
        question = kvrt.Chat([{"role": "user", "content": "Why is the sky blue?"}])
        (answer,) = runtime.generate([question], kvrt.SamplingParams(max_tokens=60, temperature=0))
    assert "light" in answer.text


IDS = {
    "Hello, we can use": [19556, 28, 392, 416, 722],
    "The capital of France is": [504, 3575, 282, 4649, 314],
    "Hello world! 123": [19556, 905, 17, 216, 33, 34, 35],
    "\n 51": [3805, 37, 33],
    "  multiple   spaces": [216, 2701, 256, 5600],
}
"""Of SmolLM2, as llama.cpp has them; transformers, reading the file, joins the digits to what is
before."""


def test_ids_are_those_that_the_model_was_trained_with(device: Device) -> None:
    model = load_model(here(SMOLLM), device, load_format="dummy")
    for words, ids in IDS.items():
        assert model.encode(words) == ids, words


def test_text_comes_back_from_its_ids(path: Path, device: Device) -> None:
    model = load_model(path, device, load_format="dummy")
    everything = (ROOT / "README.md").read_text() + "é漢字🙂\r\n\t"
    assert model.tokenizer is not None
    ids = model.encode(everything, special=False)
    assert model.tokenizer.decode(ids) == everything
