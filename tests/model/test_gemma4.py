"""Gemma 4: layers that see all have heads of another shape, in pages of their own."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from kvrt import Runtime, SamplingParams
from kvrt.errors import ModelError
from kvrt.model.config import read_config
from kvrt.model.layouts import layouts_of
from kvrt.model.spec import WholeSpec
from tests.model.checkpoints import FAMILIES, make_model, save_model, save_tokenizer


def config_of(folder: Path, *left_out: str, **changes: Any) -> Path:
    path = folder / "config.json"
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in content.items() if k not in left_out}))
    return path


def test_both_spellings_of_the_heads_are_the_same_model(tmp_path: Path) -> None:
    save_model(make_model("gemma-4"), tmp_path)
    as_saved = read_config(tmp_path / "config.json")
    assert as_saved.whole == WholeSpec(kv_heads=1, head_dim=64, values=False)
    published = {"global_head_dim": 64, "num_global_key_value_heads": 1}
    assert read_config(config_of(tmp_path, "per_layer_config", **published)) == as_saved
    plain = {"attention_k_eq_v": False}
    own = read_config(config_of(tmp_path, **plain)).whole
    assert own == WholeSpec(kv_heads=2, head_dim=64), "the other number counts with shared values"


def test_each_kind_of_layer_has_pages_of_its_own_shape(tmp_path: Path) -> None:
    save_model(make_model("gemma-4"), tmp_path)
    spec = read_config(tmp_path / "config.json")
    whole, local = layouts_of(spec, 16, "float32", "float32")
    assert whole.page_bytes == 16 * 2 * 2 * 1 * 64 * 4
    assert local.page_bytes == 16 * 5 * 2 * 2 * 32 * 4


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hidden_size_per_layer_input": 8}, "hidden_size_per_layer_input is 8"),
        ({"num_kv_shared_layers": 2}, "num_kv_shared_layers is 2"),
        ({"use_bidirectional_attention": "all"}, "use_bidirectional_attention makes tokens see"),
        ({"per_layer_config": {"5": {"head_dim": 64}, "6": {"head_dim": 32}}}, "two shapes"),
        ({"per_layer_config": {"5": {"head_dim": 64, "num_key_value_heads": 3}}}, "is 3, of width"),
    ],
)
def test_what_is_not_supported_is_refused_by_its_field(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    save_model(make_model("gemma-4"), tmp_path)
    with pytest.raises(ModelError, match=said):
        read_config(config_of(tmp_path, **changes))


@pytest.mark.parametrize("family", [name for name in FAMILIES if name.startswith("gemma-4")])
def test_texts_are_the_same_with_cached_pages_and_in_little_memory(
    tmp_path: Path, family: str
) -> None:
    folder = save_tokenizer(save_model(make_model(family), tmp_path))
    random = torch.Generator().manual_seed(0)
    common = torch.randint(3, 270, (60,), generator=random).tolist()
    asked = [[*common, *range(3, 3 + n)] for n in range(1, 9)]
    params = SamplingParams(max_tokens=24, ignore_eos=True, temperature=0.0)
    with Runtime(folder, backend="cpu", prefix_cache=False) as runtime:
        alone = [runtime.generate([one], params)[0].token_ids for one in asked]
        weights = runtime.model.weight_bytes
    options: dict[str, Any] = {"max_batch_tokens": 24, "memory_limit": weights + (10 << 20)}
    with Runtime(folder, backend="cpu", debug=True, **options) as runtime:
        first = runtime.generate(asked, params)
        again = runtime.generate(asked, params)
    assert [result.token_ids for result in first] == alone
    assert [result.token_ids for result in again] == alone
    assert all(result.usage.cached_tokens for result in again)
