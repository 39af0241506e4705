"""What `kvrt tune` found, for people and as JSON."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from kvrt.config import RuntimeConfig
from kvrt.profiling.bottleneck import Goal
from kvrt.profiling.search import Search, Setting, Tried
from kvrt.profiling.slo import Objective

if TYPE_CHECKING:
    from kvrt.profiling.bottleneck import Finding
    from kvrt_cli.tuning.trials import Run


@dataclass(frozen=True, slots=True)
class Tuned:
    """A search, and what came of it.

    Args:
        config: what was compared with.
        load: the requests, in words.
        fields: of `RuntimeConfig`, that were searched.
        runs: of each setting.
        finding: what bounds the best one; None: nobody looked.
        why: it ended before it was done; empty: it was.
    """

    config: RuntimeConfig
    goal: Goal
    slo: Sequence[Objective]
    load: str
    fields: Sequence[str]
    search: Search
    runs: "Mapping[Setting, Sequence[Run]]"
    finding: "Finding | None"
    why: str

    @property
    def changes(self) -> dict[str, Any]:
        """The fields whose best value is not the one that they have."""
        pairs = zip(self.fields, self.search.best, self.search.default, strict=True)
        return {name: best for name, best, default in pairs if best != default}

    @property
    def flags(self) -> str:
        """The options that set them."""
        return " ".join(f"--{name.replace('_', '-')} {v}" for name, v in self.changes.items())

    @property
    def verdict(self) -> str:
        """``better``, ``within noise`` or ``unproven``; ``default``: nothing is better."""
        if not self.changes:
            return "default"
        if not self.search.gain.ratios:
            return "unproven"
        return "better" if self.search.gain.certain else "within noise"

    @property
    def keeps_slo(self) -> bool | None:
        """Whether the best setting kept all objectives, by its median run; None: there are none."""
        if not self.slo:
            return None
        excess = [run.excess(self.slo) for run in self.runs[self.search.best]]
        return statistics.median(excess) <= 1.0


def lines(found: Tuned, *, holds: bool, inexact: bool) -> Iterator[str]:
    """For people.

    Args:
        holds: answers were compared.
        inexact: they were allowed to differ.
    """
    search = found.search
    yield f"{found.goal} of {found.config.model}: {found.load}"
    yield ""
    yield f"{'setting':<32} {'beside the best before it':<28} runs"
    for tried in search.tried:
        name = f"{tried.knob.replace('_', '-')} {tried.value}"
        yield f"{name:<32} {_said(tried, search.noise):<28} {tried.runs or '':>4}"
    yield ""
    yield f"{search.done} runs; all {search.grid} settings, three times each, would be" + (
        f" {3 * search.grid}; runs of one setting differ by {search.noise:.1%}"
    )
    if found.why:
        yield f"{found.why}: this is the best so far"
    if not holds and not inexact:
        yield "this device's bits depend on the batch, so that answers were not compared"
    yield ""
    yield from _result(found)
    if found.finding is not None:
        yield ""
        yield f"bottleneck: {found.finding.bound}; {found.finding.why}"
        yield f"  {found.finding.fix}"


def _said(tried: Tried, noise: float) -> str:
    if tried.ratio is None:
        return tried.why
    if tried.taken:
        return f"{tried.ratio:.2f} times as good: taken"
    close = abs(tried.ratio - 1) <= noise
    return f"{tried.ratio:.2f} times" + (", within noise" if close else " as good")


def _result(found: Tuned) -> Iterator[str]:
    search, gain = found.search, found.search.gain
    verdict = found.verdict
    if verdict == "default":
        yield "set: nothing; what was tried is no better than what there is, beyond noise"
    else:
        yield f"set: {found.flags}"
    if verdict == "unproven":
        yield "  not compared with the default in pairs: the runs were not enough"
    elif gain.ratios:
        low, high = min(gain.ratios), max(gain.ratios)
        yield (
            f"  {gain.median:.2f} times as good as the default ({low:.2f} to {high:.2f} in"
            f" {len(gain.ratios)} pairs)"
            + ("" if verdict == "better" else ": within noise, so that it may be none")
        )
    best = found.runs[search.best]
    rate = statistics.median(run.rate for run in best)
    first = statistics.median(t for run in best for t in run.times["ttft"])
    whole = statistics.median(t for run in best for t in run.times["e2e"])
    yield f"  {rate:.1f} tokens/s; first token after {first * 1e3:.0f} ms, last after" + (
        f" {whole * 1e3:.0f} ms (medians)"
    )
    if found.keeps_slo is not None:
        yield (
            "  it keeps --slo"
            if found.keeps_slo
            else "  it does not keep --slo: nothing tried does"
        )


def facts(found: Tuned) -> dict[str, Any]:
    """All of it."""
    search = found.search
    best = found.runs[search.best]
    return {
        "goal": found.goal,
        "load": found.load,
        "flags": found.flags,
        "set": found.changes,
        "verdict": found.verdict,
        "gain": search.gain.median,
        "pairs": list(search.gain.ratios),
        "keeps_slo": found.keeps_slo,
        "noise": search.noise,
        "runs": search.done,
        "grid": search.grid,
        "ended": found.why or "done",
        "tokens_per_s": statistics.median(run.rate for run in best),
        "ttft_s": statistics.median(t for run in best for t in run.times["ttft"]),
        "e2e_s": statistics.median(t for run in best for t in run.times["e2e"]),
        "tried": [
            {
                "knob": each.knob,
                "value": each.value,
                "ratio": each.ratio,
                "runs": each.runs,
                "taken": each.taken,
                "why": each.why,
            }
            for each in search.tried
        ],
        "bottleneck": None if found.finding is None else asdict(found.finding),
    }
