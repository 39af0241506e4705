"""The rates of `ci/sharing rates` as a picture: how many times sooner the first token comes where
models share memory than where each has a third of it.

    ci/sharing plot docs/sharing.md docs/sharing-rates.svg

It draws the table that a page has, so that picture and table are of one run.
"""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

GOAL, FLOOR = 2.0, 0.97
"""Of the ratio: at the knee, and anywhere."""

WIDTH, HEIGHT = 640, 300
LEFT, RIGHT, TOP, BOTTOM = 60, 16, 36, 44
LOW, HIGH = 0.5, 8.0

LINES = (("mean", "#0b6bcb"), ("p99", "#c2410c"))

_TIMES = r"[\d,]+ ms, [\d,]+ ms"
_ROW = re.compile(rf"\| ([\d.]+) \| {_TIMES} \| ([\d.]+) \| {_TIMES} \| ([\d.]+) \|")


@dataclass(frozen=True, slots=True)
class Ratio:
    """Of one rate: thirds over shared.

    Args:
        rate: requests a second in a burst.
        mean: of the seconds to the first token.
        p99: the same.
    """

    rate: float
    mean: float
    p99: float


def ratios_of(page: str) -> list[Ratio]:
    """What the table of a page says.

    Raises:
        SystemExit: it has none.
    """
    found = [Ratio(*map(float, match.groups())) for match in _ROW.finditer(page)]
    if not found:
        raise SystemExit("the page has no table of ci/sharing rates")
    return found


def drawn(ratios: Sequence[Ratio]) -> str:
    """An SVG: both axes logarithmic."""
    rates = [ratio.rate for ratio in ratios]
    across = _scale(min(rates), max(rates), LEFT, WIDTH - RIGHT)
    up = _scale(LOW, HIGH, HEIGHT - BOTTOM, TOP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        _text(LEFT, 18, "time to the first token: a third each, over shared", "start"),
        _text(WIDTH / 2, HEIGHT - 8, "requests/s in a burst", "middle"),
    ]
    for value in (LOW, 1, GOAL, 4, HIGH):
        parts.append(_line(LEFT, up(value), WIDTH - RIGHT, up(value), "#d4d4d8"))
        parts.append(_text(LEFT - 8, up(value) + 4, f"{value:g}x", "end"))
    parts.append(_line(LEFT, up(FLOOR), WIDTH - RIGHT, up(FLOOR), "#71717a", dashes="4 3"))
    for rate in rates:
        parts.append(_text(across(rate), HEIGHT - BOTTOM + 18, f"{rate:g}", "middle"))
    for number, (name, color) in enumerate(LINES):
        points = [(across(ratio.rate), up(getattr(ratio, name))) for ratio in ratios]
        parts += _curve(points, color)
        parts.append(_text(WIDTH - RIGHT - 90 * number, 18, name, "end", color))
    return "\n".join([*parts, "</svg>", ""])


def draw(page: Path, picture: Path) -> str:
    """Draw a page's table; what is said of it."""
    ratios = ratios_of(page.read_text())
    picture.write_text(drawn(ratios))
    return f"{picture}: {len(ratios)} rates"


def _scale(low: float, high: float, first: float, last: float) -> Callable[[float], float]:
    """Logarithmic; what is beyond an end is drawn at it."""

    def place(value: float) -> float:
        part = math.log(min(max(value, low), high) / low) / math.log(high / low)
        return first + part * (last - first)

    return place


def _curve(points: Sequence[tuple[float, float]], color: str) -> Iterable[str]:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    yield f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"/>'
    for x, y in points:
        yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{color}"/>'


def _line(x1: float, y1: float, x2: float, y2: float, color: str, dashes: str = "none") -> str:
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{color}"'
        f' stroke-dasharray="{dashes}"/>'
    )


def _text(x: float, y: float, text: str, anchor: str, color: str = "#18181b") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{color}">{text}</text>'
