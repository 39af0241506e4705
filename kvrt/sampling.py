"""How a request wants its tokens chosen. Loads no torch; the choosing is in `kvrt.sampler`."""

from collections.abc import Sequence
from dataclasses import dataclass

from kvrt.errors import RequestError

MAX_LOGPROBS = 100
MAX_STOPS = 64
MAX_STOP_LENGTH = 1024
MAX_COMPLETIONS = 128
MAX_DRAFTS = 64
MAX_BEAMS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How to choose tokens and when to stop. Checked when made: a bad value is a `RequestError`.

    The order is that of the field: penalties, temperature, top-k, top-p, min-p, then the draw.

    Args:
        max_tokens: at most so many new tokens; None: as many as the context has room for.
        temperature: divides the logits; 0 is greedy.
        top_k: keep the k likeliest tokens; 0 keeps all.
        top_p: keep the likeliest tokens whose probabilities reach this sum (Holtzman et al. 2020).
        min_p: keep tokens at least this fraction as likely as the likeliest.
        repetition_penalty: divides (or, below zero, multiplies) the logits of tokens that occur in
            the prompt or the output (Keskar et al. 2019); 1 is off.
        presence_penalty: subtracted from the logits of tokens that occur in the output.
        frequency_penalty: subtracted once for each occurrence in the output.
        seed: makes the draws of this request repeatable, whatever runs beside it.
        stop: stop when one of these strings appears; it is not part of the text.
        stop_token_ids: stop at one of these tokens, besides the model's own end tokens.
        ignore_eos: go on past the model's end tokens (for benchmarks).
        skip_special_tokens: leave special tokens out of the text, and so out of what `stop` looks
            at. The token that ends the answer is never part of it.
        logprobs: give the log-probability of each new token and of so many likeliest ones.
        prompt_logprobs: the same for each prompt token but the first.
        n: so many independent completions of one prompt; they share its pages.
        speculate: at most so many tokens are guessed in a step, from what the text has said before,
            and verified; 0: none; None: as the runtime is set up. Never changes what is said.
        beam_width: above 1, beam search: so many continuations are followed at once, and the `n`
            likeliest as wholes are given, all at the end. It draws no tokens, guesses none, and
            takes no stop strings; see `kvrt.sched.beams`.
        length_penalty: of beams: their log-probability is divided by the length to this power
            before they are compared. Above 0, longer ones are preferred.
    """

    max_tokens: int | None = None
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    stop: Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    n: int = 1
    speculate: int | None = None
    beam_width: int = 1
    length_penalty: float = 1.0

    def __post_init__(self) -> None:
        stop = _items("stop", [self.stop] if isinstance(self.stop, str) else self.stop)
        object.__setattr__(self, "stop", stop)
        tokens = _items("stop_token_ids", self.stop_token_ids)
        object.__setattr__(self, "stop_token_ids", tokens)
        for name in ("ignore_eos", "skip_special_tokens"):
            if not isinstance(getattr(self, name), bool):
                raise RequestError(
                    f"{name} is {getattr(self, name)!r:.60}; it must be true or false", param=name
                )
        if self.max_tokens is not None:
            _whole("max_tokens", self.max_tokens, 1, 2**31 - 1)
        _whole("top_k", self.top_k, 0, 2**31 - 1)
        _whole("n", self.n, 1, MAX_COMPLETIONS)
        _whole("beam_width", self.beam_width, 1, MAX_BEAMS)
        _real("length_penalty", self.length_penalty, -10.0, 10.0)
        _real("temperature", self.temperature, 0.0, 100.0)
        _real("top_p", self.top_p, 0.0, 1.0, above=True)
        _real("min_p", self.min_p, 0.0, 1.0)
        _real("repetition_penalty", self.repetition_penalty, 0.0, 100.0, above=True)
        _real("presence_penalty", self.presence_penalty, -100.0, 100.0)
        _real("frequency_penalty", self.frequency_penalty, -100.0, 100.0)
        if self.speculate is not None:
            _whole("speculate", self.speculate, 0, MAX_DRAFTS)
        if self.seed is not None:
            _whole("seed", self.seed, 0, 2**64 - 1)
        for name in ("logprobs", "prompt_logprobs"):
            if getattr(self, name) is not None:
                _whole(name, getattr(self, name), 0, MAX_LOGPROBS)
        if len(stop) > MAX_STOPS:
            raise RequestError(f"stop has {len(stop)} strings, at most {MAX_STOPS}", param="stop")
        for place, text in enumerate(stop):
            if not isinstance(text, str) or not 0 < len(text) <= MAX_STOP_LENGTH:
                what = f"{len(text)} characters" if isinstance(text, str) else type(text).__name__
                raise RequestError(
                    f"stop {place} is {what}, not a string of 1 to {MAX_STOP_LENGTH} characters",
                    param="stop",
                )
        for token in self.stop_token_ids:
            _whole("stop_token_ids", token, 0, 2**31 - 1)
        if self.beam_width > 1:
            self._check_beams()

    def _check_beams(self) -> None:
        if self.n > self.beam_width:
            raise RequestError(
                f"n is {self.n}; a beam search of width {self.beam_width} has no more to give",
                param="n",
                fix="make beam_width at least n",
            )
        reasons = {
            "temperature": (not self.greedy, "it draws no tokens: leave temperature 0"),
            "repetition_penalty": (self.penalized, "it knows no penalties: leave all of them out"),
            "stop": (bool(self.stop), "it takes no stop strings: use stop_token_ids"),
            "speculate": (bool(self.speculate), "it guesses no tokens: leave speculate out"),
        }
        for name, (wrong, why) in reasons.items():
            if wrong:
                raise RequestError(f"{name} does not go with beam search", param=name, fix=why)

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0

    @property
    def penalized(self) -> bool:
        return (
            self.repetition_penalty != 1.0
            or self.presence_penalty != 0.0
            or self.frequency_penalty != 0.0
        )


def _items(name: str, value: object) -> tuple[object, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise RequestError(f"{name} is {value!r:.60}; it must be a list", param=name)
    return tuple(value)


def _whole(name: str, value: object, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise RequestError(
            f"{name} is {value!r:.60}; it must be a whole number from {low} to {high}", param=name
        )


def _real(name: str, value: object, low: float, high: float, *, above: bool = False) -> None:
    ok = (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and (low < value if above else low <= value)
        and value <= high
    )
    if not ok:
        span = f"above {low:g}, at most {high:g}" if above else f"from {low:g} to {high:g}"
        raise RequestError(f"{name} is {value!r:.60}; it must be a number {span}", param=name)
