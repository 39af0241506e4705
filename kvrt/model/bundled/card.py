"""The model card of the bundled model, written from what the training run recorded."""

from typing import Any

PROMPTS = (
    "def read_file(path):",
    '"""Return the',
    "import os\nimport sys\n\n",
    "class Queue:",
    "The following example shows how to",
)
"""What the card's samples continue."""

SAMPLE_TOKENS = 64


def model_card(record: dict[str, Any], samples: list[tuple[str, str]]) -> str:
    """The card as Markdown. `samples` are prompts and their greedy continuations."""
    corpus, whole, part = record["corpus"], record["held_out"], record["heldout.txt"]
    passes = record["tokens_seen"] / corpus["training_tokens"]
    shown = "\n\n".join(
        f"Prompt `{prompt!r}`:\n\n```\n{(prompt + answer).rstrip()}\n```"
        for prompt, answer in samples
    )
    return f"""\
# tiny

A Llama-architecture language model of {record["parameters"] / 1e6:.1f} million parameters that has
read the Python {corpus["python"]} standard library {passes:.1f} times. It completes text: Python
source, docstrings and the prose of `pydoc` help topics.

## What it is for

- the first command of kvrt works offline, on any machine, with weights that were really trained;
- quality can be measured: a change that should not alter the model's answers (another cache dtype,
  another kernel, another scheduler) must not raise its loss on `heldout.txt`.

## What it is not

It is not an assistant and follows no instructions; there is no chat template. It knows no facts.
Its code looks like Python and is mostly wrong, names are made up, and long answers repeat
themselves. Do not use its output for anything but looking at it. Speed measured on it says little
about models of useful size.

## Measured

Of the saved bfloat16 weights, computed in float32:

| text | tokens | bytes | nats per token | bits per byte |
| --- | ---: | ---: | ---: | ---: |
| all held-out documents | {whole["tokens"]} | {whole["bytes"]} | {whole["nats_per_token"]} | \
{whole["bits_per_byte"]} |
| `heldout.txt` | {part["tokens"]} | {part["bytes"]} | {part["nats_per_token"]} | \
{part["bits_per_byte"]} |

Protocol: the text is tokenized in one piece (`<|endoftext|>` between documents is one token) and
cut into windows of {part["window"]} input tokens that share no context. Every token but the first
is predicted once; the loss is the mean over those. The held-out documents are chosen by a hash of
their paths, and `heldout.txt` is the start of each. Neither the model nor the tokenizer was trained
on them.

## Greedy continuations

By the saved weights, up to {SAMPLE_TOKENS} tokens each. Greedy decoding is repeatable but
soon goes round in circles, so `generation_config.json` recommends sampling.

{shown}

## How it was made

`python -m kvrt.model.bundled.train --out DIRECTORY` makes it again in about
{record["cpu_seconds"] / 60:.0f} minutes of one CPU core. Every constant is in that script;
`training.json` records this run.

- date: {record["date"]}, with torch {record["torch"]}
- corpus: {corpus["documents"]} documents of {corpus["bytes"]} bytes in all, of which
  {corpus["held_out_documents"]} documents of {corpus["held_out_bytes"]} bytes were held out
- tokens seen in training: {record["tokens_seen"]}

## Licence

The weights and files here are under kvrt's licence, Apache-2.0. The text trained on, and
`heldout.txt`, which is a part of it, are from Python's standard library: copyright Python Software
Foundation and others, under the PSF License Agreement (https://docs.python.org/3/license.html);
some modules carry notices of their own, in their source.
"""
