"""The lines that are asked, the same for everybody."""

import json
import random
from pathlib import Path
from typing import Any

MODEL = "m"
TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"
"""A chat is its text, so that an embedded runtime can be asked for the same."""


def prompts(count: int, seed: int) -> list[str]:
    """Texts of 20 to 200 characters."""
    rng = random.Random(seed)
    words = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog"]
    return [" ".join(rng.choices(words, k=rng.randint(4, 40))) for _ in range(count)]


def write(path: Path, texts: list[str], new: int) -> Path:
    """Chats, which all of them take.

    Args:
        new: tokens of each answer.
    """
    with path.open("w") as file:
        for number, text in enumerate(texts):
            body: dict[str, Any] = {
                "model": MODEL, "messages": [{"role": "user", "content": text}],
                "max_tokens": new, "temperature": 0, "ignore_eos": True,
            }  # fmt: skip
            line = {"custom_id": f"{number}", "method": "POST", "url": "/v1/chat/completions"}
            file.write(json.dumps({**line, "body": body}) + "\n")
    return path
