"""What a recording comes to: seconds of each phase, and how much was read and computed for it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kvrt.engine.events import Span, StepPhases
from kvrt.model.weights.weights import weights_of
from kvrt.profiling.bottleneck import Measured
from kvrt.profiling.recorder import Ended, Recording
from kvrt.runtime import Runtime

DEVICE = ("draft", "run", "wait")
"""Phases in which the device computes."""

BUSY_S = 50e-6
"""A wait that is longer means that the device was at work since the step was launched: then what
the host did meanwhile cost nothing."""


@dataclass(frozen=True, slots=True)
class Phase:
    """All spans of one name, within the same others.

    Args:
        name: of the spans, after those that they lie within: ``answer/detokenise``.
    """

    name: str
    count: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Totals:
    """Of the steps of a recording.

    Args:
        steps: how many.
        seconds: of all of them.
        computing: of these, while the device computed.
        phases: as they first came.
        prompt_tokens: computed of prompts.
        answer_tokens: computed of answers.
        context_tokens: whose keys and values were read.
        waiting: sequences that waited in a step, on average.
    """

    steps: int
    seconds: float
    computing: float
    phases: tuple[Phase, ...]
    prompt_tokens: int
    answer_tokens: int
    context_tokens: int
    waiting: float


def totals(steps: Sequence[StepPhases]) -> Totals:
    found: dict[str, tuple[int, float]] = {}
    for step in steps:
        for name, seconds in _named(step.spans):
            count, sum_s = found.get(name, (0, 0.0))
            found[name] = count + 1, sum_s + seconds
    turns = [[span for span in step.spans if not span.depth] for step in steps]
    return Totals(
        steps=len(steps),
        seconds=sum(span.ended - span.began for spans in turns for span in spans),
        computing=sum(map(_computing, turns)),
        phases=tuple(Phase(name, count, seconds) for name, (count, seconds) in found.items()),
        prompt_tokens=sum(step.prompt_tokens for step in steps),
        answer_tokens=sum(step.answer_tokens for step in steps),
        context_tokens=sum(step.context_tokens for step in steps),
        waiting=sum(step.waiting for step in steps) / max(1, len(steps)),
    )


def _named(spans: Iterable[Span]) -> Iterable[tuple[str, float]]:
    """Each with the names of what it lies within."""
    path: list[str] = []
    for span in sorted(spans, key=lambda span: (span.began, span.depth)):
        path[span.depth :] = [span.name]
        yield "/".join(path), span.ended - span.began


def _computing(turns: Sequence[Span]) -> float:
    """Seconds of a step in which the device computed."""
    waits = [span for span in turns if span.name == "wait" and span.ended - span.began > BUSY_S]
    runs = [span for span in turns if span.name == "run"]
    if waits and runs:
        drafts = sum(span.ended - span.began for span in turns if span.name == "draft")
        return drafts + waits[-1].ended - runs[0].began
    return sum(span.ended - span.began for span in turns if span.name in DEVICE)


@dataclass(frozen=True, slots=True)
class Work:
    """What steps of a model take of a device at the least.

    Args:
        weight_bytes: of all weights.
        parameters: numbers that each token is multiplied with, but those of experts and the head.
        experts: numbers of all experts' matrices; 0: there are none.
        chosen: the part of these that a token is multiplied with.
        head: numbers that a token of an answer is multiplied with besides.
        token_bytes: keys and values of a token.
    """

    weight_bytes: int
    parameters: int
    experts: int
    chosen: float
    head: int
    token_bytes: float

    @classmethod
    def of(cls, runtime: Runtime) -> "Work":
        spec = runtime.model.spec
        layers = experts = 0
        for weight in weights_of(spec):
            size = sum(part.numel for part in weight.parts)
            if weight.of_experts:
                experts += size
            elif weight.layer is not None:
                layers += size
        router = None if spec.experts is None else spec.experts.router.chosen
        return cls(
            weight_bytes=runtime.model.weight_bytes,
            parameters=layers,
            experts=experts,
            chosen=0.0 if router is None or spec.experts is None else router / spec.experts.count,
            head=spec.vocab * spec.hidden,
            token_bytes=runtime.cache.page_bytes / runtime.config.page_size,
        )

    def read_bytes(self, steps: Sequence[StepPhases]) -> float:
        """Weights once a step, of experts those that its tokens can have chosen; and all keys and
        values of its sequences."""
        numbers = self.parameters + self.experts + self.head
        each = self.weight_bytes / numbers
        read = 0.0
        for step in steps:
            if tokens := step.prompt_tokens + step.answer_tokens:
                experts = self.experts * min(1.0, tokens * self.chosen)
                read += (self.parameters + self.head + experts) * each
                read += step.context_tokens * self.token_bytes
        return read

    def operations(self, found: Totals) -> float:
        """Of the products with weights; attention's own come on top."""
        return (
            found.prompt_tokens * self.prompt_token_operations
            + found.answer_tokens * self.answer_token_operations
        )

    @property
    def prompt_token_operations(self) -> float:
        """Of the products that a token of a prompt takes; a multiply-add is two."""
        return 2.0 * (self.parameters + self.experts * self.chosen)

    @property
    def answer_token_operations(self) -> float:
        """Of those that a token takes behind which another is chosen."""
        return self.prompt_token_operations + 2.0 * self.head


@dataclass(frozen=True, slots=True)
class Limits:
    """What a device can do; None: it does not say.

    Args:
        read_bytes_per_s: of its memory.
        operations_per_s: with weights of the model's kind.
    """

    read_bytes_per_s: float | None = None
    operations_per_s: float | None = None


def measured(recording: Recording, work: Work, limits: Limits, kv_limit: int) -> Measured:
    """What `kvrt.profiling.bottleneck.bottleneck` asks, of the requests that ended.

    Args:
        kv_limit: bytes that KV memory may take.
    """
    found = totals(recording.steps)
    ended = [what for _, what in recording.happened if isinstance(what, Ended)]
    count = max(1, len(ended))
    peak = max((each.mapped_bytes for each in recording.standings), default=0)
    return Measured(
        seconds=found.seconds,
        computing=min(found.computing, found.seconds),
        requests=len(ended),
        request_seconds=sum(each.timings.total for each in ended) / count,
        queued_seconds=sum(each.timings.queued for each in ended) / count,
        waiting=found.waiting,
        preemptions=sum(each.usage.preemptions for each in ended),
        kv_peak=min(1.0, peak / kv_limit),
        read_bytes=work.read_bytes(recording.steps),
        operations=work.operations(found),
        read_bytes_per_s=limits.read_bytes_per_s,
        operations_per_s=limits.operations_per_s,
    )
