"""Float weights made into codes at load: their bits, what models compute of them, refusals."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, quants
from safetensors.torch import load_file, save_file

from kvrt import registry
from kvrt.errors import ConfigError, ModelError
from kvrt.model.loader import Model, load_model
from kvrt.model.packed.ggml import TYPES, to_plain
from kvrt.model.packed.quantize import FORMATS, Quantize, largest, quantized
from kvrt.spi import Device, Matrix
from kvrt.spi.plain import unpack
from kvrt.testing.packing import PackingDevice
from kvrt.wrappers import Checked
from tests.bench.weights import TINY, checkpoints, qualities
from tests.model.checkpoints import make_model, save_model
from tests.model.stepping import stepping

WEIGHTS = "model.safetensors"
FAMILIES = ("llama-3", "llama-biases", "qwen-3", "mistral", "gemma-2", "glm-4", "phi-3")


def test_int8_has_the_bits_of_the_reference_quantiser() -> None:
    values = torch.randn(40, 256, generator=torch.Generator().manual_seed(0))
    values[1] = 0
    values[2] *= 1e-6
    values[3] = values[3].sign() * 63.5  # halves of codes
    values[3, ::32] = 127
    values[4] *= 1e4
    blocks = quants.quantize(values.numpy(), GGMLQuantizationType.Q8_0)
    want = to_plain(TYPES["Q8_0"], torch.from_numpy(np.ascontiguousarray(blocks)).view(-1), 256)
    assert torch.equal(quantized(FORMATS["int8"], values), want)


@pytest.mark.parametrize(("quantize", "search"), [("int4", 0.0049), ("int5", 0.00117)])
def test_fewer_bits_leave_less_error_than_the_smallest_and_largest_of_a_group_would(
    quantize: Quantize, search: float
) -> None:
    """`search`: what the twenty steps of llama.cpp's own leave of values as these."""
    format = FORMATS[quantize]
    values = torch.randn(256, 1024, generator=torch.Generator().manual_seed(0))
    got = unpack(format, quantized(format, values), 1024)
    groups = values.view(256, -1, 32)
    low = groups.amin(-1, keepdim=True).half().float()
    step = ((groups.amax(-1, keepdim=True) - low) / ((1 << format.bits) - 1)).half().float()
    plain = ((groups - low) / step).round() * step + low

    def error(made: torch.Tensor) -> float:
        return float((made.view_as(groups) - groups).square().sum() / groups.square().sum())

    assert error(got) < 0.83 * error(plain)
    assert error(got) < 1.02 * search


@pytest.mark.parametrize("quantize", FORMATS)
def test_no_value_is_far_from_its_code(quantize: Quantize) -> None:
    """Groups that are constant, of one sign, tiny, of the largest values, with one outlier."""
    format = FORMATS[quantize]
    most = largest(format)
    values = torch.rand(40, 96, generator=torch.Generator().manual_seed(0))
    values[0] = 0
    values[1] = 0.37
    values[2] = -most
    values[3, ::2] = most
    values[3, 1::2] = -most
    values[4] *= 1e-30
    values[5, 7] = 1e4
    values[6:20] -= 5
    values[20:30] += 5
    values[30:] -= 0.5
    got = unpack(format, quantized(format, values), 96).view(40, 3, 32)
    groups = values.view(40, 3, 32)
    span = groups.amax(-1, keepdim=True) - groups.amin(-1, keepdim=True)
    if format.offset == "none":
        span = groups.abs().amax(-1, keepdim=True)
    rounding = groups.abs().amax(-1, keepdim=True) * 2**-10 + 2**-24  # of scale and offset
    assert got.isfinite().all()
    assert ((got - groups).abs() <= span / ((1 << format.bits) - 1) + rounding).all()
    assert torch.equal(got[0], groups[0])


