"""Every supported family computes what transformers computes."""

import copy
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

from kvrt.model.choice import choose
from kvrt.model.decoder.graphs import DecodeGraphs
from kvrt.model.loader import Model, load_model
from kvrt.model.source import open_source
from kvrt.spi import Device, Graph, GraphCapture
from tests.model.checkpoints import (
    FAMILIES,
    LONGROPE,
    SEEING,
    VOCAB,
    make_model,
    make_seeing,
    save_model,
    save_tokenizer,
)
from tests.model.stepping import stepping

LENGTHS = (1, 5, 17, 123)
NEW = 64
RELATIVE = 1e-4
LEARNED = "correction|expert_bias|act_fn|layer_scalar"
"""What names of buffers have that are weights."""


class Case:
    """One family: transformers' model, and the folder it was written to."""

    def __init__(self, family: str, folder: Path) -> None:
        self.reference: PreTrainedModel = make_model(family)
        self.folder = save_tokenizer(save_model(self.reference, folder))

    def logits(self, tokens: list[int]) -> Tensor:
        with torch.no_grad():
            return self.reference(torch.tensor([tokens])).logits[0]

    def chosen(self, tokens: list[int], start: int) -> list[int]:
        """What it would have said in place of each token from `start` on; float64 decides where
        two are so near that float32 says another."""
        said = self.logits(tokens[:-1])[start - 1 :].argmax(-1).tolist()
        if said == tokens[start:]:
            return said
        exact = copy.deepcopy(self.reference).double()
        with torch.no_grad():
            logits = exact(torch.tensor([tokens[:-1]])).logits[0]
        return logits[start - 1 :].argmax(-1).tolist()


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
            assert torch.equal(torch.stack(alone.logits), torch.stack(text.logits)), "other bits"
    for text, length in zip(together, lengths, strict=True):
        # transformers would have chosen each token, given those before: so by induction its own
        # greedy continuation is this one.
        assert text.tokens[length:] == case.chosen(text.tokens, length)


def test_it_has_as_many_parameters(case: Case, cpu: Device) -> None:
    choice = choose(open_source(case.folder), None, cpu)
    learned = (b for name, b in case.reference.named_buffers() if re.search(LEARNED, name))
    theirs = [*case.reference.parameters(), *learned]
    assert choice.parameters == sum(each.numel() for each in theirs)


@pytest.mark.parametrize("model_type", SEEING)
def test_of_models_that_see_the_decoder_of_text_is_read(
    tmp_path: Path, cpu: Device, model_type: str
) -> None:
    reference = make_seeing(model_type)
    model = load_model(save_tokenizer(save_model(reference, tmp_path)), cpu)
    with stepping(model, cpu, texts=1, longest=60) as stepper:
        text = stepper.add(prompt(60))
        stepper.step([(text, 60)])
    with torch.no_grad():
        assert_close(text.logits, reference(torch.tensor([text.tokens])).logits[0])


class OnlyTheirs(TorchDispatchMode):
    """Refuses every operator of torch's own that computes or makes a tensor."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func.is_view, f"{func} is called while a step is recorded, and would be left out"
        return func(*args, **(kwargs or {}))


class Watched:
    """`GraphCapture` that sees to it that a device's own operators are all that is called."""

    def __init__(self, capture: GraphCapture) -> None:
        self._capture = capture
        self.recorded = 0

    def size(self, tokens: int) -> int:
        return self._capture.size(tokens)

    def capture(self, batches: Any, record: Callable[[Any], None]) -> Graph:
        def watched(plans: Any) -> None:
            with OnlyTheirs():
                record(plans)

        self.recorded += 1
        return self._capture.capture(batches, watched)


def test_a_recorded_step_has_all_that_the_model_computes(case: Case, cpu: Device) -> None:
    model = load_model(case.folder, cpu)
    capture = cpu.extension(GraphCapture)  # type: ignore[type-abstract]
    assert capture is not None
    watched = Watched(capture)
    if model.decoder._graphs is not None:
        model.decoder._graphs = DecodeGraphs(watched, ragged=True)
    with stepping(model, cpu, texts=1, longest=30) as stepper:
        text = stepper.add(prompt(5))
        stepper.greedy([text], 25, budget=64)
    assert watched.recorded == 2 * (model.decoder._graphs is not None)
    assert_close(text.logits, case.logits(text.tokens[:-1]))


def test_a_recorded_step_has_the_bits_of_one_that_is_not(case: Case, cpu: Device) -> None:
    model = load_model(case.folder, cpu)
    recorded = model.decoder._graphs
    spec, experts = model.spec, model.spec.experts
    scaled = experts is not None and (
        experts.shared_scale or experts.beside or spec.residual_scale != 1.0
    )
    unsaid = spec.qk_norm == "rotated" or spec.activation == "xielu" or spec.recurrence is not None
    assert (recorded is None) == (scaled or unsaid)
    said = []
    for graphs in (recorded, None):
        model.decoder._graphs = graphs
        with stepping(model, cpu, texts=2, longest=30) as stepper:
            texts = [stepper.add(prompt(length)) for length in (3, 6)]
            stepper.greedy(texts, 12, budget=64)
            said.append([torch.stack(text.logits) for text in texts])
    for mine, theirs in zip(*said, strict=True):
        assert torch.equal(mine, theirs)


DYNAMIC = {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 4.0}}


@pytest.mark.parametrize(
    ("family", "changes", "longest"),
    [
        ("llama-2", DYNAMIC, 32),
        ("phi-3", LONGROPE, 128),
    ],
)
@pytest.mark.parametrize(("length", "asked"), [(20, None), (32, None), (33, 33), (90, 90)])
def test_a_text_as_long_as_the_context_is_rotated_as_by_transformers(
    tmp_path: Path,
    cpu: Device,
    family: str,
    changes: dict[str, Any],
    longest: int,
    length: int,
    asked: int | None,
) -> None:
    reference = make_model(family, max_position_embeddings=longest, **changes)
    model = load_model(save_tokenizer(save_model(reference, tmp_path)), cpu, max_model_len=asked)
    with stepping(model, cpu, texts=1, longest=length) as stepper:
        text = stepper.add(prompt(length))
        while text.left:
            stepper.step([(text, min(16, text.left))])
    with torch.no_grad():
        assert_close(text.logits, reference(torch.tensor([text.tokens])).logits[0])
