"""Which protocol's words an error is in, where no protocol has read the request."""

from collections.abc import Callable
from typing import Any

from kvrt.server.anthropic import errors as anthropic
from kvrt.server.errors import Refusal
from kvrt.server.ollama import errors as ollama
from kvrt.server.openai import errors as openai

PREFIXES = {"/v1/messages": anthropic.refused, "/api/": ollama.refused}


def shape_for(path: str) -> Callable[[Refusal], dict[str, Any]]:
    """What makes the body of an error, for a client that asks there."""
    found = (words for prefix, words in PREFIXES.items() if path.startswith(prefix))
    return next(found, openai.refused)
