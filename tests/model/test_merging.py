"""Merged checkpoints are what the methods' papers say, and no two models are in memory for it."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from kvrt.errors import ConfigError, ModelError
from kvrt.model.loader import load_model
from kvrt.model.merging.files import merge
from kvrt.model.merging.methods import Recipe
from kvrt.spi import Device
from tests.model.checkpoints import make_model, save_model, save_tokenizer

COUNT = 3


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A base, and models that were made from it."""
    made = []
    for seed in range(COUNT + 1):
        folder = tmp_path_factory.mktemp(f"model{seed}")
        made.append(save_tokenizer(save_model(make_model("llama-2", seed=seed), folder)))
    return made


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def by_hand(method: str, numbers: list[float], base: float, shares: list[float]) -> float:
    """TIES of one number each, which were not trimmed."""
    added = [number - base for number in numbers]
    total = sum(share * each for share, each in zip(shares, added, strict=True))
    agreed = [(s, a) for s, a in zip(shares, added, strict=True) if a * total > 0]
    weight = sum(share for share, _ in agreed)
    return base + (sum(share * each for share, each in agreed) / weight if weight else 0.0)


def test_the_weighted_mean(folders: list[Path], tmp_path: Path, cpu: Device) -> None:
    merge(folders[1:], None, Recipe("linear", (1.0, 2.0, 5.0)), tmp_path / "out")
    models = [weights(folder) for folder in folders[1:]]
    for name, tensor in weights(tmp_path / "out").items():
        want = sum(share / 8 * each[name] for share, each in zip((1, 2, 5), models, strict=True))
        assert torch.allclose(tensor, want, atol=1e-6)
    assert load_model(tmp_path / "out", cpu).tokenizer is not None


def test_spherical_interpolation(folders: list[Path], tmp_path: Path) -> None:
    one, other = (weights(folder) for folder in folders[1:3])
    for share in (0.0, 0.25, 1.0):
        out = tmp_path / str(share)
        merge(folders[1:3], None, Recipe("slerp", (1 - share, share)), out)
        for name, tensor in weights(out).items():
            a, b = one[name].double(), other[name].double()
            cosine = float((a * b).sum() / (a.norm() * b.norm()))
            angle = math.acos(cosine)
            parts = [math.sin(angle * part) / math.sin(angle) for part in (1 - share, share)]
            want = parts[0] * a + parts[1] * b if cosine < 0.9995 else (1 - share) * a + share * b
            assert torch.allclose(tensor.double(), want, atol=1e-5)


def test_ties_keeps_the_largest_where_signs_agree(folders: list[Path], tmp_path: Path) -> None:
    base, models = weights(folders[0]), [weights(folder) for folder in folders[1:]]
    shares = [0.5, 0.25, 0.25]
    merge(folders[1:], folders[0], Recipe("ties", (2.0, 1.0, 1.0), density=1.0), tmp_path / "all")
    whole = weights(tmp_path / "all")
    name = "model.layers.1.mlp.up_proj.weight"
    for at in range(0, base[name].numel(), 97):
        numbers = [float(each[name].flatten()[at]) for each in models]
        want = by_hand("ties", numbers, float(base[name].flatten()[at]), shares)
        assert float(whole[name].flatten()[at]) == pytest.approx(want, abs=1e-5)
    one = Recipe("ties", (1.0,), density=0.25, scale=2.0)
    merge(folders[1:2], folders[0], one, tmp_path / "one")
    for name, tensor in weights(tmp_path / "one").items():
        added = (models[0][name] - base[name]).flatten()
        kept = (tensor - base[name]).flatten()
        largest = added.abs().topk(round(added.numel() / 4)).indices
        want = torch.zeros_like(added)
        want[largest] = 2 * added[largest]
        assert torch.allclose(kept, want, atol=1e-5)


