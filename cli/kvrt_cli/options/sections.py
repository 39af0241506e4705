"""The sections of a long ``--help``, so that rarely used options stand together at its end."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import click
from click.core import ParameterSource

Sections = Mapping[str, tuple[str, ...]]
"""By title, the parameters in it by their names."""

MODEL: Sections = {
    "Model and device": ("adapter", "backend", "device", "dtype", "dtype_names", "load_format",
                         "model_impl", "quantize", "quantized_dir", "offload_experts",
                         "activations", "max_model_len", "max_images", "threads", "offline",
                         "revision", "list_devices"),
    "KV memory": ("memory_limit", "kv_cache_dtype", "page_size", "prefix_cache",
                  "prefix_cache_policy", "prefix_cache_ttl", "cache_dir", "offload",
                  "offload_write", "remote_store", "remote_key", "preemption"),
    "Sharing": ("share", "guarantee", "lend", "weight", "share_priority"),
    "Scheduling": ("max_batch_tokens", "max_running", "speculation", "draft_model"),
    "Several processes": ("tensor_parallel", "tensor_parallel_mode", "pipeline_parallel", "nodes",
                          "node_rank", "master", "master_key", "rank_timeout"),
}  # fmt: skip
"""What is of a model in this process."""
INSIDE = {name for names in MODEL.values() for name in names}
SETTINGS: Sections = {"Settings": ("profile",)}
OUTPUT: Sections = {
    "Output": ("as_json", "no_stream", "output", "verbose", "quiet", "color", "help"),
}

RUN: Sections = {
    "Prompt": ("prompts", "images", "system", "chat", "variables"),
    "Answer": ("max_tokens", "min_tokens", "temperature", "top_p", "top_k", "min_p",
               "repetition_penalty", "logit_bias", "bad_words", "seed", "stop",
               "json_schema", "regex", "grammar",
               "ignore_eos", "skip_special_tokens", "beam_width", "length_penalty",
               "logprobs"),
    **OUTPUT,
    **MODEL,
    **SETTINGS,
}  # fmt: skip
SERVE: Sections = {
    "Server": ("host", "port", "alias", "chat_template", "reader", "strict", "max_requests",
               "deadline", "max_body", "drain_seconds", "ready_seconds", "response_cache",
               "response_cache_all", "semantic_cache", "semantic_cache_size",
               "semantic_cache_seconds", "metrics_compat", "otel", "embed_model", "rerank_model",
               "speech_model", "lora", "kv_events", "kv_events_replay"),
    "Several models": ("models_dir", "keep_alive", "max_waiting", "slo", "devices"),
    "Batches": ("batches", "batch_database", "batch_space", "batch_lines", "batch_price",
                "batch_webhook", "batch_webhook_secret"),
    "Keys": ("keys", "new_key", "role", "workspace", "limits", "usage", "usage_days", "audit",
             "audit_size", "audit_days", "without_keys",
             "jwt_issuer", "jwt_audience", "jwt_keys", "jwt_role",
             "jwt_workspace"),
    **MODEL,
    **SETTINGS,
    **OUTPUT,
}  # fmt: skip
BATCH: Sections = {
    "Batch": ("input", "output", "errors", "state", "database", "retry", "restart", "seconds",
              "price", "alias", "embed_model", "chat_template"),
    **OUTPUT,
    **MODEL,
    **SETTINGS,
}  # fmt: skip
DATA: Sections = {
    "Set": ("output", "language", "model", "rejected"),
    "Comparison": ("a", "b", "judge", "pairs", "config", "limit", "max_tokens", "temperature",
                   "seed"),
    **OUTPUT,
    **MODEL,
    **SETTINGS,
}  # fmt: skip
BENCH: Sections = {
    "Tests": ("prompt_tokens", "new_tokens", "pairs", "batch", "repetitions", "no_warmup"),
    **OUTPUT,
    **MODEL,
    **SETTINGS,
}
BENCH_SERVE: Sections = {
    "Target": ("url", "served", "endpoint", "key_file", "fields", "respect_eos", "timeout"),
    "Load": ("clients", "rate", "arrivals", "burstiness", "speed", "requests", "seconds", "warmup",
             "cache", "seed"),
    "Data": ("data", "prompt_tokens", "new_tokens", "turns", "prefixes", "prefix_tokens"),
    "Output": ("csv", "html", "name", *OUTPUT["Output"]),
    "Cost": ("cost_per_hour", "cost_per_kwh", "token_weights"),
    **MODEL,
    **SETTINGS,
}  # fmt: skip
PROFILE: Sections = {
    "Server": ("url", "seconds", "served", "key_file"),
    "Requests": ("prompt_tokens", "new_tokens", "batch", "no_warmup"),
    **OUTPUT,
    **MODEL,
    **SETTINGS,
}
TUNE: Sections = {
    "Search": ("goal", "slo", "knobs", "runs", "minutes", "allow_inexact"),
    **PROFILE,
}

OF_A_MODEL = "is of a model in this process; the server at --url has its own"


def refuse_given(context: click.Context, names: Collection[str], why: str) -> None:
    """Raise `click.UsageError` if one of these is on the command line.

    Args:
        why: it cannot be; the error says it behind the option's name.
    """
    for param in context.command.params:
        given = context.get_parameter_source(param.name or "") == ParameterSource.COMMANDLINE
        if given and param.name in names:
            raise click.UsageError(f"{param.opts[0]} {why}")


class SectionedCommand(click.Command):
    """A command whose ``--help`` has sections; what is in none of them comes last.

    Args:
        sections: see `Sections`; a name that the command does not have is passed over.
        settled: raises the error that these values of parameters would end in before anything is
            begun, for who wants to know that alone.
    """

    def __init__(
        self,
        *args: object,
        sections: Sections,
        settled: Callable[[Mapping[str, Any]], object] | None = None,
        **options: object,
    ) -> None:
        super().__init__(*args, **options)  # type: ignore[arg-type]
        self.sections = sections
        self.settled = settled

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one list of options for each section."""
        options = [param for param in self.get_params(ctx) if isinstance(param, click.Option)]
        records = {
            "help" if "--help" in option.opts else option.name: option.get_help_record(ctx)
            for option in options
        }
        for title, names in self.sections.items():
            found = [record for name in names if (record := records.pop(name, None)) is not None]
            if found:
                with formatter.section(title):
                    formatter.write_dl(found)
        if others := [record for record in records.values() if record is not None]:
            with formatter.section("Others"):
                formatter.write_dl(others)
