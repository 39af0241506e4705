"""The tokenizer in a GGUF file, built for the `tokenizers` library.

tokenizer.ggml.model        gpt2: byte-pair encoding of bytes; llama: SentencePiece with scores
tokenizer.ggml.tokens       by id; .token_type: what each is; .merges, or .scores
tokenizer.ggml.pre          how text is cut before (gpt2): see `kvrt.model.gguf.splits`
tokenizer.ggml.*_token_id   which token begins a text, ends it, ...
tokenizer.chat_template     and others as tokenizer.chat_template.NAME
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from kvrt.model.chat.templates import DEFAULT, ChatTemplates
from kvrt.model.files.jsonfile import Fields, shown
from kvrt.model.gguf.files import AGAIN, GGUF
from kvrt.model.gguf.splits import SPLITS
from kvrt.model.tokens.tokenizer import Tokenizer, blamed

NORMAL, UNKNOWN, CONTROL, ADDED, UNUSED, BYTE = range(1, 7)
"""What ``tokenizer.ggml.token_type`` says of a token."""

NAMES: Mapping[str, str] = {
    "bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token",
    "seperator": "sep_token", "cls": "cls_token", "mask": "mask_token",
}  # fmt: skip
"""Tokens with a name: as the keys spell them, and as chat templates do."""

TEMPLATE = "tokenizer.chat_template"
SPACE = "▁"
MAX_LENGTH, MEAN_LENGTH = 1 << 10, 1 << 6
"""Characters of tokens. Published vocabularies have runs of 256, and 7 on the mean; what is built
of them takes time by the square of the longest."""

ENDS = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<end_of_turn>", "<|endoftext|>",
        "<|end_of_text|>")  # fmt: skip
"""Control tokens that end an answer wherever they are. Keys name one of them only, and in files of
chat models often that which ends a text, not a turn."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The tokens of a file.

    Args:
        fields: the keys under ``tokenizer.ggml.``
        tokens: by id; no two are alike.
        ids: by token.
        types: what each is.
    """

    fields: Fields
    tokens: Sequence[str]
    ids: dict[str, int]
    types: Sequence[int]

    def text(self, name: str) -> str | None:
        """The token that ``name_token_id`` gives the id of."""
        key = f"{name}_token_id"
        if not self.fields.has(key):
            return None
        return self.tokens[self.fields.integer(key, 0, len(self.tokens) - 1)]


def read_tokenizer(gguf: GGUF, vocab: int) -> Tokenizer | None:
    """The tokenizer in a file; None if it has none.

    Args:
        vocab: rows of the model's embedding.

    Raises:
        ModelError: the tokenizer is damaged or of a kind that kvrt does not know. The message names
            the key.
    """
    fields = gguf.fields("tokenizer.ggml.")
    if not fields.has("model"):
        return None
    kind = fields.text("model")
    if kind not in KINDS:
        raise fields.error(
            "model",
            f"is {shown(kind)}, which is not supported; supported are {', '.join(KINDS)}",
            fix="give the safetensors checkpoint that the file was made from",
        )
    words = _vocabulary(fields, vocab)
    try:
        tokenizer = KINDS[kind](words)
        _add_tokens(tokenizer, words)
    except BaseException as error:
        raise blamed(error, gguf.path) from None
    named = {name: token for key, name in NAMES.items() if (token := words.text(key)) is not None}
    ends = {id for token in ENDS if (id := words.ids.get(token, -1)) >= 0}
    return Tokenizer(
        gguf.path,
        tokenizer,
        named,
        _templates(gguf, named),
        ends=frozenset(id for id in ends if words.types[id] == CONTROL),
    )


def _vocabulary(fields: Fields, vocab: int) -> Vocabulary:
    tokens = fields.items("tokens", str)
    if not 0 < len(tokens) <= vocab:
        raise fields.error("tokens", f"has {len(tokens)} tokens, but the embedding {vocab} rows")
    types = fields.items("token_type", int, [NORMAL] * len(tokens))
    if len(types) != len(tokens):
        raise fields.error("token_type", f"has {len(types)} items for {len(tokens)} tokens")
    ids = {token: id for id, token in enumerate(tokens)}
    if len(ids) < len(tokens):
        twice = next(token for id, token in enumerate(tokens) if ids[token] != id)
        raise fields.error("tokens", f"has {shown(twice)} twice", fix=AGAIN)
    longest, total = max(map(len, tokens)), sum(map(len, tokens))
    if longest > MAX_LENGTH or total > MEAN_LENGTH * len(tokens):
        raise fields.error(
            "tokens",
            f"has one of {longest} characters, and {total} in all; at most {MAX_LENGTH} and"
            f" {MEAN_LENGTH} a token are accepted",
        )
    return Vocabulary(fields, tokens, ids, types)


# --- kinds of tokenizers -------------------------------------------------------------------------


def _byte_pairs(words: Vocabulary) -> tokenizers.Tokenizer:
    fields = words.fields
    if not fields.has("pre"):
        raise fields.error("pre", "is missing: it names how text is cut", fix=AGAIN)
    name = fields.text("pre")
    if name not in SPLITS:
        raise fields.error(
            "pre",
            f"is {shown(name)}, a way to cut text that kvrt does not know; it knows"
            f" {', '.join(SPLITS)}",
            fix="give the safetensors checkpoint that the file was made from",
        )
    split = SPLITS[name]
    merges = [_pair(fields, merge) for merge in fields.items("merges", str)]
    tokenizer = tokenizers.Tokenizer(models.BPE(words.ids, merges, ignore_merges=split.whole))
    cuts = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in split.patterns]
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*cuts, to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    _frame(tokenizer, words, begins=split.begins)
    return tokenizer


def _pair(fields: Fields, merge: str) -> tuple[str, str]:
    at = merge.find(" ", 1)  # a token may begin with a space, in some old vocabularies
    if at < 0:
        raise fields.error("merges", f"has {shown(merge)}, which is no pair", fix=AGAIN)
    return merge[:at], merge[at + 1 :]


def _pieces(words: Vocabulary) -> tokenizers.Tokenizer:
    """SentencePiece: of all neighbours that make a token, those whose token scores most are joined
    first. A list of merges in the order of the scores says the same."""
    fields = words.fields
    scores = fields.items("scores", float)
    if len(scores) != len(words.tokens):
        raise fields.error("scores", f"has {len(scores)} items for {len(words.tokens)} tokens")
    merges = _merges(words, scores)
    unknown = words.text("unknown")
    tokenizer = tokenizers.Tokenizer(
        models.BPE(words.ids, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    )
    prefix = fields.flag("add_space_prefix", True)
    prepend = [normalizers.Prepend(SPACE)] if prefix else []
    tokenizer.normalizer = normalizers.Sequence([*prepend, normalizers.Replace(" ", SPACE)])
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    _frame(tokenizer, words, begins=True)
    return tokenizer


def _joined_pieces(words: Vocabulary) -> tokenizers.Tokenizer:
    """SentencePiece's tokens, whose pairs are listed as they are joined; Gemma 4's."""
    merges = [_pair(words.fields, merge) for merge in words.fields.items("merges", str)]
    tokenizer = tokenizers.Tokenizer(
        models.BPE(
            words.ids, merges, unk_token=words.text("unknown"), fuse_unk=True, byte_fallback=True
        )
    )
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    _frame(tokenizer, words, begins=True)
    return tokenizer


def _merges(words: Vocabulary, scores: Sequence[float]) -> list[tuple[str, str]]:
    """Every two tokens that make a third, in the order of its score; equal ones by their ids."""
    ids, joined = words.ids, (NORMAL, ADDED, UNUSED)
    ranked: list[tuple[float, int, int, str, str]] = []
    for id, token in enumerate(words.tokens):
        if words.types[id] in joined:
            for at in range(1, len(token)):
                left, right = token[:at], token[at:]
                if left in ids and right in ids:
                    ranked.append((-scores[id], ids[left], ids[right], left, right))
    ranked.sort()
    return [(left, right) for *_, left, right in ranked]


def _frame(tokenizer: tokenizers.Tokenizer, words: Vocabulary, *, begins: bool) -> None:
    """Put the token for the beginning before a text and that for the end behind it, if they go
    there; `begins`: where no key says so of the first."""
    bos, eos = words.text("bos"), words.text("eos")
    before = bos if bos and words.fields.flag("add_bos_token", begins) else None
    after = eos if eos and words.fields.flag("add_eos_token", False) else None
    if before or after:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[token for token in (before, "$A", after) if token],
            special_tokens=[(token, words.ids[token]) for token in {before, after} if token],
        )


KINDS = {"gpt2": _byte_pairs, "llama": _pieces, "gemma4": _joined_pieces}


def _add_tokens(tokenizer: tokenizers.Tokenizer, words: Vocabulary) -> None:
    """Tokens that no text is cut through, nor merged into."""
    tokenizer.add_tokens(
        [
            AddedToken(token, special=kind == CONTROL, normalized=False)
            for token, kind in zip(words.tokens, words.types, strict=True)
            if kind in (CONTROL, ADDED) and token
        ]
    )


# --- chat templates ------------------------------------------------------------------------------


def _templates(gguf: GGUF, named: Mapping[str, str]) -> ChatTemplates | None:
    fields = gguf.fields()
    sources: dict[str, tuple[str, str]] = {}
    for key in fields.names():
        if key == TEMPLATE or key.startswith(f"{TEMPLATE}."):
            name = key.removeprefix(TEMPLATE).removeprefix(".") or DEFAULT
            sources[name] = fields.text(key), f"{gguf.path}: {key}"
    return ChatTemplates(sources, named) if sources else None
