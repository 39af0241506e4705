"""The best of many settings, by few measurements that are not exact.

Each knob has a few values. The search goes from the default along one knob after another
(coordinate search) and lets the values of a knob race: all are measured in turns with the best
setting so far, the slower half leaves, those that stay are measured again (successive halving:
Karnin, Koren, Somekh, Almost optimal exploration in multi-armed bandits, ICML 2013).

    round 1   best  a  b  c  d      each beside the best one of the same round: what the machine
    round 2   d  b  best            does meanwhile slows both
    round 3   best  b

A value is taken if its lead is larger than what measuring the same setting again and again differs
by. As knobs depend on each other, those that still may be better race again while runs are left. At
the end the best one is measured in pairs with the default, so that the gain that is named was not
itself the reason to choose it.
"""

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from kvrt.errors import ConfigError

Setting = tuple[Any, ...]
"""A value of each knob, in their order."""

Measure = Callable[[Setting], float]
"""How good a setting is: more than 0, and more is better. Raises `Unfit`."""

ROUNDS = 3
"""Of a race, at most."""

PAIRS = 5
"""Of the best setting and the default, at the end."""

CLOSE = 0.10
"""A value that was worse by no more than that may be better beside other values of other knobs."""

LEAST_GAIN = 0.01
"""A lead that is smaller is none, however exactly it is measured."""

NOISE = 0.03
"""Of measurements, relative to each other, as long as nothing is known of it."""

SPREAD = 1.5
"""A value that is behind by so many times the noise is slower."""

KNOWN = 6
"""From so many differences on, the noise is known."""


class Unfit(Exception):
    """A setting cannot be used; says why."""


@dataclass(frozen=True, slots=True)
class Knob:
    """Something to choose.

    Args:
        name: for people.
        values: the first one is the default.
    """

    name: str
    values: tuple[Any, ...]


class Tried(NamedTuple):
    """What a race said of a value, beside the best one before it.

    Args:
        knob: its knob's name.
        value: of it.
        ratio: how many times as good, by the median; None: it could not be used.
        runs: that is known from.
        taken: it became part of the best setting.
        why: it could not be used.
    """

    knob: str
    value: Any
    ratio: float | None
    runs: int
    taken: bool
    why: str = ""


@dataclass(frozen=True, slots=True)
class Gain:
    """The best setting beside the default, in pairs.

    Args:
        ratios: of each pair, how many times as good.
    """

    ratios: tuple[float, ...] = ()

    @property
    def median(self) -> float:
        return statistics.median(self.ratios) if self.ratios else 1.0

    @property
    def certain(self) -> bool:
        """Of five pairs in turns, all say the same: by chance, that is one in 32."""
        return bool(self.ratios) and min(self.ratios) > 1.0