def test_dare_leaves_out_a_random_part_and_makes_up_for_it(
    folders: list[Path], tmp_path: Path
) -> None:
    base, model = weights(folders[0]), weights(folders[1])
    seeds = (1, 1, 2)
    for number, seed in enumerate(seeds):
        recipe = Recipe("dare", (1.0,), density=0.3, seed=seed)
        merge(folders[1:2], folders[0], recipe, tmp_path / str(number))
    first, again, other = (weights(tmp_path / str(number)) for number in range(3))
    for name, tensor in first.items():
        assert torch.equal(tensor, again[name])
        added, kept = model[name] - base[name], tensor - base[name]
        left = kept != 0
        assert torch.allclose(kept[left], added[left] / 0.3, atol=1e-4)
        if tensor.numel() > 4000:
            assert float(left.float().mean()) == pytest.approx(0.3, abs=0.05)
            assert not torch.equal(tensor, other[name])


def test_large_results_are_several_files(folders: list[Path], tmp_path: Path, cpu: Device) -> None:
    recipe = Recipe("linear", (1.0, 1.0))
    merge(folders[1:3], None, recipe, tmp_path / "one")
    merge(folders[1:3], None, recipe, tmp_path / "many", shard_bytes=50_000)
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 2
    one, many = (load_model(tmp_path / name, cpu) for name in ("one", "many"))
    assert one.fingerprint == many.fingerprint


@pytest.mark.parametrize(
    ("recipe", "models", "base", "told"),
    [
        (Recipe("linear", (1.0,)), 2, False, "2 models, but 1 weights"),
        (Recipe("linear", (1.0,)), 1, False, "nothing to merge"),
        (Recipe("slerp", (1.0, 1.0, 1.0)), 3, False, "slerp is of two"),
        (Recipe("ties", (1.0, 1.0)), 2, False, "ties needs the model"),
        (Recipe("linear", (1.0, 1.0)), 2, True, "linear takes no base"),
        (Recipe("linear", (0.0, 0.0)), 2, False, "not all 0"),
        (Recipe("dare", (1.0, -1.0)), 2, True, "0 or more"),
        (Recipe("dare", (1.0, 1.0), density=0.0), 2, True, "density is 0"),
    ],
)
def test_a_recipe_that_is_not_for_these_models_is_refused(
    folders: list[Path], tmp_path: Path, recipe: Recipe, models: int, base: bool, told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        merge(folders[:models], folders[0] if base else None, recipe, tmp_path / "out")
    assert not any(tmp_path.iterdir())


def test_models_that_differ_are_refused_by_tensor_and_leave_nothing(
    folders: list[Path], tmp_path: Path
) -> None:
    other = save_model(make_model("llama-2", num_hidden_layers=2), tmp_path / "other")
    wide = save_model(make_model("llama-2", intermediate_size=100), tmp_path / "wide")
    quantised = tmp_path / "quantised"
    quantised.mkdir()
    content = weights(folders[0])
    content["model.norm.weight"] = content["model.norm.weight"].to(torch.int8)
    save_file(content, quantised / "model.safetensors")
    recipe = Recipe("linear", (1.0, 1.0))
    for folder, told in ((other, "layers.2"), (wide, "shape is"), (quantised, "dtype is I8")):
        with pytest.raises(ModelError, match=told):
            merge([folders[0], folder], None, recipe, tmp_path / "out")
    (tmp_path / "there").mkdir()
    with pytest.raises(ConfigError, match="exists"):
        merge(folders[:2], None, recipe, tmp_path / "there")
    assert {path.name for path in tmp_path.iterdir()} == {"other", "wide", "quantised", "there"}


PEAK = """
import resource, sys
from pathlib import Path
from kvrt.model.merging.files import merge
from kvrt.model.merging.methods import Recipe
paths = [Path(name) for name in sys.argv[1:]]
recipe = Recipe("linear", (1.0, 1.0, 1.0))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
merge(paths[:3], None, recipe, paths[3])
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10)
"""


def test_memory_is_taken_for_a_tensor_and_not_for_a_model(tmp_path: Path) -> None:
    folders = []
    for seed in range(3):
        folder = tmp_path / str(seed)
        folder.mkdir()
        generator = torch.Generator().manual_seed(seed)
        tensors = {f"t{n}": torch.randn(512, 512, generator=generator) for n in range(64)}
        save_file(tensors, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps({}))
        folders.append(str(folder))
    command: list[Any] = [sys.executable, "-c", PEAK, *folders, str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    model = (tmp_path / "0" / "model.safetensors").stat().st_size
    assert model > 64 << 20
    assert int(done.stdout) < model // 2
