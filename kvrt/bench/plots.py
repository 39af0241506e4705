"""Plots as inline SVG: points over time, lines over time, and histograms.

+--------------+   WIDTH x HEIGHT, of which LEFT and BOTTOM are for the axes
|  .  .    ..  |   marks have the classes s0, s1, ... of their series, which the page's style
| .  ..  .     |   gives colours for light and dark
+--------------+
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

WIDTH, HEIGHT = 560, 220
LEFT, RIGHT, TOP, BOTTOM = 62, 12, 12, 34
BINS = 30
MOST_POINTS = 2000
"""Of a series; of more, so many that are spread evenly."""


@dataclass(frozen=True, slots=True)
class Series:
    """Values over others, with a name."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]


@dataclass(frozen=True, slots=True)
class Frame:
    """How values become places. Both axes begin at 0."""

    right: float
    top: float

    def x(self, value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * value / self.right

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value / self.top


def scatter(title: str, x: str, y: str, series: Sequence[Series]) -> str:
    """A point for each value."""
    return _plot(title, x, y, series, lines=False)


def lines(title: str, x: str, y: str, series: Sequence[Series]) -> str:
    """A line through all values of a series."""
    return _plot(title, x, y, series, lines=True)


def histogram(title: str, x: str, values: Sequence[float]) -> str:
    """How many values there are in each of `BINS` parts of equal width, with the median and the
    95th percentile."""
    if not len(values):
        return _empty(title)
    most = max(values) or 1.0
    counts, edges = np.histogram(values, bins=BINS, range=(0.0, most))
    frame = Frame(_round_up(most), _round_up(int(counts.max())))
    parts = []
    for count, left, right in zip(counts, edges, edges[1:], strict=False):
        if count:
            at, end, top = frame.x(left), frame.x(right), frame.y(int(count))
            width, height = max(1.0, end - at - 1), HEIGHT - BOTTOM - top
            parts.append(
                f'<rect class="s0" x="{at:.1f}" y="{top:.1f}" width="{width:.1f}"'
                f' height="{height:.1f}"><title>{left:.4g} to {right:.4g}: {count}</title></rect>'
            )
    for point in (50, 95):
        at = frame.x(float(np.percentile(values, point)))
        parts.append(
            f'<line class="mark" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
            f'<text class="mark" x="{at + 3:.1f}" y="{TOP + (9 if point == 50 else 20)}">'
            f"p{point}</text>"
        )
    return _svg(title, x, "answers", frame, parts)


def _plot(title: str, x: str, y: str, series: Sequence[Series], *, lines: bool) -> str:
    shown = [each for each in series if len(each.xs)]
    if not shown:
        return _empty(title)
    frame = Frame(
        _round_up(max(max(each.xs) for each in shown)),
        _round_up(max(max(each.ys) for each in shown)),
    )
    parts = []
    for number, each in enumerate(shown):
        step = max(1, math.ceil(len(each.xs) / MOST_POINTS))
        places = [
            (frame.x(a), frame.y(b)) for a, b in zip(each.xs[::step], each.ys[::step], strict=True)
        ]
        if lines:
            path = " ".join(f"{a:.1f},{b:.1f}" for a, b in places)
            parts.append(f'<polyline class="line s{number}" points="{path}"/>')
        else:
            parts += [
                f'<circle class="s{number}" cx="{a:.1f}" cy="{b:.1f}" r="2"/>' for a, b in places
            ]
    return _svg(title, x, y, frame, parts, [each.name for each in shown])


def _svg(
    title: str, x: str, y: str, frame: Frame, parts: Sequence[str], names: Sequence[str] = ()
) -> str:
    key = "".join(
        f'<span class="key"><i class="s{number}"></i>{escape(name)}</span>'
        for number, name in enumerate(names)
        if len(names) > 1
    )
    return (
        f"<figure><figcaption>{escape(title)}{key}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">'
        + "".join([*_axes(x, y, frame), *parts])
        + "</svg></figure>"
    )


def _axes(x: str, y: str, frame: Frame) -> Iterator[str]:
    bottom = HEIGHT - BOTTOM
    for value in _ticks(frame.top):
        at = frame.y(value)
        yield f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
        yield f'<text x="{LEFT - 5}" y="{at + 4:.1f}" text-anchor="end">{value:g}</text>'
    for value in _ticks(frame.right):
        at = frame.x(value)
        yield f'<text x="{at:.1f}" y="{bottom + 14}" text-anchor="middle">{value:g}</text>'
    yield f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 4}" text-anchor="end">{escape(x)}</text>'
    yield f'<text x="4" y="{HEIGHT - 4}">{escape(y)}</text>'


def _ticks(end: float) -> list[float]:
    """Five steps from 0 to a round end."""
    return [float(f"{end * step / 4:.6g}") for step in range(5)]


def _round_up(value: float) -> float:
    """The next of 1, 2, 4, 5 or 8, times a power of ten."""
    if value <= 0 or not math.isfinite(value):
        return 1.0
    unit = 10.0 ** math.floor(math.log10(value))
    return next(step * unit for step in (1, 2, 4, 5, 8, 10, 20) if step * unit >= value)


def _empty(title: str) -> str:
    return f"<figure><figcaption>{escape(title)}</figcaption><p>no values</p></figure>"
