"""Tokens that side files add to a tokenizer, in the order that transformers adds them.

tokenizer_config.json     tokens with a name (``bos_token``), ``extra_special_tokens``, and
                          ``added_tokens_decoder``: tokens by id
special_tokens_map.json   names and extra tokens; counts only without an added_tokens_decoder
added_tokens.json         ids by token; likewise, and only for tokens that tokenizer.json lacks

Tokens that a file gives no id get the next ones.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken

from kvrt.errors import ModelError
from kvrt.model.files.jsonfile import few, read_object, shown

log = logging.getLogger(__name__)

CONFIG = "tokenizer_config.json"
CONFIG_LIMIT = 16 << 20
SPECIAL_MAP = "special_tokens_map.json"
ADDED = "added_tokens.json"

NAMES = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
FLAGS = ("lstrip", "rstrip", "normalized", "single_word", "special")


@dataclass(frozen=True, slots=True)
class SideFiles:
    """What the side files say.

    Args:
        settings: tokenizer_config.json.
        named: special tokens, by names such as ``bos_token``.
        extra: special tokens without a name.
        numbered: tokens by the id they are to have.
        source: the file that says so.
        overrides: it also changes the flags of tokens that tokenizer.json has.
    """

    settings: Mapping[str, Any]
    named: Mapping[str, AddedToken]
    extra: Sequence[AddedToken]
    numbered: Mapping[int, AddedToken]
    source: Path
    overrides: bool


def read_side_files(folder: Path) -> SideFiles:
    """What the side files in a model's folder say.

    Raises:
        ModelError: one of them is damaged.
    """
    config, special_map, added = folder / CONFIG, folder / SPECIAL_MAP, folder / ADDED
    settings = read_object(config, CONFIG_LIMIT) if config.exists() else {}
    decoder, special = settings.get("added_tokens_decoder"), dict(settings)
    extra = special.get("extra_special_tokens") or special.get("additional_special_tokens") or []
    later: object = []
    if decoder is None and special_map.exists():
        special |= (mapped := read_object(special_map))
        more = mapped.get("extra_special_tokens", [])
        extra = [*extra, *more] if isinstance(extra, list) and isinstance(more, list) else more
        later = mapped.get("additional_special_tokens", [])
    values = {name: value for name, value in special.items() if name.endswith("_token")}
    if isinstance(extra, Mapping):
        values, extra = {**values, **extra}, []
    names = sorted(values, key=lambda name: NAMES.index(name) if name in NAMES else len(NAMES))
    named = {name: token for name in names if (token := _special(values[name]))}
    extras = _specials(extra)
    if decoder is not None:
        return SideFiles(settings, named, extras, _decoder(decoder, config), config, True)
    known = {named[name].content for name in NAMES if name in named}
    known |= {token.content for token in extras}
    ids = read_object(added, CONFIG_LIMIT) if added.exists() else {}
    numbered = {
        _id(id, added): AddedToken(text, normalized=text not in known, special=text in known)
        for text, id in ids.items()
    }
    return SideFiles(settings, named, extras or _specials(later), numbered, added, False)


def add_tokens(tokenizer: tokenizers.Tokenizer, files: SideFiles, vocab: int) -> None:
    """Add to a tokenizer what the side files say, but no token beyond the model's `vocab` ids.

    Raises:
        ModelError: a token cannot have the id that its file gives it.
    """
    there = tokenizer.get_added_tokens_decoder()
    following = max([tokenizer.get_vocab_size(False) - 1, *there]) + 1
    fitting: list[AddedToken] = []
    beyond: list[str] = []
    for id, token in _in_order(files, {token.content for token in there.values()}):
        known = tokenizer.token_to_id(token.content)
        place = following if known is None else known
        following += known is None
        if id not in (None, place):
            wrong = f"{files.source}: token {shown(token.content)} is to have id {id}, but has"
            if known is None:
                raise ModelError(
                    f"{wrong} {place}, the next after tokenizer.json",
                    fix="the files belong to different models: use those the model came with",
                )
            log.warning("%s %d in tokenizer.json, which counts", wrong, known)
        if place < vocab:
            fitting.append(token)
        else:
            beyond.append(token.content)
    tokenizer.add_tokens(fitting)
    if beyond:
        log.warning("%s: the model has no row for %s", files.source.parent, few(beyond))


def _in_order(files: SideFiles, there: set[str]) -> Iterator[tuple[int | None, AddedToken]]:
    names = {token.content for token in files.named.values()}
    done = {"", *there}  # a name without a token is sometimes given an empty one
    for id, token in sorted(files.numbered.items()):
        if not token.content or (not files.overrides and token.content in there):
            continue
        token.special = token.special or token.content in names
        done.add(token.content)
        yield id, token
    for token in (*files.named.values(), *files.extra):
        if token.content not in done:
            done.add(token.content)
            yield None, token


def _special(value: object) -> AddedToken | None:
    """A special token, which is written as a string or as an object with its content."""
    if isinstance(value, str):
        return AddedToken(value, special=True)
    if isinstance(value, Mapping) and isinstance(value.get("content"), str):
        return _token({**value, "special": True})
    return None


def _specials(values: object) -> list[AddedToken]:
    listed = values if isinstance(values, list) else []
    return [token for value in listed if (token := _special(value))]


def _token(value: Mapping[str, Any]) -> AddedToken:
    flags = {name: value[name] for name in FLAGS if isinstance(value.get(name), bool)}
    return AddedToken(value["content"], **flags)


def _decoder(entries: object, path: Path) -> dict[int, AddedToken]:
    if not isinstance(entries, Mapping):
        raise ModelError(f"{path}: added_tokens_decoder is no object")
    tokens: dict[int, AddedToken] = {}
    for key, value in entries.items():
        if not isinstance(value, Mapping) or not isinstance(value.get("content"), str):
            raise ModelError(f"{path}: added_tokens_decoder: {shown(key)} is no token")
        tokens[_id(key, path)] = _token(value)
    return tokens


def _id(value: object, path: Path) -> int:
    """A token's id, which is a number, or a key that is one."""
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) <= 10:
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ModelError(f"{path}: {shown(value)} is no id of a token")
    return value
