"""Every supported family computes what transformers computes."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from kvrt.model.loader import Model, load_model
from kvrt.spi import Device
from tests.model.checkpoints import FAMILIES, VOCAB, make_model, save_model, save_tokenizer
from tests.model.stepping import stepping

LENGTHS = (1, 5, 17, 123)
NEW = 64
RELATIVE = 1e-4


class Case:
    """One family: transformers' model, and the folder it was written to."""

    def __init__(self, family: str, folder: Path) -> None:
        self.reference: PreTrainedModel = make_model(family)
        self.folder = save_tokenizer(save_model(self.reference, folder))

    def logits(self, tokens: list[int]) -> Tensor:
        with torch.no_grad():
            return self.reference(torch.tensor([tokens])).logits[0]


@pytest.fixture(scope="module", params=FAMILIES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module", params=["cpu", "plain"])
def device(request: pytest.FixtureRequest) -> Device:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def model(case: Case, cpu: Device) -> Iterator[Model]:
    return load_model(case.folder, cpu)


def prompt(length: int) -> list[int]:
    random = torch.Generator().manual_seed(length)
    return torch.randint(0, VOCAB, (length,), generator=random).tolist()


def assert_close(got: list[Tensor], want: Tensor) -> None:
    error = (torch.stack(got) - want).abs().max() / want.abs().max()
    assert error < RELATIVE


@pytest.mark.parametrize("length", LENGTHS)
def test_logits_agree_with_transformers(case: Case, device: Device, length: int) -> None:
    model = load_model(case.folder, device)
    with stepping(model, device, texts=1, longest=length) as stepper:
        text = stepper.add(prompt(length))
        stepper.step([(text, length)])
    assert_close(text.logits, case.logits(text.tokens))


@pytest.mark.parametrize("chunk", [7, 64])
def test_a_prompt_in_chunks_gives_the_same_logits(
    case: Case, model: Model, cpu: Device, chunk: int
) -> None:
    with stepping(model, cpu, texts=1, longest=123) as stepper:
        text = stepper.add(prompt(123))
        while text.left:
            stepper.step([(text, min(chunk, text.left))])
    assert_close(text.logits, case.logits(text.tokens))


def test_greedy_tokens_are_those_of_transformers_alone_and_in_a_mixed_batch_of_16(
    case: Case, model: Model, cpu: Device
) -> None:
    lengths = [*LENGTHS, *range(3, 80, 7)][:16]
    with stepping(model, cpu, texts=20, longest=max(lengths) + NEW) as stepper:
        together = [stepper.add(prompt(length)) for length in lengths]
        stepper.greedy(together, NEW, budget=48)
        for text, length in zip(together, LENGTHS, strict=False):
            alone = stepper.add(prompt(length))
            stepper.greedy([alone], NEW, budget=512)
            assert alone.tokens == text.tokens
    for text, length in zip(together, lengths, strict=True):
        # transformers would have chosen each token, given those before: so by induction its own
        # greedy continuation is this one.
        chosen = case.logits(text.tokens[:-1])[length - 1 :].argmax(-1).tolist()
        assert text.tokens[length:] == chosen


@pytest.mark.parametrize(("length", "asked"), [(20, None), (32, None), (33, 33), (90, 90)])
def test_a_text_as_long_as_the_context_is_rotated_dynamically_as_by_transformers(
    tmp_path: Path, cpu: Device, length: int, asked: int | None
) -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 4.0}
    reference = make_model("llama-2", rope_parameters=rope, max_position_embeddings=32)
    model = load_model(save_tokenizer(save_model(reference, tmp_path)), cpu, max_model_len=asked)
    with stepping(model, cpu, texts=1, longest=length) as stepper:
        text = stepper.add(prompt(length))
        while text.left:
            stepper.step([(text, min(16, text.left))])
    with torch.no_grad():
        assert_close(text.logits, reference(torch.tensor([text.tokens])).logits[0])