@pytest.mark.parametrize("quantize", FORMATS)
def test_a_row_is_made_into_codes_by_itself(quantize: Quantize) -> None:
    format = FORMATS[quantize]
    values = torch.randn(700, 160, generator=torch.Generator().manual_seed(0)).bfloat16()
    rows = quantized(format, values)
    for some in (slice(0, 1), slice(203, 411), slice(699, 700)):
        assert torch.equal(quantized(format, values[some]), rows[some])


def test_embedding_and_head_are_eight_bits_whatever_is_asked_for(
    device: Device, tmp_path: Path
) -> None:
    folder = save_model(make_model("qwen-3", tie_word_embeddings=False), tmp_path)
    weights = load_model(folder, device, quantize="int4").decoder.weights
    for weight, bits in (
        (weights.embedding, 8),
        (weights.head, 8),
        *((getattr(weights.layers[0], name), 4) for name in ("qkv", "o", "gate_up", "down")),
    ):
        assert isinstance(weight, tuple)
        assert {matrix.format.bits for matrix in weight} == {bits}


@pytest.fixture(params=["null", "cpu"])
def base(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def opened(base: str, *, exact: bool) -> Device:
    return Checked(PackingDevice(registry.load(base, timeout=60).open(), exact=exact))


@pytest.fixture
def device(base: str) -> Iterator[Device]:
    device = opened(base, exact=True)
    yield device
    device.close()


def logits_of(model: Model, device: Device) -> torch.Tensor:
    """Of a text, in two chunks and then token by token."""
    tokens = list(range(3, 40))
    with stepping(model, device, texts=1, longest=48) as stepper:
        text = stepper.add(tokens)
        for count in (20, 13, 1, 1, 1, 1):
            stepper.step([(text, count)])
    return torch.stack(text.logits)


def dequantised(folder: Path, to: Path, quantize: Quantize) -> Path:
    """The same model whose matrices are the values of its codes."""
    to.mkdir()
    (to / "config.json").write_text((folder / "config.json").read_text())
    tensors = load_file(folder / WEIGHTS)
    for name, tensor in tensors.items():
        if tensor.dim() == 2:
            in_layer = "embed" not in name and "lm_head" not in name
            format = FORMATS[quantize if in_layer else "int8"]
            tensors[name] = unpack(format, quantized(format, tensor), tensor.shape[1])
    save_file(tensors, to / WEIGHTS)
    return to


@pytest.mark.parametrize(
    ("family", "quantize"),
    [*((family, "int8") for family in FAMILIES), ("llama-biases", "int5"), ("qwen-3", "int4")],
)
def test_a_model_computes_with_the_values_of_its_codes(
    family: str, quantize: Quantize, base: str, device: Device, tmp_path: Path
) -> None:
    folder = save_model(make_model(family), tmp_path / "floats")
    model = load_model(folder, device, quantize=quantize)
    exact = load_model(dequantised(folder, tmp_path / "values", quantize), device)
    got, want = logits_of(model, device), logits_of(exact, device)
    assert torch.allclose(got, want, rtol=1e-4, atol=1e-5)
    rounding = opened(base, exact=False)
    rounded = logits_of(load_model(folder, rounding, quantize=quantize), rounding)
    rounding.close()
    assert not torch.equal(rounded, got)
    assert (rounded - want).square().mean() < 0.1**2 * want.square().mean()


def test_the_bundled_model_hardly_notices() -> None:
    bounds = {"int8": 4e-3, "int8, exact": 2e-4, "int5, exact": 5e-3, "int4": 2e-2}
    bounds |= {"FP8 by row": 5e-3, "FP8 by blocks": 5e-3}
    named = {way.name.replace("`", "").removeprefix("--quantize "): way for way in TINY.ways}
    subject = replace(TINY, ways=(named["float32"], *map(named.__getitem__, bounds)))
    with checkpoints(subject) as models:
        found = [quality for _, quality in qualities(subject, models, windows=1)]
    assert found[0].divergence == 0
    for most, quality in zip(bounds.values(), found[1:], strict=True):
        assert 0 < quality.divergence < most
        assert abs(quality.loss - found[0].loss) < 0.02
        assert quality.nbytes < found[0].nbytes / 3


def test_a_caller_in_inference_mode_loads_the_same(tmp_path: Path) -> None:
    folder = save_model(make_model("llama-3"), tmp_path)
    device = registry.load("cpu", timeout=60).open()
    found = []
    for mode in (False, True):
        with torch.inference_mode(mode):
            weights = load_model(folder, device, quantize="int5").decoder.weights
        found.append(weights.layers[0].gate_up)
    device.close()
    for one, other in zip(*found, strict=True):
        assert isinstance(one, Matrix)
        assert isinstance(other, Matrix)
        assert torch.equal(one.data, other.data)


def test_matrices_are_as_small_as_their_codes_and_a_tied_head_is_one_copy(
    device: Device, tmp_path: Path
) -> None:
    folder = save_model(make_model("llama-3"), tmp_path)
    model = load_model(folder, device, quantize="int8")
    weights = model.decoder.weights
    assert weights.head is weights.embedding
    in_file = load_file(folder / WEIGHTS).values()
    matrices = sum(tensor.numel() for tensor in in_file if tensor.dim() == 2)
    vectors = sum(tensor.numel() for tensor in in_file if tensor.dim() == 1)
    assert model.weight_bytes < 1.1 * (matrices * 34 / 32 + 4 * vectors) + 4096
    for layer in weights.layers:
        for weight in (layer.qkv, layer.o, layer.gate_up, layer.down):
            assert isinstance(weight, tuple)
            assert all(isinstance(matrix, Matrix) for matrix in weight)


def test_a_device_without_such_products_refuses(cpu: Device, plain: Device, tmp_path: Path) -> None:
    folder = save_model(make_model("llama-3"), tmp_path)
    with pytest.raises(ConfigError, match="quantize int8: null has no products with such weights"):
        load_model(folder, plain, quantize="int8")


def test_rows_that_are_no_whole_groups_stay_floats(
    device: Device, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = save_model(make_model("smollm-2"), tmp_path)  # 48 wide
    model = load_model(folder, device, quantize="int8")
    assert isinstance(model.decoder.weights.layers[0].qkv, torch.Tensor)
    assert isinstance(model.decoder.weights.layers[0].down, tuple)
    assert "rows are no multiple of 32" in caplog.text
    assert torch.equal(logits_of(model, device), logits_of(model, device))


def test_what_is_computed_with_is_in_the_fingerprint(base: str, tmp_path: Path) -> None:
    folder = save_model(make_model("llama-3"), tmp_path)
    found = set()
    for exact in (True, False):
        device = opened(base, exact=exact)
        found.add(load_model(folder, device, quantize="int8").fingerprint)
        found.add(load_model(folder, device).fingerprint)
        device.close()
    assert len(found) == 3


def test_random_weights_can_be_codes(device: Device, tmp_path: Path) -> None:
    folder = save_model(make_model("llama-3"), tmp_path)
    options: dict[str, Any] = {"load_format": "dummy", "quantize": "int8"}
    one, other = (load_model(folder, device, seed=seed, **options) for seed in (1, 2))
    again = load_model(folder, device, seed=1, **options)
    logits = [logits_of(model, device) for model in (one, other, again)]
    assert torch.equal(logits[0], logits[2])
    assert not torch.equal(logits[0], logits[1])
    assert logits[0].isfinite().all()


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("model.layers.1.mlp.up_proj.weight", float("nan"), "not finite"),
        ("model.embed_tokens.weight", float("inf"), "not finite"),
        ("model.layers.1.mlp.down_proj.weight", 1e30, r"value 1e\+30, too large for q8_0"),
    ],
)
def test_a_value_that_no_code_can_be_is_refused(
    device: Device, tmp_path: Path, name: str, value: float, says: str
) -> None:
    folder = save_model(make_model("llama-2"), tmp_path)
    tensors = load_file(folder / WEIGHTS)
    tensors[name][7, 5] = value
    save_file(tensors, folder / WEIGHTS)
    with pytest.raises(ModelError, match=f"{name}.*{says}"):
        load_model(folder, device, quantize="int8")
