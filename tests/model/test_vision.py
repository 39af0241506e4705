"""A vision tower sees what transformers' sees, and the decoder makes of it what that does."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from kvrt.model.decoder.seen import Seen
from kvrt.model.loader import Model, load_model
from kvrt.model.vision.vision import Vision
from kvrt.spi import Device
from tests.model.sights import (
    IMAGE,
    TOKENS,
    logits_of,
    make_sight,
    picture,
    prepared,
    save_sight,
    tokens_with,
)
from tests.model.stepping import stepping

RELATIVE = 1e-4


@pytest.fixture(scope="module")
def reference() -> PreTrainedModel:
    return make_sight()


@pytest.fixture(scope="module")
def folder(reference: PreTrainedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_sight(reference, tmp_path_factory.mktemp("sight"))


@pytest.fixture(scope="module", params=["cpu", "plain"])
def device(request: pytest.FixtureRequest) -> Device:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def model(folder: Path, device: Device) -> Model:
    return load_model(folder, device, max_images=4)


def eyes(model: Model) -> Vision:
    assert isinstance(model.vision, Vision)
    return model.vision


def assert_close(found: Tensor, wanted: Tensor) -> None:
    assert ((found.cpu() - wanted).abs().max() / wanted.abs().max()) < RELATIVE


@pytest.mark.parametrize("size", [(50, 41), (32, 32), (7, 90), (200, 31)])
def test_pixels_are_those_of_transformers(model: Model, size: tuple[int, int]) -> None:
    image = picture(1, size)
    found = eyes(model).read(image, 0).pixels
    assert torch.equal(((found.double() / 255).float() - 0.5) / 0.5, prepared(image)[0])


def test_states_are_those_of_transformers(model: Model, reference: PreTrainedModel) -> None:
    image = picture(2)
    vision = eyes(model)
    with torch.no_grad():
        wanted = reference.get_image_features(prepared(image)).pooler_output[0]
    assert_close(vision.states(vision.read(image, 0)), wanted)


def test_logits_are_those_of_transformers(
    model: Model, device: Device, reference: PreTrainedModel
) -> None:
    images = [picture(3), picture(4)]
    tokens = tokens_with(5, 0, 20)
    rows = [at for at, token in enumerate(tokens) if token == IMAGE]
    vision = eyes(model)
    states = [vision.states(vision.read(image, 0)) for image in images]
    seen = [
        Seen(row, each, together=True) for row, each in zip(rows[::TOKENS], states, strict=True)
    ]
    with stepping(model, device, texts=2, longest=len(tokens)) as stepper:
        text, beside = stepper.add(tokens), stepper.add(tokens[-9:])
        shifted = [one._replace(row=one.row + 9) for one in seen]
        stepper.step([(beside, 9), (text, len(tokens))], seen=shifted)
    assert_close(torch.stack(text.logits), logits_of(reference, tokens, images))
    assert_close(torch.stack(beside.logits), logits_of(reference, tokens[-9:], []))
