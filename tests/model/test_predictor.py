"""The layer behind the last one predicts what it does in transformers, and is read only if it is to
be."""

import logging
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_layers import MtpModel

from kvrt.errors import ConfigError, ModelError
from kvrt.model.decoder.predictor import PredictingDecoder
from kvrt.model.loader import load_model
from kvrt.spi import Device
from tests.model.checkpoints import make_model, save_model
from tests.model.ggufs import keys_of, pack, tensors_of, write_gguf
from tests.model.predictors import MODELS, make_predicted, predicted, save_predicted
from tests.model.stepping import Stepper, Text, stepping

TOKENS = [3 + at * at % 190 for at in range(21)]


def guess(stepper: Stepper, text: Text, tokens: Sequence[int]) -> Tensor:
    """What is predicted behind tokens that follow what was computed, in turn: [tokens, vocab]."""
    decoder = stepper.model.decoder
    assert isinstance(decoder, PredictingDecoder)
    kept, states = stepper.places[-2:]
    found = []
    for at, token in enumerate(tokens, text.done + 1):
        batches = [
            kept.batch([text.pages[-2]], [at], [1]),
            states.states([text.pages[-1]], [at], [1]),
        ]
        found.append(decoder.predict(torch.tensor([token]), batches, torch.arange(1)))
    return torch.cat(found)


@pytest.mark.parametrize("family", MODELS)
def test_it_predicts_what_it_does_in_transformers(
    tmp_path: Path, cpu: Device, plain: Device, family: str
) -> None:
    reference, predictor = make_predicted(family)
    save_predicted(reference, predictor, tmp_path)
    right = predicted(reference, predictor, TOKENS)
    for device in (cpu, plain):
        model = load_model(tmp_path, device, predictor=True)
        with stepping(model, device, texts=2, longest=32) as stepper:
            whole, text = stepper.add(TOKENS), stepper.add(TOKENS)
            said = []
            for token in TOKENS:  # and what it stored for its guesses is written over
                said.append(guess(stepper, text, [token, 7])[:1])
                stepper.step([(text, 1)])
            assert_near(torch.cat(said), right)
            stepper.step([(whole, 9)])
            stepper.step([(whole, 11)])
            assert_near(guess(stepper, whole, TOKENS[20:]), right[20:])


def test_that_of_a_gguf_file_is_the_same(tmp_path: Path, cpu: Device) -> None:
    reference, predictor = make_predicted("glm-4-moe")
    folder = save_predicted(reference, predictor, tmp_path)
    tensors = {name: pack(tensor, "F32") for name, tensor in tensors_of(folder).items()}
    assert "blk.3.nextn.eh_proj.weight" in tensors
    keys = keys_of(folder) | {"glm4moe.block_count": 4, "glm4moe.nextn_predict_layers": 1}
    model = load_model(write_gguf(tmp_path / "x.gguf", keys, tensors), cpu, predictor=True)
    with stepping(model, cpu, texts=1, longest=32) as stepper:
        text = stepper.add(TOKENS)
        stepper.step([(text, 20)])
        said = guess(stepper, text, TOKENS[20:])
    assert_near(said, predicted(reference, predictor, TOKENS)[20:])


def test_behind_its_own_guess_it_goes_on_with_its_own_state(tmp_path: Path, cpu: Device) -> None:
    reference, predictor = make_predicted("qwen-3.5")
    model = load_model(save_predicted(reference, predictor, tmp_path), cpu, predictor=True)
    with stepping(model, cpu, texts=1, longest=32) as stepper:
        text = stepper.add(TOKENS)
        stepper.step([(text, 20)])
        said = guess(stepper, text, [TOKENS[20], 5, 6])
    assert_near(said, going_on(reference, predictor, TOKENS, [5, 6]))


@torch.no_grad()
def going_on(
    model: PreTrainedModel, predictor: MtpModel, tokens: list[int], more: list[int]
) -> Tensor:
    """The same by transformers' layer, with its output in place of states that it has none of."""
    ids = [*tokens, *more]
    states = model(torch.tensor([tokens]), output_hidden_states=True).hidden_states[-1]
    before = torch.nn.functional.pad(states[:, :-1], (0, 0, 1, 0))
    found = []
    for count in range(len(tokens), len(ids) + 1):
        places = torch.arange(count)[None]
        own = torch.tensor([ids[:count]])
        out = predictor.forward_layer(0, before, places, None, input_ids=own)
        found.append(predictor._project_to_logits(out[:, -1])[0].float())
        before = torch.cat((before, out[:, -1:]), 1)
    return torch.stack(found)


def assert_near(found: Tensor, right: Tensor) -> None:
    error = (found.cpu() - right).abs().max() / right.abs().max()
    assert error < 1e-4, error


def test_without_being_asked_for_it_is_not_read(
    tmp_path: Path, cpu: Device, caplog: pytest.LogCaptureFixture
) -> None:
    save_predicted(*make_predicted("qwen-3.5"), tmp_path)
    with caplog.at_level(logging.WARNING):
        model = load_model(tmp_path, cpu)
    assert model.spec.predictor is None
    assert model.decoder.weights.predictor is None
    assert "tensors that the decoder does not need are left out: 'mtp.fc.weight'" in caplog.text
    assert load_model(tmp_path, cpu, predictor=True).weight_bytes > model.weight_bytes


def test_a_checkpoint_that_lacks_it_is_refused_by_the_tensor(tmp_path: Path, cpu: Device) -> None:
    reference, _ = make_predicted("qwen-3.5")
    save_model(reference, tmp_path)
    with pytest.raises(ModelError, match=r"model.layers.3\.\S+ is missing"):
        load_model(tmp_path, cpu, predictor=True)


def test_a_model_that_has_none_is_refused_by_name(tmp_path: Path, cpu: Device) -> None:
    save_model(make_model("llama-2"), tmp_path)
    with pytest.raises(ConfigError, match="has no layer that predicts further tokens") as refused:
        load_model(tmp_path, cpu, predictor=True)
    assert "ngram" in refused.value.fix
