"""The model as a server shows it: its names, its defaults, how its tokens read."""

import secrets
import time
from collections.abc import Sequence
from http import HTTPStatus
from pathlib import Path
from typing import TypeVar

from kvrt.dialect.derive import derive
from kvrt.dialect.marks import Dialect
from kvrt.dialect.plugins import find_reader
from kvrt.errors import ConfigError
from kvrt.model.chat.templates import ChatTemplates
from kvrt.model.loader import Model
from kvrt.server.asking import Ask, AskedAdapter
from kvrt.server.config import ANY_NAME, ServerConfig
from kvrt.server.errors import Refusal
from kvrt.server.words.fields import Named, decode
from kvrt.server.words.pictures import ROOM
from kvrt.server.words.sampling import Defaults

Fields = TypeVar("Fields", bound=Named)

PLAIN = "plain"
"""The chat template that is built in, for models that have learnt no other."""

PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message.role | capitalize }}: {{ message.content }}\n\n"
    "{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
BODY_FLOOR = 1 << 20
BYTES_A_TOKEN = 16
"""Of a body: text is 4 or so, JSON's escapes and token ids a few more."""


def read_template(name: str) -> str:
    """The chat template of a file, or the one that is built in.

    Raises:
        ConfigError: the file cannot be read.
    """
    if name == PLAIN:
        return PLAIN_TEMPLATE
    try:
        return Path(name).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError, RuntimeError) as error:
        raise ConfigError(
            f"{name}: the chat template cannot be read: {type(error).__name__}",
            fix=f"name a file, or {PLAIN} for the one that is built in",
        ) from None


class Served:
    """What all protocols know of the model.

    Args:
        model: as it was loaded.
        config: of the server.
        template: a chat template, which becomes the model's own.

    Raises:
        ConfigError, ModelError: the chat template cannot be used.
    """

    def __init__(self, model: Model, config: ServerConfig, template: str | None) -> None:
        self.model = model
        self.strict = config.strict
        self.created = int(time.time())
        self.identity = secrets.token_hex(16)
        """Another for each model that is loaded, also for one of the same name."""
        path = Path(model.name).expanduser()
        own = path.name or path.resolve().name if path.exists() else model.name
        named = [name for name in config.alias if name != ANY_NAME]
        self.names = [*named, own] if own not in named else named
        self.any_name = ANY_NAME in config.alias
        self.adapters: dict[str, int] = {}
        """By name; a number that no other has had, also none of the same name."""
        self.defaults = Defaults(model.generation)
        images = 0 if isinstance(model.vision, str) else ROOM
        needed = max(BODY_FLOOR, BYTES_A_TOKEN * model.max_model_len) + images
        self.max_body = config.max_body or needed
        self._texts: dict[int, str] = {}
        if template is not None:
            if model.tokenizer is None:
                raise ConfigError("a chat template needs a tokenizer, and the model has none")
            sources = {"default": (template, "--chat-template")}
            model.tokenizer.chat = ChatTemplates(sources, model.tokenizer.named)
        tokenizer = model.tokenizer
        chats = None if tokenizer is None else tokenizer.chat
        self.dialect = Dialect() if chats is None else derive(chats)
        self.special_texts = frozenset[str]() if tokenizer is None else tokenizer.special_texts
        self.readers = None if config.reader is None else find_reader(config.reader)

    def thinks(self, prompt: Sequence[int]) -> bool:
        """Whether a prompt ends with the words that begin reasoning."""
        tokenizer, reasoning = self.model.tokenizer, self.dialect.reasoning
        if tokenizer is None or reasoning is None:
            return False
        end = tokenizer.decode(prompt[-len(reasoning.begin) - 8 :], skip_special=False)
        return end.rstrip().endswith(reasoning.begin)

    def name_of(self, asks: Sequence[Ask]) -> str:
        """What answers them: an adapter, or the model."""
        adapter = asks[0].adapter if asks else None
        return self.names[0] if adapter is None else adapter.name

    def fields(self, body: bytes, kind: type[Fields]) -> Fields:
        """A request's fields. One that names no model means the one that there is.

        Raises:
            Refusal: it is not JSON, or a field is not what it may be.
        """
        found = decode(body, kind, strict=self.strict)
        found.model = found.model or self.names[0]
        return found

    @property
    def all_names(self) -> list[str]:
        """Of the model, and of its adapters."""
        return [*self.names, *self.adapters]

    def check_name(self, name: str) -> None:
        """Raise `Refusal` if it is none of these."""
        if not self.any_name and name not in self.names and name not in self.adapters:
            raise Refusal(
                HTTPStatus.NOT_FOUND,
                f"no such model; this server has {self.names[0]}",
                param="model",
                code="model_not_found",
            )

    def adapter(self, name: str) -> AskedAdapter | None:
        """The adapter of that name; None: it is the model as it is.

        Raises:
            Refusal: it is neither's.
        """
        self.check_name(name)
        if name in self.names or name not in self.adapters:
            return None
        return AskedAdapter(name, self.adapters[name])

    def token_text(self, token: int) -> str:
        """How a token reads in the middle of a text."""
        tokenizer = self.model.tokenizer
        if tokenizer is None:
            return str(token)
        if token not in self._texts:
            before = tokenizer.word
            shown = tokenizer.decode([*before, token], skip_special=False)
            self._texts[token] = shown[len(tokenizer.decode(before, skip_special=False)) :]
        return self._texts[token]

    def text(self, tokens: Sequence[int], *, skip_special: bool = True) -> str:
        """What tokens say.

        Raises:
            Refusal: the model has no tokenizer, or no such token.
        """
        tokenizer = self.model.tokenizer
        if tokenizer is None:
            raise Refusal(HTTPStatus.BAD_REQUEST, "the model has no tokenizer")
        vocab = self.model.spec.vocab
        if any(token >= vocab for token in tokens):
            raise Refusal(
                HTTPStatus.BAD_REQUEST,
                f"tokens: the model has those from 0 to {vocab - 1}",
                param="tokens",
            )
        return tokenizer.decode(tokens, skip_special=skip_special)
