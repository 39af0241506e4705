"""Options of every command that opens a runtime, and the `RuntimeConfig` that they make."""

import math
from collections.abc import Mapping
from typing import Any, get_args

import click

from kvrt.config import ModelImpl, RuntimeConfig
from kvrt_cli.options import (
    Decorator,
    apply,
    backend_option,
    device_option,
    dtype_option,
    kv_dtype_option,
    offline_option,
    quantize_option,
    revision_option,
    size,
    threads_option,
)
from kvrt_cli.options.memory import (
    lasting_options,
    memory_options,
    prefix_cache_option,
    share_options,
)
from kvrt_cli.options.ranks import RANK_OPTIONS, elsewhere
from kvrt_cli.options.sharing import share_of

KEPT = (
    "Keep the pages of answered prompts for those that begin with the same tokens (default), or"
    " not."
)

runtime_options = apply(
    [
        backend_option,
        device_option,
        kv_dtype_option,
        click.option(
            "--load-format",
            type=click.Choice(["auto", "dummy"]),
            default="auto",
            help="dummy: random weights from config.json alone, for benchmarks.",
        ),
        click.option(
            "--model-impl",
            type=click.Choice(get_args(ModelImpl)),
            default="kvrt",
            show_default=True,
            help="transformers: its own module computes, over kvrt's pages: for architectures that"
            " kvrt does not have, and slower.",
        ),
        quantize_option,
        click.option(
            "--quantized-dir",
            metavar="DIR|auto|none",
            default="auto",
            show_default=True,
            help="Where weights are kept once they are quantised, so that the next start reads"
            " them; auto: ~/.cache/kvrt/weights.",
        ),
        click.option(
            "--offload-experts",
            type=size,
            metavar="SIZE",
            help="Memory for the experts of a mixture (2GiB, 25%): those that were used most of"
            " late are in it, others are read from the model's files when a token chooses them. The"
            " same text, slower. Default: all are in memory.",
        ),
        click.option(
            "--activations",
            type=click.Choice(["int8", "exact"]),
            default="int8",
            show_default=True,
            help="What weights that are codes are multiplied with: activations as codes of 8 bits,"
            " or exactly as they are, which may be slower.",
        ),
        click.option(
            "--max-model-len",
            "--ctx-size",
            type=click.IntRange(2),
            metavar="TOKENS",
            help="Longest prompt and output together; default: the model's own.",
        ),
        click.option(
            "--memory-limit",
            type=size,
            metavar="SIZE",
            help="Weights and KV cache together: 4GiB, 512MiB, 50%. Default: the weights, and for"
            " the cache at most 60 % of what is then free.",
        ),
        click.option(
            "--page-size",
            type=click.IntRange(1),
            default=16,
            show_default=True,
            metavar="TOKENS",
            help="Tokens in a page of the KV cache.",
        ),
        click.option(
            "--max-batch-tokens",
            type=click.IntRange(1),
            default=512,
            show_default=True,
            metavar="TOKENS",
            help="Tokens computed in one step, over all sequences.",
        ),
        click.option(
            "--max-running",
            type=click.IntRange(1),
            default=256,
            show_default=True,
            metavar="N",
            help="Sequences computed together.",
        ),
        click.option(
            "--speculate",
            "speculation",
            metavar="ngram[:K]|mtp[:K]|draft[:K]",
            help="Guess up to K tokens a step (10) from what the text has said before, and verify"
            " them together: the same text, sooner where it repeats itself. mtp: up to K (4) by the"
            " layer that models such as DeepSeek V3 and Qwen3.5 have for it.",
        ),
        click.option(
            "--draft-model",
            metavar="MODEL",
            help="A smaller model with the same tokenizer, which guesses tokens that the model"
            " verifies several at a time: the same text, sooner. --speculate draft:K: at most K"
            " a step (8).",
        ),
        click.option(
            "--max-images",
            type=click.IntRange(0, 1024),
            default=8,
            show_default=True,
            metavar="N",
            help="Images of a prompt, for models that see; 0: their vision tower is not loaded.",
        ),
        *RANK_OPTIONS,
        offline_option,
        revision_option,
        elsewhere,
    ]
)


def model_options(
    *, prefix_cache: bool = True, text: str = KEPT, lasting: bool = True
) -> Decorator[Any]:
    """All of them.

    Args:
        prefix_cache: what ``--prefix-cache`` is by default.
        text: what that is to the command.
        lasting: pages may outlive its process.
    """
    return apply(
        [
            runtime_options,
            prefix_cache_option(default=prefix_cache, text=text),
            memory_options,
            share_options,
            *([lasting_options] if lasting else []),
            dtype_option,
            threads_option,
        ]
    )


def runtime_config(model: str, options: Mapping[str, Any]) -> RuntimeConfig:
    """The configuration that the options ask for.

    Raises:
        click.UsageError: two of them do not go together.
    """
    for name in ("offload", "remote_store", "cache_dir"):
        if options.get(name) is not None and not options["prefix_cache"]:
            raise click.UsageError(
                f"--{name.replace('_', '-')} finds pages by their tokens, and the prefix cache is"
                " off: add --prefix-cache"
            )
    return RuntimeConfig(
        model=model,
        backend=options["backend"],
        device=options["device"],
        dtype=options["dtype"],
        kv_cache_dtype=options["kv_cache_dtype"],
        load_format=options["load_format"],
        model_impl=options["model_impl"],
        quantize=options["quantize"],
        quantized_dir=None if options["quantized_dir"] == "none" else options["quantized_dir"],
        offload_experts=options["offload_experts"],
        activations=options["activations"],
        max_model_len=options["max_model_len"],
        memory_limit=options["memory_limit"],
        page_size=options["page_size"],
        max_batch_tokens=options["max_batch_tokens"],
        max_running=options["max_running"],
        speculate=options["speculation"],
        draft_model=options["draft_model"],
        max_images=options["max_images"],
        threads=options["threads"],
        tensor_parallel=options["tensor_parallel"],
        tensor_parallel_mode=options["tensor_parallel_mode"],
        pipeline_parallel=options["pipeline_parallel"],
        nodes=options["nodes"],
        master=options["master"],
        master_key=options["master_key"],
        rank_timeout=options["rank_timeout"],
        offline=options["offline"],
        revision=options["revision"],
        prefix_cache=options["prefix_cache"],
        prefix_cache_policy=options["prefix_cache_policy"],
        prefix_cache_ttl=options.get("prefix_cache_ttl", math.inf),
        offload=options["offload"],
        offload_write=options["offload_write"],
        remote_store=options["remote_store"],
        remote_key=options["remote_key"],
        cache_dir=options.get("cache_dir"),
        preemption=options["preemption"],
        share=share_of(options),
    )
