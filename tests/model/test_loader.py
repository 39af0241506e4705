"""Loading as a whole: dtypes, lengths, dummy weights, memory, and what is kept of the files."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from kvrt.errors import CapacityError, ConfigError, ModelError, OutOfMemory, RequestError
from kvrt.model.loader import load_model
from kvrt.model.weights import arena
from kvrt.spi import Device, MemoryInfo
from kvrt.testing.host import physical_bytes
from tests.model.checkpoints import VOCAB, make_model, save_model, save_tokenizer
from tests.model.stepping import stepping


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = make_model("llama-3")
    return save_tokenizer(save_model(model, tmp_path, dtype=torch.bfloat16))


def write(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(content | changes))


class Plain:
    """A device without dense operators that differs from another in what it says of itself."""

    def __init__(self, device: Device, *, free: int | None = None, **info: Any) -> None:
        self.info = dataclasses.replace(device.info, **info)
        self.attention = device.attention
        self.memory = device.memory if free is None else Memory(free)

    def extension(self, kind: type) -> None:
        return None


@dataclasses.dataclass(frozen=True)
class Memory:
    free: int

    def info(self) -> MemoryInfo:
        return MemoryInfo(total=1 << 30, free=self.free, chunks=0)


def test_auto_is_the_dtype_of_the_files(folder: Path, cpu: Device) -> None:
    write(folder / "config.json", dtype="float32")  # what it says is not what the files have
    model = load_model(folder, cpu)
    assert model.dtype == "bfloat16"
    assert model.decoder.weights.layers[0].qkv.dtype == torch.bfloat16
    stored = sum(t.numel() * 2 for t in load_file(folder / "model.safetensors").values())
    assert stored <= model.weight_bytes <= 1.1 * stored + 4096


def test_auto_is_float32_where_the_device_cannot_use_what_is_stored(
    folder: Path, cpu: Device
) -> None:
    device: Any = Plain(cpu, weight_dtypes=("float32", "float16"))
    assert load_model(folder, device).dtype == "float32"
    with pytest.raises(ConfigError, match="bfloat16") as caught:
        load_model(folder, device, dtype="bfloat16")
    assert "float16" in caught.value.fix


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_sixteen_bit_weights_compute_nearly_what_float32_does(
    folder: Path, cpu: Device, plain: Device, dtype: Any
) -> None:
    tokens = list(range(3, 40))
    logits = []
    for device, kind in ((cpu, "float32"), (cpu, dtype), (plain, dtype)):
        model = load_model(folder, device, dtype=kind)
        with stepping(model, device, texts=1, longest=40) as stepper:
            text = stepper.add(tokens)
            stepper.step([(text, len(tokens))])
        logits.append(torch.stack(text.logits))
    exact, *others = logits
    assert exact.dtype == torch.float32
    for other in others:
        assert (exact - other).abs().max() / exact.abs().max() < 0.05


def test_activations_have_the_weights_dtype_where_the_device_computes_in_it(
    folder: Path, cpu: Device
) -> None:
    device: Any = Plain(cpu, compute_dtypes=("float32", "bfloat16"))
    assert load_model(folder, device).decoder.dtype == "bfloat16"
    assert load_model(folder, device, dtype="float16").decoder.dtype == "float32"


def test_dummy_weights_need_a_configuration_only_and_repeat(folder: Path, cpu: Device) -> None:
    for path in folder.iterdir():
        if path.name != "config.json":
            path.unlink()
    places = {folder: 7, folder / "config.json": 7, str(folder): 8}
    models = [
        load_model(place, cpu, load_format="dummy", seed=seed) for place, seed in places.items()
    ]
    first, again, other = (model.decoder.weights.layers[1].down for model in models)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert models[0].fingerprint == models[1].fingerprint != models[2].fingerprint
    assert models[0].tokenizer is None
    assert models[0].detokenizer() is None
    with pytest.raises(RequestError, match=r"no tokenizer\.json"):
        models[0].encode("hello")
    with stepping(models[0], cpu, texts=1, longest=9, kv="bfloat16") as stepper:
        text = stepper.add(range(9))
        stepper.step([(text, 9)])
    assert torch.stack(text.logits).isfinite().all()


def test_a_model_without_a_tokenizer_takes_token_ids_and_says_how_to_get_one(
    folder: Path, cpu: Device
) -> None:
    (folder / "tokenizer.json").unlink()
    model = load_model(folder, cpu)
    with stepping(model, cpu, texts=1, longest=16) as stepper:
        text = stepper.add(range(3, 9))
        stepper.greedy([text], 4, budget=16)
    assert len(text.tokens) == 10
    assert model.detokenizer() is None
    (folder / "tokenizer.model").write_bytes(b"\n")
    for ask in (model.encode, lambda text: model.encode_chat([{"role": "user", "content": text}])):
        with pytest.raises(
            RequestError, match=r"no tokenizer\.json, only tokenizer\.model"
        ) as error:
            ask("hello")
        assert "token ids" in error.value.fix
        assert "save_pretrained" in error.value.fix


@pytest.mark.parametrize("head_dim", [2, 8, 24, 40, 272, 1024])
def test_heads_that_the_device_cannot_do_are_refused_before_anything_is_loaded(
    folder: Path, cpu: Device, head_dim: int
) -> None:
    write(folder / "config.json", head_dim=head_dim)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=rf"config\.json: head_dim is {head_dim}.*cpu.*16, 32"):
        load_model(folder, cpu)
    device: Any = Plain(cpu, head_dims=())  # every size
    with pytest.raises(ModelError, match="safetensors"):
        load_model(folder, device)


def test_weights_that_do_not_fit_are_refused_before_memory_is_taken(
    folder: Path, cpu: Device
) -> None:
    device: Any = Plain(cpu, free=1000)
    with pytest.raises(CapacityError) as caught:
        load_model(folder, device)
    assert caught.value.free == 1000
    assert caught.value.needed == load_model(folder, cpu).weight_bytes


def test_a_dummy_model_larger_than_any_memory_is_refused_at_once(folder: Path, cpu: Device) -> None:
    write(folder / "config.json", hidden_size=1 << 20, vocab_size=1 << 24, head_dim=64)
    with pytest.raises(CapacityError):
        load_model(folder, cpu, load_format="dummy")


@pytest.mark.parametrize("length", [0, -1, 257, 2**40])
def test_a_context_beyond_the_models_is_refused(folder: Path, cpu: Device, length: int) -> None:
    with pytest.raises(ConfigError, match="max_model_len") as caught:
        load_model(folder, cpu, max_model_len=length)
    assert "256" in caught.value.fix


def test_a_shorter_context_is_taken(folder: Path, cpu: Device) -> None:
    assert load_model(folder, cpu, max_model_len=100).max_model_len == 100
    assert load_model(folder, cpu).max_model_len == 256


def test_dynamic_scaling_changes_nothing_until_a_longer_context_is_asked_for(
    folder: Path, cpu: Device
) -> None:
    write(folder / "config.json", rope_parameters={"rope_type": "dynamic", "factor": 2.0})
    model = load_model(folder, cpu)
    assert (model.max_model_len, model.spec.rope.theta) == (256, 10_000.0)
    longer = load_model(folder, cpu, max_model_len=512)
    assert (longer.max_model_len, longer.spec.rope.theta) == (512, 10_000.0 * 3 ** (16 / 14))
    assert longer.fingerprint != model.fingerprint


def test_an_answer_ends_at_any_token_that_any_file_names(folder: Path, cpu: Device) -> None:
    write(folder / "generation_config.json", eos_token_id=[7, 9], temperature=0.6, top_k=20)
    model = load_model(folder, cpu)
    assert model.eos_ids == {2, 7, 9}
    assert (model.generation.temperature, model.generation.top_k) == (0.6, 20)
    assert model.generation.top_p is None
    write(folder / "generation_config.json", top_k=-1)  # all of them, as some write it
    assert load_model(folder, cpu).generation.top_k == 0
    (folder / "generation_config.json").unlink()
    assert load_model(folder, cpu).eos_ids == {2}


def test_an_end_token_that_the_model_has_no_row_for_is_none(folder: Path, cpu: Device) -> None:
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    end = {"id": VOCAB, "content": "<end>", "special": True, "single_word": False,
           "lstrip": False, "rstrip": False, "normalized": False}  # fmt: skip
    unused = [f"<unused{id}>" for id in range(len(content["model"]["vocab"]), VOCAB)]
    content["model"]["vocab"] |= {token: VOCAB - len(unused) + i for i, token in enumerate(unused)}
    path.write_text(json.dumps(content | {"added_tokens": [*content["added_tokens"], end]}))
    write(folder / "tokenizer_config.json", eos_token="<end>")
    model = load_model(folder, cpu)
    assert model.tokenizer is not None
    assert (model.tokenizer.eos, model.eos_ids) == (VOCAB, {2})


@pytest.mark.parametrize(
    "field", [{"eos_token_id": VOCAB}, {"temperature": "hot"}, {"top_p": 2.0}, {"top_k": -2}]
)
def test_a_bad_generation_default_is_named(
    folder: Path, cpu: Device, field: dict[str, Any]
) -> None:
    write(folder / "generation_config.json", **field)
    with pytest.raises(ModelError, match=rf"generation_config\.json: {next(iter(field))}"):
        load_model(folder, cpu)


def test_no_logits_are_computed_where_none_are_wanted(folder: Path, cpu: Device) -> None:
    model = load_model(folder, cpu)
    with stepping(model, cpu, texts=1, longest=16) as stepper:
        (place,), text = stepper.places, stepper.add(range(5))
        batch = place.batch(text.pages, [5], [5])
        none = torch.tensor([], dtype=torch.int64)
        assert model.decoder.forward(torch.arange(5), [batch], none).shape == (0, VOCAB)
        picked = model.decoder.forward(torch.arange(5), [batch], torch.tensor([4, 0]))
        every = model.decoder.forward(torch.arange(5), [batch], torch.arange(5))
    torch.testing.assert_close(picked, every[[4, 0]])


def test_weights_lie_in_huge_pages_and_are_given_back(cpu: Device) -> None:
    before = physical_bytes()
    memory = arena.allocate(40 << 20, "cpu")
    assert memory.data_ptr() % (2 << 20) == 0
    memory.fill_(1)
    others = 64 << 10  # pages of somebody else may have gone meanwhile
    assert physical_bytes() - before >= (40 << 20) - others
    part = memory[:100]
    del memory
    assert int(part.sum()) == 100, "a view keeps the memory"
    del part
    assert physical_bytes() - before < 1 << 20


def test_memory_that_cannot_be_had_is_a_typed_error() -> None:
    with pytest.raises(OutOfMemory) as caught:
        arena.allocate(1 << 60, "cpu")
    assert caught.value.needed == 1 << 60


def test_the_bundled_model_continues_a_text(cpu: Device) -> None:
    model = load_model("tiny", cpu)
    with stepping(model, cpu, texts=1, longest=64) as stepper:
        text = stepper.add(model.encode("def __init__(self"))
        start = len(text.tokens)
        stepper.greedy([text], 8, budget=64)
    detokenizer = model.detokenizer(text.tokens[:start])
    assert detokenizer is not None
    assert "".join(map(detokenizer.push, text.tokens[start:])).isascii()
