"""Towers of Qwen-VL see what transformers' see, and rotations know rows and columns."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from kvrt import Illustrated, Runtime, SamplingParams
from kvrt.engine.sight import Sight
from kvrt.model.loader import load_model
from kvrt.model.vision.vision import Vision
from kvrt.spi import Device
from tests.model.sights import (
    QWENS,
    make_qwen,
    picture,
    prepared_qwen,
    qwen_logits,
    qwen_tokens,
    save_qwen,
)

RELATIVE = 1e-4
NEW = 12
GREEDY = SamplingParams(max_tokens=NEW, ignore_eos=True, temperature=0.0)
SIZES = [(30, 41), (64, 64), (7, 90), (200, 31), (24, 24), (300, 280)]


@pytest.fixture(scope="module", params=QWENS)
def reference(request: pytest.FixtureRequest) -> PreTrainedModel:
    return make_qwen(request.param)


@pytest.fixture(scope="module")
def folder(reference: PreTrainedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_qwen(reference, tmp_path_factory.mktemp("qwen"))


@pytest.fixture(scope="module", params=["cpu", "plain"])
def vision(request: pytest.FixtureRequest, folder: Path) -> Vision:
    device: Device = request.getfixturevalue(request.param)
    found = load_model(folder, device, max_images=4).vision
    assert isinstance(found, Vision)
    return found


def assert_close(found: Tensor, wanted: Tensor) -> None:
    assert ((found.cpu() - wanted).abs().max() / wanted.abs().max()) < RELATIVE


@pytest.mark.parametrize("size", SIZES)
def test_states_are_those_of_transformers(
    vision: Vision, reference: PreTrainedModel, size: tuple[int, int]
) -> None:
    image = picture(2, size)
    inputs = prepared_qwen(image)
    with torch.no_grad():
        found = reference.get_image_features(**inputs)
    deep = getattr(found, "deepstack_features", None) or []
    wanted = torch.cat([found.pooler_output[0], *(each[0] for each in deep)], 1)
    read = vision.read(image, 0)
    _, rows, columns = inputs["image_grid_thw"][0].tolist()
    assert read.grid == (rows // 2, columns // 2)
    assert_close(vision.states(read), wanted)


def prompts() -> list[tuple[list[int], list[int]]]:
    """Tokens before, and seeds of images with tokens behind each."""
    return [([5], [1]), ([9] * 17, [2, 3]), ([], [4]), ([7, 8], [5, 6, 1])]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_batch_tokens": 13, "max_running": 4},
        {"max_batch_tokens": 23, "speculate": "ngram", "prefix_cache": False},
    ],
)
def test_answers_are_those_of_transformers_however_they_are_cut(
    folder: Path, reference: PreTrainedModel, options: dict[str, object]
) -> None:
    asked, wanted = [], []
    for before, seeds in prompts():
        images = [picture(seed, SIZES[seed % len(SIZES)]) for seed in seeds]
        tokens = [*before]
        for number, image in enumerate(images):
            tokens += [*qwen_tokens(image), *range(20, 23 + number)]
        asked.append(Illustrated(list(tokens), images))
        for _ in range(NEW):
            tokens.append(int(qwen_logits(reference, tokens, images)[-1].argmax()))
        wanted.append(tuple(tokens[-NEW:]))
    fixed = {"memory_limit": "256MiB", "page_size": 4, "debug": True, "threads": 1}
    with Runtime(folder, backend="cpu", **{**fixed, **options}) as runtime:  # type: ignore[arg-type]
        results = [*runtime.generate(asked, GREEDY), *runtime.generate(asked, GREEDY)]
    assert [result.error for result in results] == [None] * len(results)
    assert [result.token_ids for result in results] == wanted * 2


def test_a_chat_has_as_many_tokens_as_its_image_has_states(folder: Path) -> None:
    image = picture(3, (64, 30))
    part = {"type": "image", "image": image}
    chat = [{"role": "user", "content": [part, {"type": "text", "text": "what?"}]}]
    with Runtime(folder, backend="cpu", memory_limit="64MiB") as runtime:
        in_chat, in_front, narrow = (
            runtime.generate([prompt], GREEDY)[0]
            for prompt in (
                chat,
                Illustrated("what?", [image]),
                Illustrated("what?", [picture(1, (1, 300))]),
            )
        )
        behind = runtime.model.encode("what?", special=False)
    assert [*in_front.prompt_token_ids] == [*qwen_tokens(image), *behind]
    tokens = [*in_chat.prompt_token_ids]
    assert tokens.count(270) == qwen_tokens(image).count(270)
    assert "image 0 is more than 200 times as long" in str(narrow.error)


def test_positions_that_know_no_rows_and_columns_would_be_noticed(
    folder: Path, reference: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Sight, "turns", lambda self, rows: None)
    with pytest.raises(AssertionError):
        test_answers_are_those_of_transformers_however_they_are_cut(folder, reference, {})
