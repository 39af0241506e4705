"""Small models that see, images for them, and what transformers makes of these."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor
from transformers import (
    AutoModelForImageTextToText,
    Gemma3Config,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen3_5Config,
    Qwen3VLConfig,
)
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tests.model.checkpoints import BASE, FAMILIES, randomised, save_model, save_tokenizer

SIDE = 32
TOKENS = 16
IMAGE, BEGIN, END = 270, 271, 272
MARKS = {BEGIN: "<start_of_image>", END: "<end_of_image>", IMAGE: "<image_soft_token>"}
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m.role }}:"
    "{% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content %}"
    "{% if part.type == 'image' %}<start_of_image>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endif %}{{ '\n' }}{% endfor %}{% if add_generation_prompt %}model:{% endif %}"
)


def make_sight(window: int = 9) -> PreTrainedModel:
    """transformers' own model with random weights; an image is more tokens than its window has."""
    torch.manual_seed(0)
    text = BASE | FAMILIES["gemma-3"] | {"sliding_window": window, "num_hidden_layers": 6}
    del text["model_type"]
    eyes = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": SIDE,
        "patch_size": 4,
    }
    config = Gemma3Config(
        text_config=text,
        vision_config=eyes,
        mm_tokens_per_image=TOKENS,
        image_token_index=IMAGE,
        boi_token_index=BEGIN,
        eoi_token_index=END,
    )
    made = AutoModelForImageTextToText.from_config(config, attn_implementation="eager").eval()
    return randomised(made)


def save_sight(model: PreTrainedModel, folder: Path) -> Path:
    """The model as a folder, with a tokenizer that knows its marks, and a chat template."""
    save_tokenizer(save_model(model, folder), chat_template=TEMPLATE)
    return with_marks(folder, MARKS)


def with_marks(folder: Path, marks: dict[int, str]) -> Path:
    """A folder whose tokenizer knows some marks by their numbers."""
    path = str(folder / "tokenizer.json")
    tokenizer = Tokenizer.from_file(path)
    first = tokenizer.get_vocab_size()
    fill = [f"<unused{n}>" for n in range(first, min(marks))]
    tokenizer.add_special_tokens([*fill, *(marks[token] for token in sorted(marks))])
    assert all(tokenizer.token_to_id(text) == token for token, text in marks.items())
    tokenizer.save(path)
    return folder


QWEN_MARKS = {270: "<|image_pad|>", 271: "<|vision_start|>", 272: "<|vision_end|>"}
QWEN_MEAN, QWEN_STD = [0.4, 0.5, 0.6], [0.3, 0.2, 0.25]
QWEN_SIZES = {"shortest_edge": 24 * 24, "longest_edge": 64 * 64}


QWEN_EYES = {"hidden_size": 32, "intermediate_size": 48, "depth": 3, "num_heads": 2,
             "patch_size": 4, "out_hidden_size": 64}  # fmt: skip
QWEN_IDS = {"image_token_id": 270, "vision_start_token_id": 271, "vision_end_token_id": 272}
QWENS: dict[str, tuple[type[PreTrainedConfig], dict[str, Any], dict[str, Any]]] = {
    "qwen2.5": (
        Qwen2_5_VLConfig,
        {"mrope_section": [4, 2, 2]},
        {"window_size": 24, "fullatt_block_indexes": [1]},
    ),
    "qwen3": (
        Qwen3VLConfig,
        {"mrope_section": [4, 3, 1], "mrope_interleaved": True},
        {"num_position_embeddings": 49, "deepstack_visual_indexes": [0, 2]},
    ),
    "qwen3.5": (
        Qwen3_5Config,
        {"mrope_section": [2, 1, 1], "mrope_interleaved": True, "partial_rotary_factor": 0.25},
        {"num_position_embeddings": 36},
    ),
}
"""Of each, how queries are rotated, and what its eyes have besides."""


