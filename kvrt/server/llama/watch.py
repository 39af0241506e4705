"""What the engine tells of requests and steps, as llama-server counts it: ``/metrics``.

Each name is llama-server's, and its value means the same; docs/llama-server.md says where the two
engines differ.
"""

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from kvrt.engine.events import Event, RequestFinished, RequestStarted, StepDone
from kvrt.outputs import Result


@dataclass(slots=True)
class Pace:
    """Tokens, and the seconds that they took."""

    tokens: int = 0
    seconds: float = 0.0

    def add(self, tokens: int, seconds: float) -> None:
        self.tokens += tokens
        self.seconds += seconds

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0


@dataclass(slots=True)
class Paces:
    """Of prompts and of answers."""

    prompts: Pace = field(default_factory=Pace)
    answers: Pace = field(default_factory=Pace)


def seconds_of(result: Result) -> tuple[float, float]:
    """That its prompt took, from its first step to the first token, and its answer from there."""
    times = result.timings
    first = times.first_token or times.total
    return max(0.0, first - times.queued), max(0.0, times.total - first)


class Watch:
    """Observes an engine. What it counts is read on the event loop."""

    def __init__(self) -> None:
        self.begun = time.time()
        self.cached: dict[str, int] = {}
        """Of requests that run: how much of the prompt was not computed."""
        self._lock = threading.Lock()
        self._paces = Paces()
        self._since = Paces()
        """Since the last scrape."""
        self._cached = self._steps = self._rows = self._longest = 0
        self._drafted = self._accepted = self._verified = 0

    def observe(self, event: Event) -> None:
        """On the engine's thread."""
        with self._lock:
            match event:
                case RequestStarted():
                    self.cached[event.request_id] = event.cached_tokens
                case StepDone():
                    self._steps += 1
                    self._rows += event.running
                case RequestFinished():
                    self.cached.pop(event.result.request_id, None)
                    self._ended(event.result)

    def _ended(self, result: Result) -> None:
        usage = result.usage
        prompt, answer = seconds_of(result)
        for paces in (self._paces, self._since):
            paces.prompts.add(usage.prompt_tokens - usage.cached_tokens, prompt)
            paces.answers.add(usage.completion_tokens, answer)
        self._cached += usage.cached_tokens
        longest = max((len(each.token_ids) for each in result.completions), default=0)
        self._longest = max(self._longest, usage.prompt_tokens + longest)
        self._drafted += usage.drafted_tokens
        self._accepted += usage.accepted_tokens
        self._verified += usage.drafted_tokens > 0

    def text(self, busy: int, waiting: int) -> str:
        """For Prometheus.

        Args:
            busy, waiting: requests that have a slot, and that wait for one.
        """
        with self._lock:
            lines = [line for each in self._families(busy, waiting) for line in _family(*each)]
            self._since = Paces()
        return "".join(lines)

    def _families(self, busy: int, waiting: int) -> Iterator[tuple[str, str, str, float]]:
        prompts, answers = self._paces.prompts, self._paces.answers
        counters = {
            "prompt_tokens_total": ("Prompt tokens computed", prompts.tokens),
            "prompt_tokens_cached_total": ("Prompt tokens whose pages were there", self._cached),
            "prompt_seconds_total": ("Seconds on prompts", prompts.seconds),
            "tokens_predicted_total": ("Tokens said", answers.tokens),
            "tokens_predicted_seconds_total": ("Seconds on them", answers.seconds),
            "n_decode_total": ("Steps of the engine", self._steps),
            "n_tokens_max": ("Longest prompt and answer together", self._longest),
            "spec_decode_num_draft_tokens_total": ("Tokens guessed", self._drafted),
            "spec_decode_num_accepted_tokens_total": ("Guesses that came true", self._accepted),
            "spec_decode_num_drafts_total": ("Answers with guesses", self._verified),
        }
        gauges = {
            "prompt_tokens_seconds": ("Prompt tokens a second", self._since.prompts.rate),
            "predicted_tokens_seconds": ("Tokens a second", self._since.answers.rate),
            "requests_processing": ("Requests that have a slot", busy),
            "requests_deferred": ("Requests that wait for one", waiting),
            "n_busy_slots_per_decode": ("Sequences a step", self._rows / max(1, self._steps)),
        }
        for kind, families in (("counter", counters), ("gauge", gauges)):
            for name, (what, value) in families.items():
                yield kind, name, what, value


def _family(kind: str, name: str, what: str, value: float) -> Iterator[str]:
    yield f"# HELP llamacpp:{name} {what}.\n# TYPE llamacpp:{name} {kind}\n"
    yield f"llamacpp:{name} {value:.12g}\n"
