"""What the command line of llama-server says of the server as a whole."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kvrt.errors import ConfigError, RequestError
from kvrt.model.generation import GenerationDefaults
from kvrt.sampling import SamplingParams
from kvrt.server.words.sampling import Defaults
from kvrt.structured.constraint import Constraint

OFF: Mapping[str, Any] = {
    "dynatemp_range": 0.0,
    "dynatemp_exponent": 1.0,
    "top_n_sigma": -1.0,
    "xtc_probability": 0.0,
    "xtc_threshold": 0.1,
    "typical_p": 1.0,
    "dry_multiplier": 0.0,
    "dry_base": 1.75,
    "dry_allowed_length": 2,
    "dry_penalty_last_n": 64,
    "mirostat": 0,
    "mirostat_tau": 5.0,
    "mirostat_eta": 0.1,
    "adaptive_target": -1.0,
    "adaptive_decay": 0.9,
}
"""Of ways to choose tokens that are not offered, the settings that they are told with: off."""


@dataclass(frozen=True, slots=True)
class Lora:
    """An adapter that ``--lora`` names.

    Args:
        path: as it was given.
        scale: that it begins with.
    """

    path: str
    scale: float = 1.0

    @property
    def name(self) -> str:
        """By which the runtime knows it."""
        return self.path


@dataclass(frozen=True, slots=True, kw_only=True)
class Face:
    """How the face of llama-server is set up.

    Args:
        model_path: as it was given.
        slots: requests that are answered at once.
        n_predict: tokens of an answer where a request says nothing; -1: what there is room for.
        temperature, top_k, top_p, min_p, repeat_penalty, presence_penalty, frequency_penalty, seed:
            likewise; llama-server's own unless the command line says otherwise.
        ignore_eos, stop, grammar, json_schema: likewise.
        lora: adapters, by their numbers.
        template_kwargs: variables of the chat template for all requests.
        metrics, props, slots_shown: whether these routes are there.
        page: whether the web page is.
        guarded: clients need a key.
    """

    model_path: str
    slots: int = 4
    n_predict: int = -1
    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int = -1
    ignore_eos: bool = False
    stop: tuple[str, ...] = ()
    grammar: str = ""
    json_schema: str = ""
    lora: tuple[Lora, ...] = ()
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    metrics: bool = False
    props: bool = False
    slots_shown: bool = True
    page: bool = True
    guarded: bool = False

    def check(self) -> None:
        """Raise `ConfigError` for what cannot be, before a model is loaded."""
        given = {name: getattr(self, name) for name in ("presence_penalty", "frequency_penalty")}
        try:
            SamplingParams(
                temperature=self.temperature, top_k=self.top_k, min_p=self.min_p, stop=self.stop,
                repetition_penalty=self.repeat_penalty, top_p=self.top_p or 1.0, **given,
            )  # fmt: skip
            if self.grammar:
                Constraint.grammar(self.grammar)
            if self.json_schema:
                Constraint.json_schema(self.json_schema)
        except RequestError as error:
            raise ConfigError(str(error), fix=error.fix) from None
        on = [each.scale for each in self.lora if each.scale]
        if len(on) > 1 or any(scale != 1 for scale in on):
            raise ConfigError(
                "an answer has one adapter at most, as it was trained: of scale 1",
                fix="give --lora-init-without-apply, and let requests say which",
            )

    @property
    def defaults(self) -> Defaults:
        """For requests that say nothing."""
        drawn = GenerationDefaults(
            sample=True,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p or None,
            min_p=self.min_p,
            repetition_penalty=self.repeat_penalty,
            file="the command line",
        )
        made = Defaults(drawn)
        made.given |= {
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "ignore_eos": self.ignore_eos,
        }
        return made
