"""How likely a model finds the answers of rows."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvrt.data.rows import Row, Said, Score
from kvrt.errors import CapacityError, RequestError
from kvrt.sampling import SamplingParams

if TYPE_CHECKING:
    from kvrt.outputs import Result
    from kvrt.runtime import Runtime

ONLY_SCORE = SamplingParams(max_tokens=0, prompt_logprobs=0)


@dataclass(frozen=True, slots=True)
class Likely:
    """Of an answer, after its prompt.

    Args:
        logprob: its natural logarithm of probability.
        tokens: it has so many that have a probability: of a text without a prompt, the first has
            none.
        nbytes: of these, as UTF-8.
    """

    logprob: float
    tokens: int
    nbytes: int

    @property
    def perplexity(self) -> float:
        return math.exp(min(-self.logprob / self.tokens, 700.0))

    @property
    def bits_per_byte(self) -> float:
        """What compares models of different tokenizers."""
        return -self.logprob / math.log(2) / max(1, self.nbytes)

    def as_scores(self) -> dict[str, Score]:
        return {
            "perplexity": round(self.perplexity, 4),
            "bits_per_byte": round(self.bits_per_byte, 4),
            "answer_tokens": self.tokens,
        }


NO_SCORES: dict[str, Score] = {"perplexity": None, "bits_per_byte": None, "answer_tokens": None}


def prompt_tokens(runtime: "Runtime", said: Sequence[Said]) -> list[int]:
    """What stands before an answer: the conversation by the model's chat template, if it has one
    and this is one; else the texts.

    Raises:
        RequestError: the template does not take it, or there is no tokenizer.
    """
    tokenizer = runtime.model.need_tokenizer()
    if said and tokenizer.has_chat:
        messages = [{"role": each.role or "user", "content": each.text} for each in said]
        return runtime.model.encode_chat(messages)
    return runtime.model.encode("\n".join(each.text for each in said))


def likelihoods(
    runtime: "Runtime", rows: Sequence[tuple[Sequence[Said], str]]
) -> list[Likely | RequestError | CapacityError]:
    """Of answers after what was said before; computed together.

    Args:
        rows: of each, the prompt, and the answer.

    Returns:
        Of each, how likely it is, or why that is not known: it is too long, or there is nothing.
    """
    asked: list[list[int]] = []
    found: list[Likely | RequestError | CapacityError | int] = []
    counted: list[int] = []
    for said, answer in rows:
        try:
            before = prompt_tokens(runtime, said)
            own = runtime.model.encode(answer, special=False) if answer else []
        except RequestError as error:
            found.append(error)
            continue
        if not own or len(before) + len(own) < 2:
            found.append(RequestError("there is no answer", param="answer"))
            continue
        found.append(len(asked))
        counted.append(min(len(own), len(before) + len(own) - 1))
        asked.append([*before, *own])
    results = runtime.generate(asked, ONLY_SCORE) if asked else []
    texts = [answer for _, answer in rows]
    return [
        _likely(results[each], counted[each], text) if isinstance(each, int) else each
        for each, text in zip(found, texts, strict=True)
    ]


def _likely(result: "Result", count: int, text: str) -> Likely | RequestError | CapacityError:
    if isinstance(result.error, RequestError | CapacityError):
        return result.error
    if result.error is not None:
        raise result.error
    assert result.prompt_logprobs is not None, "they were asked for"
    logprob = sum(each.logprob for each in result.prompt_logprobs[-count:])
    return Likely(logprob, count, len(text.encode("utf-8", "surrogatepass")))


def answer_of(row: Row) -> tuple[Sequence[Said], str]:
    """What is scored of a row: its answer after its prompt; without one, the prompt as a text."""
    if row.answer is None:
        return (), row.prompt_text
    return row.prompt, row.answer