@dataclass(slots=True)
class Search:
    """One search, which may be looked at while it goes on, and when it was interrupted.

    Args:
        knobs: the most telling ones first.
        measure: called for each run.
        runs: at most.
    """

    knobs: Sequence[Knob]
    measure: Measure
    runs: int
    best: Setting = ()
    done: int = 0
    tried: list[Tried] = field(default_factory=list)
    gain: Gain = field(default_factory=Gain)
    _noise: list[float] = field(default_factory=list)
    _seen: dict[Setting, list[float]] = field(default_factory=dict)
    _unfit: dict[Setting, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.runs < 1:
            raise ConfigError("runs must be 1 or more")
        if not self.best:
            self.best = self.default

    @property
    def default(self) -> Setting:
        return tuple(knob.values[0] for knob in self.knobs)

    @property
    def grid(self) -> int:
        """How many settings there are."""
        return math.prod(len(knob.values) for knob in self.knobs)

    @property
    def noise(self) -> float:
        """What two measurements of one setting differ by, as a part: the median of what was seen
        within races, by which a setting moved beside another from round to round."""
        seen = self._noise
        return NOISE if len(seen) < KNOWN else statistics.median(seen)

    def run(self) -> None:
        """Search until nothing is left to try, or no runs are. What it raises, `measure` raised;
        what was found until then stays.

        Raises:
            Unfit: the default cannot be used.
        """
        self._first()
        for again in (False, True):
            for place in range(len(self.knobs)):
                self._race(place, again=again)
        self._compare()

    # --- races -------------------------------------------------------------------------------

    def _first(self) -> None:
        self._sample(self.default)

    def _race(self, place: int, *, again: bool) -> None:
        """Let the values of a knob race with that of the best setting."""
        knob, best = self.knobs[place], self.best
        others = [value for value in knob.values if value != best[place]]
        if again:
            others = [value for value in others if self._close(knob.name, value)]
        alive = {value: self._with(place, value) for value in others}
        logs: dict[Any, list[float]] = {value: [] for value in alive}
        for turn in range(ROUNDS):
            if not alive or self._left < len(alive) + 1:
                break
            for value in self._round(alive, logs, backwards=bool(turn % 2)):
                del alive[value]
                why = self._unfit[self._with(place, value)]
                self.tried.append(Tried(knob.name, value, None, 0, taken=False, why=why))
            order = sorted(alive, key=lambda value: -statistics.median(logs[value]))
            if turn and order and not self._may_win(logs[order[0]]):
                break
            if order:
                fastest, spread = statistics.median(logs[order[0]]), SPREAD * self.noise
                for value in order[math.ceil(len(order) / 2) :]:
                    if statistics.median(logs[value]) < fastest - spread:
                        del alive[value]
        known = [value for value in logs if logs[value]]
        winner = self._winner({value: logs[value] for value in alive if logs[value]})
        for value in known:
            ratio = math.exp(statistics.median(logs[value]))
            taken = winner is not None and value == winner[0]
            self.tried.append(Tried(knob.name, value, ratio, len(logs[value]), taken))
        if winner is not None:
            self.best = self._with(place, winner[0])

    def _round(
        self, alive: Mapping[Any, Setting], logs: dict[Any, list[float]], *, backwards: bool
    ) -> list[Any]:
        """Measure each once, and the best one. Returns the values that cannot be used."""
        best, unfit = self.best, []
        turns: list[tuple[Any, Setting]] = [(None, best), *alive.items()]
        scores: list[tuple[Any, float]] = []
        beside = 0.0
        for number, (value, setting) in enumerate(reversed(turns) if backwards else turns):
            try:
                score = self._sample(setting)
            except Unfit:
                unfit.append(value)
                continue
            if setting == best and number in (0, len(turns) - 1):
                beside = score
            else:
                scores.append((value, score))
        for value, score in scores:
            ratio = math.log(score / beside)
            if logs[value]:
                self._noise.append(abs(ratio - logs[value][-1]) / math.sqrt(2))
            logs[value].append(ratio)
        return unfit

    def _may_win(self, logs: Sequence[float]) -> bool:
        return statistics.median(logs) > -SPREAD * self.noise

    def _winner(self, logs: Mapping[Any, Sequence[float]]) -> tuple[Any, float] | None:
        """The value that leads by more than noise explains."""
        if not logs:
            return None
        value = max(logs, key=lambda value: statistics.median(logs[value]))
        lead, count = statistics.median(logs[value]), len(logs[value])
        least = max(math.log1p(LEAST_GAIN), self.noise / math.sqrt(count))
        return (value, lead) if count > 1 and lead > least else None

    def _close(self, knob: str, value: Any) -> bool:
        """Whether it may still be better, by what was seen last."""
        last = [each for each in self.tried if each.knob == knob and each.value == value]
        return not last or (last[-1].ratio is not None and last[-1].ratio > 1 - CLOSE)

    # --- the end -----------------------------------------------------------------------------

    def _compare(self) -> None:
        """Measure the best one beside the default: one that is no better is not worth a change."""
        if self.best == self.default:
            return
        for best, default in self._pairs():
            self.gain = Gain((*self.gain.ratios, best / default))
        if self.gain.ratios and self.gain.median < 1.0:
            self.best, self.gain = self.default, Gain()

    def _pairs(self) -> Iterator[tuple[float, float]]:
        for number in range(PAIRS):
            if number % 2:
                default, best = self._sample(self.default), self._sample(self.best)
            else:
                best, default = self._sample(self.best), self._sample(self.default)
            yield best, default

    # --- within ------------------------------------------------------------------------------

    @property
    def _left(self) -> int:
        """Runs, beside those of the comparison at the end."""
        return self.runs - self.done - 2 * PAIRS

    def _with(self, place: int, value: Any) -> Setting:
        return (*self.best[:place], value, *self.best[place + 1 :])

    def _sample(self, setting: Setting) -> float:
        if setting in self._unfit:
            raise Unfit(self._unfit[setting])
        self.done += 1
        try:
            score = self.measure(setting)
        except Unfit as error:
            self._unfit[setting] = str(error)
            raise
        self._seen.setdefault(setting, []).append(score)
        return score

    @property
    def seen(self) -> Mapping[Setting, Sequence[float]]:
        """All measurements of each setting."""
        return self._seen
