"""What may stand in a request of llama-server's clients, beside what others ask with."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from msgspec import Meta

from kvrt.errors import RequestError
from kvrt.model.loader import Model
from kvrt.sampling import BAN, MAX_LOGPROBS
from kvrt.server.errors import Refusal
from kvrt.server.llama.settings import OFF, Face
from kvrt.server.words.fields import MAX_PROMPTS, MOST, Sampling, Stop
from kvrt.server.words.structured import FREE, Held
from kvrt.structured.constraint import Constraint

Count = Annotated[int, Meta(ge=-1, le=MOST)]
"""Tokens; -1: as many as there is room for."""

Probs = Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)]
Slot = Annotated[int, Meta(ge=-1, le=MOST)]
Prompt = str | dict[str, Any] | list[Any]
"""A text, token ids, texts and token ids as one prompt, or several of these."""


class Wishes(Sampling, kw_only=True):
    """Fields of all routes that answer. Null is the same as nothing.

    The second group would have to be honoured where it is not off (`OFF`), and is refused then. The
    third changes nothing of what is said.
    """

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: Any = None
    stop: Stop | None = None

    stream: bool | None = None
    n_predict: Count | None = None
    repeat_penalty: float | None = None
    grammar: str | None = None
    json_schema: Any = None
    id_slot: Slot | None = None
    lora: list[dict[str, Any]] | None = None
    n_probs: Probs | None = None
    return_tokens: bool | None = None
    timings_per_token: bool | None = None
    return_progress: bool | None = None
    samplers: list[str] | str | None = None

    dynatemp_range: float | None = None
    top_n_sigma: float | None = None
    xtc_probability: float | None = None
    typical_p: float | None = None
    dry_multiplier: float | None = None
    mirostat: int | None = None
    adaptive_target: float | None = None
    n_indent: int | None = None
    t_max_predict_ms: int | None = None
    post_sampling_probs: bool | None = None
    min_keep: int | None = None

    cache_prompt: bool | None = None
    n_keep: int | None = None
    n_discard: int | None = None
    n_cache_reuse: int | None = None
    repeat_last_n: int | None = None
    backend_sampling: bool | None = None
    sse_ping_interval: int | None = None
    speculative: Any = None


NEEDED = ("dynatemp_range", "top_n_sigma", "xtc_probability", "typical_p", "dry_multiplier",
          "mirostat", "adaptive_target")  # fmt: skip
"""Of `OFF`, those that turn something on."""

NEGATIVE_IS_OFF = ("top_n_sigma", "adaptive_target", "t_max_predict_ms")

SAMPLERS = ("penalties", "temperature", "top_k", "top_p", "min_p")
"""That there are, in the order in which they are applied."""

SAMPLED_BY = {
    "temperature": ("temperature",),
    "top_k": ("top_k",),
    "top_p": ("top_p",),
    "min_p": ("min_p",),
    "penalties": ("repetition_penalty", "presence_penalty", "frequency_penalty"),
}
"""Parameters of each."""

NO_SAMPLER = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0,
              "presence_penalty": 0.0, "frequency_penalty": 0.0}  # fmt: skip
LETTERS = {"e": "penalties", "t": "temperature", "k": "top_k", "p": "top_p", "m": "min_p"}
"""One sampler a letter, as ``samplers`` may be a text, too."""


def settle(wishes: Wishes, face: Face, model: Model) -> None:
    """What the fields say, in the words that `Sampling` has for it.

    Raises:
        Refusal: an answer would have to be without something that they ask for.
    """
    _check_offered(wishes)
    if wishes.repeat_penalty is not None:
        wishes.repetition_penalty = wishes.repeat_penalty
    if wishes.temperature is not None:
        wishes.temperature = max(0.0, wishes.temperature)
    if wishes.top_k is not None:
        wishes.top_k = max(0, wishes.top_k)
    for name in ("top_p", "min_p"):
        if (value := getattr(wishes, name)) is not None:
            setattr(wishes, name, min(1.0, max(0.0, value)))
    seed = face.seed if wishes.seed is None else wishes.seed
    wishes.seed = None if seed in (-1, 2**32 - 1) else seed
    if not wishes.stop:
        wishes.stop = list(face.stop) or None
    if wishes.logit_bias is not None:
        wishes.logit_bias = biases(wishes.logit_bias, model)
    if wishes.samplers is not None:
        left = samplers(wishes.samplers)
        for name in (name for name in SAMPLERS if name not in left):
            for field in SAMPLED_BY[name]:
                setattr(wishes, field, NO_SAMPLER[field])


def _check_offered(wishes: Wishes) -> None:
    asked = {name: getattr(wishes, name) for name in NEEDED}
    unmet = {name for name, value in asked.items() if value is not None and value != OFF[name]}
    unmet |= {name for name in ("n_indent", "t_max_predict_ms") if getattr(wishes, name)}
    unmet = {name for name in unmet if name not in NEGATIVE_IS_OFF or getattr(wishes, name) >= 0}
    if (wishes.min_keep or 0) > 1:
        unmet.add("min_keep")
    if wishes.post_sampling_probs and wishes.n_probs:
        unmet.add("post_sampling_probs")
    for name in sorted(unmet):
        raise Refusal(400, f"{name} is not offered by this server", param=name)


def samplers(wanted: Sequence[str] | str) -> list[str]:
    """Those of `SAMPLERS` that are named. Others are off in any case: what would turn one on is
    refused by its own name."""
    if isinstance(wanted, str):
        wanted = [LETTERS.get(letter, letter) for letter in wanted]
    return [name for name in SAMPLERS if name in wanted]


def biases(given: object, model: Model) -> dict[str, float]:
    """From pairs of a token or a text and a bias, or an object of them. False bans a token.

    Raises:
        Refusal: it is none of these.
    """
    found: dict[str, float] = {}
    pairs = given.items() if isinstance(given, Mapping) else given
    try:
        for what, bias in pairs:  # type: ignore[attr-defined]
            text = isinstance(what, str) and not (isinstance(given, Mapping) and what.isdigit())
            tokens = model.encode(what, special=False) if text else [int(what)]
            worth = float(BAN) if bias is False else float(bias)
            found |= {str(token): max(BAN, min(-BAN, worth)) for token in tokens}
    except (TypeError, ValueError):
        raise Refusal(400, "logit_bias is no list of [token, bias]", param="logit_bias") from None
    return found


def held(wishes: Wishes, face: Face) -> Held:
    """What ``grammar`` or ``json_schema`` hold the answer to; of the two, the grammar."""
    try:
        if grammar := wishes.grammar or ("" if wishes.json_schema else face.grammar):
            return Held(Constraint.grammar(grammar), "grammar")
        if wishes.json_schema is not None:
            schema = wishes.json_schema if wishes.json_schema != {} else {"type": "object"}
            return Held(Constraint.json_schema(schema), "json_schema")
        if face.json_schema:
            return Held(Constraint.json_schema(face.json_schema), "json_schema")
    except RequestError as error:
        field = "grammar" if wishes.grammar else "json_schema"
        raise Refusal(400, f"{field}: {error}", param=field) from None
    return FREE


def prompts_of(prompt: Prompt, model: Model) -> list[str | list[int]]:
    """The prompts, each as a text or as token ids.

    Raises:
        Refusal: there is none, or one is nothing of the kind.
    """
    if isinstance(prompt, str | dict):
        return [_one(prompt, model)]
    if any(isinstance(part, int) for part in prompt) and not any(
        isinstance(part, list | dict) for part in prompt
    ):
        return [_one(prompt, model)]
    if not prompt:
        raise Refusal(400, "prompt is empty", param="prompt")
    if len(prompt) > MAX_PROMPTS:
        raise Refusal(400, f"prompt: at most {MAX_PROMPTS} prompts at once", param="prompt")
    return [_one(each, model) for each in prompt]


def _one(prompt: Any, model: Model) -> str | list[int]:
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, dict):
        if prompt.get("multimodal_data"):
            why = "prompt: images come with messages, at /v1/chat/completions"
            raise Refusal(400, why, param="prompt")
        if isinstance(text := prompt.get("prompt_string"), str):
            return text
    elif isinstance(prompt, list):
        return mixed(prompt, model, "prompt", special=True)
    raise Refusal(400, "prompt has one that is neither text nor token ids", param="prompt")


def mixed(parts: Sequence[object], model: Model, name: str, *, special: bool) -> list[int]:
    """Texts and token ids as one text's token ids.

    Args:
        name: of the field, for errors.
        special: a text that comes first begins as a prompt does.
    """
    tokens: list[int] = []
    for place, part in enumerate(parts):
        if isinstance(part, str):
            tokens += model.encode(part, special=special and place == 0)
        elif isinstance(part, int) and not isinstance(part, bool):
            tokens.append(part)
        else:
            why = f"{name} has one that is neither text nor token ids"
            raise Refusal(400, why, param=name)
    return tokens
