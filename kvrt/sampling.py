"""How a request wants its tokens chosen. Loads no torch.

The choosing is in `kvrt.engine.sampler`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kvrt.checks import (
    Biases,
    Checks,
    Flag,
    Maybe,
    Number,
    Of,
    Texts,
    Whole,
    Wholes,
    check_request,
)
from kvrt.errors import RequestError
from kvrt.structured.constraint import Constraint

MAX_LOGPROBS = 100
MAX_STOPS = 64
MAX_STOP_LENGTH = 1024
MAX_STOP_TOKENS = 1024
MAX_BIASES = 1024
MAX_COMPLETIONS = 128
MAX_DRAFTS = 64
MAX_BEAMS = 64
BAN = -100
"""A bias so low means that the token is never chosen."""
GREEDY_BELOW = 1e-5
"""A temperature that is lower leaves no other token any chance, in single precision."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How to choose tokens and when to stop. Checked when made: a bad value is a `RequestError`.

    The order is that of the field: biases and bans, penalties, temperature, top-k, top-p, min-p,
    then the draw.

    Args:
        max_tokens: at most so many new tokens; None: as many as the context has room for; 0, with
            `prompt_logprobs`: the prompt is only scored.
        min_tokens: end tokens are banned, and stop strings not looked for, until there are so many
            new tokens.
        temperature: divides the logits; 0, and what is below `GREEDY_BELOW`, is greedy.
        top_k: keep the k likeliest tokens; 0 and -1 keep all.
        top_p: keep the likeliest tokens whose probabilities reach this sum (Holtzman et al. 2020).
        min_p: keep tokens at least this fraction as likely as the likeliest.
        repetition_penalty: divides (or, below zero, multiplies) the logits of tokens that occur in
            the prompt or the output (Keskar et al. 2019); 1 is off.
        presence_penalty: subtracted from the logits of tokens that occur in the output.
        frequency_penalty: subtracted once for each occurrence in the output.
        logit_bias: added to the logits of tokens, by their ids; -100 bans a token.
        bad_words: none of these is said. The last token of a word is banned where those before it
            stand in the output, in the way the tokenizer writes the word, with and without a space
            before it.
        seed: makes the draws of this request repeatable, whatever runs beside it.
        stop: stop when one of these strings appears; it is not part of the text.
        stop_token_ids: stop at one of these tokens, besides the model's own end tokens.
        ignore_eos: go on past the model's end tokens (for benchmarks).
        skip_special_tokens: leave special tokens out of the text, and so out of what `stop` looks
            at. The token that ends the answer is never part of it.
        logprobs: give the log-probability of each new token and of so many likeliest ones.
        prompt_logprobs: the same for each prompt token but the first.
        n: so many independent completions of one prompt; they share its pages.
        speculate: at most so many tokens are guessed in a step, from what the text has said before
            or by the runtime's draft model, and verified; 0: none; None: as the runtime is set up,
            and what a constraint leaves no choice of. Never changes what is said.
        beam_width: above 1, beam search: so many continuations are followed at once, and the `n`
            likeliest as wholes are given, all at the end. It draws no tokens, guesses none, and
            takes no stop strings; see `kvrt.sched.beams`.
        length_penalty: of beams: their log-probability is divided by the length to this power
            before they are compared. Above 0, longer ones are preferred.
        constraint: what the text may be, e.g. ``kvrt.Constraint.json_schema(...)``: it ends where
            nothing may follow, and end tokens are banned until it is whole, before all else that is
            asked for here. `max_tokens` and stop strings may cut it short.
    """

    max_tokens: int | None = None
    min_tokens: int = 0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] | Sequence[tuple[int, float]] = ()
    bad_words: Sequence[str] = ()
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
    constraint: Constraint | None = None

    def __post_init__(self) -> None:
        given = {name: getattr(self, name) for name in PARAMS}
        for name, value in check_request(PARAMS, **given).items():
            object.__setattr__(self, name, value)
        if self.beam_width > 1:
            self._check_beams()
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise RequestError(
                f"min_tokens is {self.min_tokens}, and max_tokens {self.max_tokens}",
                param="min_tokens",
                fix="make max_tokens at least min_tokens",
            )
        if self.scores_only and (self.prompt_logprobs is None or self.n > 1):
            raise RequestError(
                "max_tokens is 0, which is for scoring a prompt once",
                param="max_tokens",
                fix="give prompt_logprobs, and n only with at least 1 token",
            )

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
            "logit_bias": (bool(self.logit_bias), "it knows no biases: leave logit_bias out"),
            "bad_words": (bool(self.bad_words), "it bans no words: leave bad_words out"),
            "min_tokens": (self.min_tokens > 0, "it bans no end tokens: leave min_tokens 0"),
            "max_tokens": (self.scores_only, "it needs tokens: leave beam_width out"),
            "stop": (bool(self.stop), "it takes no stop strings: use stop_token_ids"),
            "speculate": (bool(self.speculate), "it guesses no tokens: leave speculate out"),
        }
        for name, (wrong, why) in reasons.items():
            if wrong:
                raise RequestError(f"{name} does not go with beam search", param=name, fix=why)

    @property
    def biases(self) -> tuple[tuple[int, float], ...]:
        """`logit_bias` as pairs, which it has become."""
        return tuple(self.logit_bias)  # type: ignore[arg-type]

    @property
    def scores_only(self) -> bool:
        """Whether no token is wanted, but the prompt's log-probabilities."""
        return self.max_tokens == 0

    @property
    def greedy(self) -> bool:
        return self.temperature < GREEDY_BELOW

    @property
    def penalized(self) -> bool:
        return (
            self.repetition_penalty != 1.0
            or self.presence_penalty != 0.0
            or self.frequency_penalty != 0.0
        )


PARAMS: Checks = {
    "max_tokens": Maybe(Whole(0, 2**31 - 1)),
    "min_tokens": Whole(0, 2**31 - 1),
    "temperature": Number(0, 100),
    "top_k": Whole(-1, 2**31 - 1),
    "top_p": Number(0, 1, above=True),
    "min_p": Number(0, 1),
    "repetition_penalty": Number(0.01, 100),
    "presence_penalty": Number(-100, 100),
    "frequency_penalty": Number(-100, 100),
    "logit_bias": Biases(MAX_BIASES, BAN, -BAN),
    "bad_words": Texts(MAX_STOPS, MAX_STOP_LENGTH),
    "seed": Maybe(Whole(0, 2**64 - 1)),
    "stop": Texts(MAX_STOPS, MAX_STOP_LENGTH),
    "stop_token_ids": Wholes(MAX_STOP_TOKENS, 0, 2**31 - 1),
    "ignore_eos": Flag(),
    "skip_special_tokens": Flag(),
    "logprobs": Maybe(Whole(0, MAX_LOGPROBS)),
    "prompt_logprobs": Maybe(Whole(0, MAX_LOGPROBS)),
    "n": Whole(1, MAX_COMPLETIONS),
    "speculate": Maybe(Whole(0, MAX_DRAFTS)),
    "beam_width": Whole(1, MAX_BEAMS),
    "length_penalty": Number(-10, 10),
    "constraint": Maybe(Of((Constraint,), "kvrt.Constraint.json_schema(...)")),
}
"""Of each field, what it may be."""
