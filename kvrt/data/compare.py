"""Two models on one set: which answers better, and how sure that is.

    a.jsonl, b.jsonl     what each model says, or how likely it finds the set's own answers
    verdicts.jsonl       which is better

One model is loaded at a time. What has come is kept a block at a time, in a folder beside the
output, so the same command goes on where it was.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from kvrt.data.intervals import bootstrap, wilson
from kvrt.data.judge import Pair, Verdict, judged, likelier
from kvrt.data.likelihood import Likely, likelihoods, prompt_tokens
from kvrt.data.reading import Reader, sha256_of
from kvrt.data.rows import Row
from kvrt.data.writing import Part
from kvrt.errors import CapacityError, RequestError
from kvrt.sampling import SamplingParams

if TYPE_CHECKING:
    from kvrt.runtime import Runtime

BLOCK = 16
"""Rows that are computed together, and kept then."""

Side = Literal["a", "b"]
Open = Callable[[str], AbstractContextManager["Runtime"]]
Tell = Callable[[str, int], object]
"""Told what is done, and how many rows of it more."""


@dataclass(frozen=True, slots=True)
class Contest:
    """What is compared.

    Args:
        path: the set.
        a, b: the models.
        judge: the model that judges their answers; None: they are compared by how likely they find
            the answers that the set has.
        params: how they answer.
        limit: rows, the first ones; None: all.
    """

    path: Path
    a: str
    b: str
    judge: str | None
    params: SamplingParams
    limit: int | None = None

    @property
    def rows(self) -> Iterator[Row]:
        with Reader(self.path) as reader:
            yield from islice(reader, self.limit)

    def named(self) -> dict[str, Any]:
        """All that its results depend on."""
        params = self.params
        return {
            "set": sha256_of(self.path), "a": self.a, "b": self.b, "judge": self.judge,
            "max_tokens": params.max_tokens, "temperature": params.temperature,
            "seed": params.seed, "limit": self.limit,
        }  # fmt: skip


class Comparison:
    """One that goes on, in a folder of its own.

    Args:
        state: the folder.
        open: loads a model by its name.
        tell: see `Tell`.

    Raises:
        RequestError: the folder has another comparison, or cannot be written.
    """

    def __init__(self, contest: Contest, state: Path, open: Open, tell: Tell) -> None:
        self._contest = contest
        self._state = state
        self._open = open
        self._tell = tell
        self._named = contest.named()
        try:
            state.mkdir(exist_ok=True)
            self._enter(state / "contest.json")
        except OSError as error:
            raise RequestError(
                f"{state} cannot be written: {error.strerror}", param="output"
            ) from None

    def _enter(self, path: Path) -> None:
        if not path.exists():
            path.write_text(json.dumps(self._named))
        elif json.loads(path.read_bytes()) != self._named:
            raise RequestError(
                f"{self._state} has another comparison, or one with other options",
                param="output",
                fix="delete it to begin anew, or use another output",
            )

    def go_on(self) -> None:
        """All that is left to do.

        Raises:
            KvrtError: a model cannot be loaded, or its device fails. What has come is kept.
        """
        sides: tuple[tuple[Side, str], ...] = (("a", self._contest.a), ("b", self._contest.b))
        for side, model in sides:
            how = self._answered if self._contest.judge is not None else self._scored
            self._computed(side, model, how)
        self._kept("verdicts", self._decided)

    def verdicts(self) -> list[Verdict]:
        """Of all rows, once all is done."""
        return [Verdict(**value) for value in self._lines("verdicts")]

    def pairs(self) -> Iterator[tuple[int, Pair, Verdict]]:
        """Of each row that both have answered: its line, the answers, the verdict."""
        together = zip(
            self._contest.rows, self._lines("a"), self._lines("b"), self.verdicts(), strict=True
        )
        for row, a, b, verdict in together:
            if a.get("text") is not None and b.get("text") is not None:
                yield row.number, Pair(row.prompt_text, a["text"], b["text"]), verdict

    # --- one file after the other ----------------------------------------------------------------

    def _computed(
        self, name: str, model: str, how: Callable[["Runtime", Sequence[Row]], list[Any]]
    ) -> None:
        def compute(part: Part) -> None:
            if self._left(part):
                with self._open(model) as runtime:
                    self._in_blocks(part, lambda rows: how(runtime, rows))

        self._kept(name, compute)

    def _kept(self, name: str, compute: Callable[[Part], None]) -> None:
        path = self._state / f"{name}.jsonl"
        if path.exists():
            return
        with closing(Part(path, self._named)) as part:
            self._tell(name, part.rows)
            compute(part)
            part.finish()

    def _left(self, part: Part) -> bool:
        return next(islice(self._contest.rows, part.rows, None), None) is not None

    def _in_blocks(self, part: Part, how: Callable[[Sequence[Row]], list[Any]]) -> None:
        name = part.path.stem
        rows = islice(self._contest.rows, part.rows, None)
        while block := list(islice(rows, BLOCK)):
            part.add([json.dumps(each).encode() for each in how(block)])
            self._tell(name, len(block))

    def _lines(self, name: str, begin: int = 0) -> Iterator[Any]:
        with (self._state / f"{name}.jsonl").open("rb") as file:
            yield from map(json.loads, islice(file, begin, None))

    # --- what is done with rows ------------------------------------------------------------------

    def _answered(self, runtime: "Runtime", rows: Sequence[Row]) -> list[Any]:
        """What a model says to each."""
        prompts: list[Any] = []
        refused: dict[int, str] = {}
        for number, row in enumerate(rows):
            try:
                prompts.append(prompt_tokens(runtime, row.prompt))
            except RequestError as error:
                refused[number] = str(error)
        results = iter(runtime.generate(prompts, self._contest.params) if prompts else [])
        told: list[Any] = []
        for number in range(len(rows)):
            if number in refused:
                told.append({"text": None, "why": refused[number]})
                continue
            result = next(results)
            if result.error is None:
                told.append({"text": result.text})
            elif isinstance(result.error, RequestError | CapacityError):
                told.append({"text": None, "why": str(result.error)})
            else:
                raise result.error
        return told

    def _scored(self, runtime: "Runtime", rows: Sequence[Row]) -> list[Any]:
        """How likely a model finds the answer of each."""
        found = likelihoods(runtime, [(row.prompt, row.answer or "") for row in rows])
        return [
            {"logprob": each.logprob, "tokens": each.tokens, "nbytes": each.nbytes}
            if isinstance(each, Likely)
            else {"why": str(each)}
            for each in found
        ]

    def _decided(self, part: Part) -> None:
        """Which is better, of each row."""
        both = zip(self._lines("a", part.rows), self._lines("b", part.rows), strict=True)
        judge = self._contest.judge
        if judge is None:
            self._in_blocks(part, lambda rows: _likelier(list(islice(both, len(rows)))))
        elif self._left(part):
            with self._open(judge) as runtime:
                self._in_blocks(
                    part, lambda rows: _judged(runtime, rows, list(islice(both, len(rows))))
                )


def _judged(runtime: "Runtime", rows: Sequence[Row], both: Sequence[tuple[Any, Any]]) -> list[Any]:
    """What a judge says of the answers to each."""
    pairs = {
        number: Pair(row.prompt_text, a["text"], b["text"])
        for number, (row, (a, b)) in enumerate(zip(rows, both, strict=True))
        if a["text"] is not None and b["text"] is not None
    }
    verdicts = dict(zip(pairs, judged(runtime, list(pairs.values())), strict=True))
    return [
        verdicts.get(number, Verdict(None, why=a.get("why") or b.get("why") or "")).as_json()
        for number, (a, b) in enumerate(both)
    ]


def _likelier(both: Sequence[tuple[Any, Any]]) -> list[Any]:
    return [likelier(_likely(a), _likely(b)).as_json() for a, b in both]


def _likely(told: dict[str, Any]) -> Likely | Exception:
    return RequestError(told["why"]) if "why" in told else Likely(**told)


def report(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """What to say of all verdicts.

    ``win_rate`` is a's part of the rows that one of the two has won, ``score`` a's part of all,
    where a tie is half a win. ``better`` is said where the interval of the score leaves no doubt.
    """
    told = [each for each in verdicts if each.winner is not None]
    wins = {side: sum(each.winner == side for each in told) for side in ("a", "b", "tie")}
    points = [{"a": 1.0, "tie": 0.5, "b": 0.0}[each.winner or "tie"] for each in told]
    rate, score = wilson(wins["a"], wins["a"] + wins["b"]), bootstrap(points)
    value = bootstrap([each.value for each in told])
    found: dict[str, Any] = {
        "rows": len(verdicts),
        "judged": len(told),
        "a_wins": wins["a"],
        "b_wins": wins["b"],
        "ties": wins["tie"],
        "win_rate": None if rate is None else rate.as_json(),
        "score": None if score is None else score.as_json(),
        "margin": None if value is None else value.as_json(),
        "better": None if score is None else _better(score.low, score.high),
    }
    asked = [(each.first, 1 - each.second) for each in told
             if each.first is not None and each.second is not None]  # fmt: skip
    if asked:
        chosen = [likely for pair in asked for likely in pair]
        found["position"] = {
            # How likely the judge finds whatever stands first better: 0.5 where it has no bias.
            "first_likely": sum(chosen) / len(chosen),
            "first_always": sum(min(pair) > 0.5 for pair in asked),
            "second_always": sum(max(pair) < 0.5 for pair in asked),
            "asked": len(asked),
        }
    whys = [each.why for each in verdicts if each.winner is None]
    found["not_judged"] = {"rows": len(whys), "first_reason": whys[0] if whys else None}
    return found


def _better(low: float, high: float) -> Side | None:
    return "a" if low > 0.5 else "b" if high < 0.5 else None
