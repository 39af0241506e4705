"""Models whose keys and values are made of latents keep these, and nothing besides."""

import json
from pathlib import Path
from typing import Any

import pytest

from kvrt.errors import ModelError
from kvrt.model.config import read_config
from kvrt.model.layouts import layouts_of
from kvrt.sampling import SamplingParams

from .conftest import CONFIG, Break, MakeRuntime, watched
from .test_every_way import GROUPS
from .ways import CHUNK, TOKEN, ask

ONE = SamplingParams(max_tokens=1, ignore_eos=True)
PUBLISHED: dict[str, tuple[dict[str, Any], int]] = {
    "DeepSeek-V3": (
        {"architectures": ["DeepseekV3ForCausalLM"], "num_hidden_layers": 61, "hidden_size": 7168,
         "num_attention_heads": 128, "kv_lora_rank": 512, "qk_rope_head_dim": 64},
        61 * (512 + 64) * 2,
    ),
    "Mistral Small 4": (
        {"architectures": ["Mistral4ForCausalLM"], "num_hidden_layers": 36, "hidden_size": 4096,
         "num_attention_heads": 32, "kv_lora_rank": 256, "qk_rope_head_dim": 64},
        36 * (256 + 64) * 2,
    ),
}  # fmt: skip


def folder_of(path: Path, changes: dict[str, Any]) -> Path:
    (path / "config.json").write_text(json.dumps(CONFIG | changes))
    return path


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_token_of_a_published_model_takes_a_latent_and_a_rotated_key(
    tmp_path: Path, name: str
) -> None:
    changes, bytes_per_token = PUBLISHED[name]
    spec = read_config(folder_of(tmp_path, changes) / "config.json")
    (layout,) = layouts_of(spec, 16, "bfloat16", "bfloat16")
    assert layout.page_bytes == 16 * bytes_per_token


def test_a_text_takes_the_memory_of_its_latents_as_the_operating_system_counts_it(
    tmp_path: Path, make_runtime: MakeRuntime, break_device: Break
) -> None:
    devices = watched(break_device)
    length = 4000
    folder = folder_of(tmp_path, {**GROUPS["latent"], "max_position_embeddings": 8192})
    runtime = make_runtime(model=folder, max_batch_tokens=64, keep_warm=0)
    ask(runtime, [[n % 199 for n in range(100)]], ONE)
    before = sum(devices[0].resident())
    ask(runtime, [[n * n % 199 for n in range(length)]], ONE)
    grown, expected = sum(devices[0].resident()) - before, length * TOKEN
    assert expected - CHUNK < grown < expected * 1.1 + 2 * CHUNK
    assert abs(runtime.stats().cache.mapped_bytes - expected) < 4 * CHUNK


def test_a_latent_that_attention_cannot_read_is_refused_when_it_is_loaded(
    tmp_path: Path, make_runtime: MakeRuntime
) -> None:
    folder = folder_of(tmp_path, GROUPS["latent"] | {"kv_lora_rank": 500, "qk_rope_head_dim": 76})
    with pytest.raises(ModelError, match="a latent's rank is 500, but attention on cpu is made"):
        make_runtime(model=folder)
