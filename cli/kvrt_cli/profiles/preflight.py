"""Whether what a profile asks for is here and fits: found out without beginning anything."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from kvrt.config import RuntimeConfig
from kvrt.errors import KvrtError
from kvrt.units import format_bytes, parse_bytes
from kvrt_cli.checks.check import Check, Mark
from kvrt_cli.errors import as_options, option_names
from kvrt_cli.extras import BRINGS, check_extra
from kvrt_cli.facts import facts_of
from kvrt_cli.options.runtime import runtime_config
from kvrt_cli.profiles.keys import has_runtime, settable

FOLDERS = ("DIR", "FOLDER")


def preflight(
    words: Sequence[str],
    command: click.Command,
    params: Mapping[str, Any],
    model: str | None = None,
) -> Iterator[Check]:
    """What there is to say about a command with these values of its parameters.

    Args:
        words: its name, after those of its groups.
        model: in place of the one that the parameters name.
    """
    name = " ".join(words)

    def check(what: str, mark: Mark, text: str, fix: str = "", **data: Any) -> Check:
        return Check(name, what, mark, text, fix, data=data)

    if words[0] in BRINGS:
        try:
            check_extra(words[0], words[0])
        except KvrtError as error:
            yield check("libraries", Mark.BAD, str(error), error.fix)
            return
    if problem := _refusal(command, params):
        yield check("values", Mark.BAD, *problem)
        return
    for param in settable(command):
        if trouble := _unreachable(param, params[param.name or ""]):
            yield check("files", Mark.WARN, trouble)
    if "host" in params and "port" in params:
        from kvrt.server.wire.listener import bind

        try:
            bind(params["host"], params["port"]).close()
        except KvrtError as error:
            yield check("port", Mark.WARN, str(error), error.fix)
    if not has_runtime(command) or "memory_limit" not in params:
        return
    named = model or _model_of(params)
    if named is None:
        yield check(
            "model", Mark.SKIP, "it names no model, so it is not known whether one fits",
            "kvrt profile-config check NAME --model MODEL",
        )  # fmt: skip
        return
    try:
        yield _plan(name, runtime_config(named, {**params, **_first_of(params)}))
    except click.UsageError as error:
        yield check("model", Mark.BAD, error.format_message())
    except KvrtError as error:
        names = option_names(command)
        cause, fix = as_options(str(error), names), as_options(error.fix, names)
        yield check("model", Mark.BAD, f"{named}: {cause}", fix)


def _refusal(command: click.Command, params: Mapping[str, Any]) -> tuple[str, str] | None:
    """Why a command would refuse these values together, and what to do."""
    settled = getattr(command, "settled", None)
    if settled is None:
        return None
    try:
        settled(params)
    except click.UsageError as error:
        return error.format_message(), ""
    except KvrtError as error:
        names = option_names(command)
        return as_options(str(error), names), as_options(error.fix, names)
    return None


def _unreachable(param: click.Parameter, value: Any) -> str:
    """What is wrong with a path that is neither here nor can be made; empty: nothing."""
    if not isinstance(value, Path):
        return ""
    option = param.opts[0]
    if value.exists():
        if (param.metavar or "") in FOLDERS and not value.is_dir():
            return f"{option} {value} is no folder"
        return "" if os.access(value, os.R_OK) else f"{option} {value} cannot be read"
    there = next(part for part in (value.absolute(), *value.absolute().parents) if part.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        return f"{option} {value} is not here, and cannot be made in {there}"
    return ""


def _model_of(params: Mapping[str, Any]) -> str | None:
    """The first model that a command would load."""
    named = params.get("model") or params.get("models") or None
    if isinstance(named, tuple):
        named = named[0].rpartition("=")[2]
    return named if isinstance(named, str) else None


def _first_of(params: Mapping[str, Any]) -> dict[str, Any]:
    """Of what a benchmark is to try in turns, the first."""
    found = {"dtype": params.get("dtype", params.get("dtype_names")), "threads": params["threads"]}
    return {
        name: value[0] if isinstance(value, tuple) and value else value
        for name, value in found.items()
    }


def _plan(name: str, config: RuntimeConfig) -> Check:
    """Whether a model fits beside what is in memory now."""
    facts = facts_of(config, [config.max_model_len] if config.max_model_len else [])
    device, weights = facts["device"], facts["weight_bytes"]
    room, of = device["free_bytes"], "free"
    kv = facts["kv_bytes"]
    if config.memory_limit is not None:
        limit = config.memory_limit
        whole = parse_bytes(limit, whole=device["total_bytes"]) if isinstance(limit, str) else limit
        if whole > room:
            of = f"free, which is less than the limit of {format_bytes(whole)}"
        else:
            room, of = whole, "the limit"
        kv = max(0, room - weights)
    where = f"{device['backend']}: {device['name']}"
    data = {"weight_bytes": weights, "kv_bytes": kv, "room_bytes": room, "where": where}
    if config.tensor_parallel * config.pipeline_parallel > 1:
        text = f"{config.model} in several processes is not planned for"
        return Check(name, "memory", Mark.SKIP, text, "kvrt show has its sizes", data=data)
    if config.offload_experts is not None:
        least = facts["fewest_expert_bytes"] - facts["expert_bytes"]
        weights = max(0, weights + least)
    taken = f"{config.model}: weights of {format_bytes(weights)}"
    if weights >= room:
        return Check(
            name, "memory", Mark.BAD,
            f"{taken} do not fit on {where}: {format_bytes(room)} are {of}",
            _smaller(facts, room), data=data,
        )  # fmt: skip
    longest = facts["fits"][-1]
    texts = kv // longest["bytes"]
    rest = f"{format_bytes(kv)} for keys and values on {where}, {format_bytes(room)} being {of}"
    if texts == 0:
        fitting = [row["context"] for row in facts["fits"] if row["bytes"] <= kv]
        fix = f"max-model-len: {fitting[-1]}" if fitting else "kv-cache-dtype: int8, or less tokens"
        text = f"{taken}, and {rest}: less than a text of {longest['context']:,} tokens takes"
        return Check(name, "memory", Mark.WARN, text, fix, data=data)
    text = f"{taken}, and {rest}: {texts:,} texts of {longest['context']:,} tokens at once"
    return Check(name, "memory", Mark.OK, text, data={**data, "texts": texts})


def _smaller(facts: Mapping[str, Any], room: int) -> str:
    """What would make the weights small enough."""
    fitting = [row for row in facts["weights_as"] if row["weight_bytes"] < room]
    if not fitting:
        return "choose a smaller model, or a larger device"
    best = max(fitting, key=lambda row: row["weight_bytes"])
    how = "quantize" if best["weights"].startswith("int") else "dtype"
    return f"{how}: {best['weights']}, with which they take {format_bytes(best['weight_bytes'])}"
