"""A small Gemma 3 that sees, images for it, and what transformers makes of them."""

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor
from transformers import AutoModelForImageTextToText, Gemma3Config, PreTrainedModel
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

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
    path = str(folder / "tokenizer.json")
    tokenizer = Tokenizer.from_file(path)
    first = tokenizer.get_vocab_size()
    fill = [f"<unused{n}>" for n in range(first, IMAGE)]
    tokenizer.add_special_tokens([*fill, *(MARKS[token] for token in sorted(MARKS))])
    assert tokenizer.token_to_id(MARKS[END]) == END
    tokenizer.save(path)
    return folder


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
