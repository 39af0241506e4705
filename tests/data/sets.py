"""Sets that tests make."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

WORDS = ["the", "sky", "is", "blue", "because", "light", "of", "short", "waves", "scatters", "more"]

text = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
sentence = st.lists(st.sampled_from(WORDS), max_size=12).map(" ".join) | text


def conversation(prompt: str, answer: str) -> dict[str, Any]:
    said = [("user", prompt), ("assistant", answer)]
    return {"messages": [{"role": role, "content": content} for role, content in said]}


rows = st.one_of(
    st.builds(conversation, sentence, sentence),
    st.fixed_dictionaries({"prompt": sentence, "completion": sentence}),
    st.fixed_dictionaries({"instruction": sentence, "input": sentence, "output": sentence}),
    st.fixed_dictionaries({"text": sentence}, optional={"scores": st.just({"old": 1.5})}),
)
"""Lines in several shapes; few different words, so that some of them say the same."""


def written(path: Path, lines: Iterable[Any]) -> Path:
    """A file of lines, each as json writes it or as it is given."""
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("".join(f"{text}\n" for text in texts))
    return path


def read(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]
