"""A model that says what it is told to: one script for each last letter of what it is asked.

One-hot embeddings, attention and feed-forward of zeros, and a head that is a table: each token is
followed by one other. A script is cut into pieces that occur once, each of which is a token.
"""

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

END = "</s>"
TEMPLATE = """{%- if tools %}Tools: {{ tools | tojson }}
{% endif %}
{%- for message in messages %}<|{{ message.role }}|>
{%- if message.role == "assistant" and loop.last and message.reasoning_content %}<think>
{{ message.reasoning_content }}
</think>
{% endif %}
{{- message.content }}
{%- for call in message.tool_calls or [] %}
<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>
{%- endfor %}<|end|>
{% endfor %}
{%- if add_generation_prompt %}<|assistant|>{{ messages[-1].content[-1] }}{% endif %}"""
"""A prompt ends with the last letter of what was said, from which the model knows its script."""


def build(
    folder: Path, scripts: Mapping[str, str | Sequence[str]], template: str = TEMPLATE
) -> Path:
    """The folder of a model that says `scripts`, by the letters, of ASCII, with which a prompt ends
    that asks for them. One that is in pieces has those, each of which is in no other script: so it
    goes on behind what a constraint has left no choice about, if that is one of them."""
    alphabet = {t: i for i, t in enumerate([END, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END, "<|end|>"])
    given = {letter: list(text) for letter, text in scripts.items() if not isinstance(text, str)}
    used = {*alphabet, *itertools.chain.from_iterable(given.values())}
    said = given | {
        letter: _pieces(text, used) for letter, text in scripts.items() if isinstance(text, str)
    }
    tokenizer.add_tokens(
        [AddedToken(p, normalized=False) for p in itertools.chain.from_iterable(said.values())]
    )
    follow: dict[int, int] = {}
    for letter, pieces in said.items():
        ids = [tokenizer.token_to_id(token) for token in (letter, *pieces)]
        follow |= dict(itertools.pairwise(ids))
    ends = [tokenizer.token_to_id(token) for token in (END, '"', "}")]
    _save(folder, follow, ends, tokenizer.get_vocab_size())
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"eos_token": END, "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def _pieces(text: str, used: set[str]) -> list[str]:
    """Of at least two letters, so that no prompt has one."""
    pieces: list[str] = []
    at = 0
    while at < len(text):
        size = 2
        while text[at : at + size] in {*used, *pieces} and at + size < len(text):
            size += 1
        pieces.append(text[at : at + size])
        at += size
        while pieces[-1] in {
            *used,
            *pieces[:-1],
        }:  # the end of the text: it takes what is before it, too
            pieces[-2:] = ["".join(pieces[-2:])]
    used.update(pieces)
    return pieces


def _save(folder: Path, follow: Mapping[int, int], ends: Sequence[int], rows: int) -> None:
    """
    Args:
        ends: what it says, the first of them that a constraint allows, where no script goes on.
    """
    width = -(-rows // 64) * 64
    head = torch.zeros(rows, width)
    for place, end in enumerate(ends):
        head[end] = 5 - place
    for token, other in follow.items():
        head[other, token] = 10
    layer, zeros = "model.layers.0.", torch.zeros
    save_file(
        {
            "model.embed_tokens.weight": torch.eye(rows, width),
            "lm_head.weight": head,
            "model.norm.weight": torch.ones(width),
            f"{layer}input_layernorm.weight": torch.ones(width),
            f"{layer}post_attention_layernorm.weight": torch.ones(width),
            **{f"{layer}self_attn.{name}_proj.weight": zeros(width, width) for name in "qkvo"},
            f"{layer}mlp.gate_proj.weight": zeros(64, width),
            f"{layer}mlp.up_proj.weight": zeros(64, width),
            f"{layer}mlp.down_proj.weight": zeros(width, 64),
        },
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    shape = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": rows,
        "hidden_size": width, "intermediate_size": 64, "num_hidden_layers": 1,
        "num_attention_heads": width // 64, "num_key_value_heads": width // 64,
        "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
        "torch_dtype": "float32",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(shape))