def make_qwen(kind: str) -> PreTrainedModel:
    """transformers' own; images of 2.5 are cut into windows, also narrower ones."""
    torch.manual_seed(0)
    make, turns, eyes = QWENS[kind]
    rope = {"rope_type": "default", "rope_theta": 10000.0, **turns}
    text = BASE | {"head_dim": 16}
    if kind == "qwen3.5":
        text |= {
            name: value for name, value in FAMILIES["qwen-3.5"].items() if name != "model_type"
        }
    text |= {"rope_parameters": rope}
    config = make(text_config=text, vision_config=QWEN_EYES | eyes, **QWEN_IDS)
    made = AutoModelForImageTextToText.from_config(config, attn_implementation="eager").eval()
    return randomised(made)


def save_qwen(model: PreTrainedModel, folder: Path) -> Path:
    """Likewise, with the file of its image processor."""
    template = TEMPLATE.replace(MARKS[BEGIN], QWEN_MARKS[271] + QWEN_MARKS[270] + QWEN_MARKS[272])
    save_tokenizer(save_model(model, folder), chat_template=template)
    processor = {"size": QWEN_SIZES, "image_mean": QWEN_MEAN, "image_std": QWEN_STD}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return with_marks(folder, QWEN_MARKS)


def prepared_qwen(image: Image.Image) -> dict[str, Tensor]:
    """What transformers' image processor makes of it."""
    processor = Qwen2VLImageProcessorPil(
        size=QWEN_SIZES, patch_size=4, image_mean=QWEN_MEAN, image_std=QWEN_STD
    )
    return dict(processor(image, return_tensors="pt"))


def qwen_tokens(image: Image.Image) -> list[int]:
    """The tokens of an image in a prompt."""
    _, rows, columns = prepared_qwen(image)["image_grid_thw"][0].tolist()
    return [271, *[270] * (rows * columns // 4), 272]


def qwen_logits(model: PreTrainedModel, tokens: list[int], images: list[Image.Image]) -> Tensor:
    """What transformers computes: [tokens, vocab]."""
    each = [prepared_qwen(image) for image in images]
    seen = {name: torch.cat([one[name] for one in each]) for name in (each[0] if each else {})}
    ids = torch.tensor([tokens])
    model.model.rope_deltas = None
    with torch.no_grad():
        out = model(input_ids=ids, mm_token_type_ids=(ids == 270).int(), use_cache=False, **seen)
    logits: Tensor = out.logits[0]
    return logits


def picture(seed: int = 0, size: tuple[int, int] = (50, 41)) -> Image.Image:
    """An image of noise."""
    random = np.random.default_rng(seed)
    return Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8))


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    """It as a file."""
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def prepared(image: Image.Image) -> Tensor:
    """What transformers' image processor makes of it: [1, 3, side, side]."""
    size = {"height": SIDE, "width": SIDE}
    values: Tensor = Gemma3ImageProcessorPil(size=size)(image, return_tensors="pt")["pixel_values"]
    return values


def tokens_with(*counts: int) -> list[int]:
    """Token ids of texts, with an image after each but the last."""
    random = torch.Generator().manual_seed(len(counts))
    tokens = torch.randint(3, 250, (counts[0],), generator=random).tolist()
    for count in counts[1:]:
        tokens += [BEGIN, *[IMAGE] * TOKENS, END]
        tokens += torch.randint(3, 250, (count,), generator=random).tolist()
    return tokens


def logits_of(model: PreTrainedModel, tokens: list[int], images: list[Image.Image]) -> Tensor:
    """What transformers computes: [tokens, vocab]."""
    ids = torch.tensor([tokens])
    seen = {"pixel_values": torch.cat([prepared(image) for image in images])} if images else {}
    with torch.no_grad():
        out = model(input_ids=ids, token_type_ids=(ids == IMAGE).long(), **seen)
    logits: Tensor = out.logits[0]
    return logits
