"""What may stand in a request of Ollama's clients."""

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from kvrt.sampling import SamplingParams
from kvrt.server.errors import Refusal
from kvrt.server.words.fields import (
    MOST,
    Message,
    Named,
    Penalty,
    Repetition,
    Sampling,
    Seed,
    Share,
    Stop,
    Temperature,
    Top,
    TopK,
)
from kvrt.server.words.sampling import Defaults
from kvrt.server.words.structured import FREE, Held, held_to

Count = Annotated[int, Meta(ge=-2, le=MOST)]
"""Tokens; below 0: as many as there is room for."""


class Options(msgspec.Struct, kw_only=True):
    """How to choose tokens. Those of the second group would, and are refused; those of the third
    are for the loading of a model, which is over."""

    temperature: Temperature | None = None
    top_k: TopK | None = None
    top_p: Share | None = None
    min_p: Share | None = None
    seed: Seed | None = None
    stop: Stop | None = None
    num_predict: Count | None = None
    repeat_penalty: Repetition | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None

    mirostat: int | None = None
    tfs_z: float | None = None
    typical_p: float | None = None

    repeat_last_n: int | None = None
    penalize_newline: bool | None = None
    mirostat_tau: float | None = None
    mirostat_eta: float | None = None
    num_keep: int | None = None
    num_ctx: int | None = None
    num_batch: int | None = None
    num_gpu: int | None = None
    main_gpu: int | None = None
    num_thread: int | None = None
    use_mmap: bool | None = None
    use_mlock: bool | None = None
    low_vram: bool | None = None
    f16_kv: bool | None = None
    logits_all: bool | None = None
    vocab_only: bool | None = None
    embedding_only: bool | None = None
    numa: bool | None = None

    @property
    def unmet(self) -> dict[str, bool]:
        return {
            "mirostat": bool(self.mirostat),
            "tfs_z": self.tfs_z not in (None, 1.0),
            "typical_p": self.typical_p not in (None, 1.0),
        }


class Asked(Named, kw_only=True):
    """What both routes take. Of the second group, only what changes nothing."""

    stream: bool | None = None
    options: Options | None = None
    keep_alive: int | float | str | None = None
    logprobs: bool | None = None
    top_logprobs: Top | None = None

    format: str | dict[str, Any] | None = None
    think: bool | str | None = None
    truncate: bool | None = None
    shift: bool | None = None

    @property
    def unmet(self) -> dict[str, bool]:
        """Fields, and whether an answer would have to be without what they ask."""
        options = self.options or Options()
        return options.unmet

    def check_offered(self) -> None:
        """Raise `Refusal` for what an answer would have to be without."""
        for name, unmet in self.unmet.items():
            if unmet:
                raise Refusal(400, f"{name} is not offered by this server", param=name)


class ChatAsked(Asked, kw_only=True):
    """The fields of ``/api/chat``."""

    messages: Annotated[list[Message], Meta(max_length=4096)] = msgspec.field(default_factory=list)

    tools: list[dict[str, Any]] | None = None


class GenerateAsked(Asked, kw_only=True):
    """The fields of ``/api/generate``."""

    prompt: str | None = None
    system: str | None = None
    raw: bool | None = None

    suffix: str | None = None
    template: str | None = None
    context: list[int] | None = None
    images: list[str] | None = None

    @property
    def unmet(self) -> dict[str, bool]:
        names = ("suffix", "template", "context")
        unmet = {name: bool(getattr(self, name)) for name in (*names, "think")}
        return {**super().unmet, **unmet}


def held(asked: Asked) -> Held:
    """What ``format`` holds the answer to: ``json``, or a schema."""
    if not asked.format:
        return FREE
    if isinstance(asked.format, str) and asked.format != "json":
        raise Refusal(400, "format must be json, or a schema", param="format")
    schema = None if isinstance(asked.format, str) else asked.format
    return held_to(Sampling(), {"type": "json_object", "schema": schema}, "format")


def thinking(asked: Asked) -> dict[str, Any]:
    """What the chat template is told of reasoning: whether, and how much of it."""
    if asked.think is None:
        return {}
    effort = {"reasoning_effort": asked.think} if isinstance(asked.think, str) else {}
    return {"enable_thinking": bool(asked.think), **effort}


def params_of(asked: Asked, defaults: Defaults, *, shows_special: bool = False) -> SamplingParams:
    """How a request wants its tokens chosen.

    Args:
        shows_special: special tokens are part of the text.
    """
    options = asked.options or Options()
    same = ("temperature", "top_k", "top_p", "min_p", "seed", "stop", "presence_penalty",
            "frequency_penalty")  # fmt: skip
    fields = Sampling(
        repetition_penalty=options.repeat_penalty,
        **{name: getattr(options, name) for name in same},
    )
    most = options.num_predict if (options.num_predict or 0) >= 0 else None
    return defaults.params(
        fields,
        max_tokens=most,
        logprobs=asked.top_logprobs or 0 if asked.logprobs else None,
        prompt_logprobs=0 if most == 0 else None,
        constraint=held(asked).constraint,
        skip_special_tokens=False if shows_special else None,
    )
