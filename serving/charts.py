"""Charts as SVG, made on the server: pure functions from numbers to markup.

The drawings are fluid: text and dots stand at percentages of the width, curves live in an inner viewport that
stretches, so that one drawing is sharp and readable from a phone to a wall. Colours come from classes
(serving/page/assets/app.css): no style attribute is written, which the page's content security policy would refuse.
All text is escaped here.

Each chart has a title and a description for screen readers; `table` gives the same figures without eyes or mouse.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

from serving import numbers

AxisKind = Literal["time", "count"]

# Percent of the width: room for the scale's labels at the left, and for the last dot at the right.
LEFT, RIGHT = 7.0, 98.8
# Pixels: above the plot, and below it for the labels of the x axis.
TOP, BOTTOM = 18, 28
UNITS = 1000.0
X_STEPS, Y_STEPS = 4, 5
# A band of a bin with few impressions may reach far up; the scale follows the curves, not such a band.
BAND_HEADROOM = 1.6


@dataclass(frozen=True)
class Point:
    """One point of a curve; `low` and `high` are the interval's ends, None where there is none."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Curve:
    """A named curve. `look` is the CSS class that colours it (learned, control, kl, v0 .. v7); points rise in x."""

    name: str
    look: str
    points: Sequence[Point]


@dataclass(frozen=True)
class Level:
    """A horizontal dashed line with its name: a budget, an oracle."""

    name: str
    look: str
    y: float


@dataclass(frozen=True)
class Layer:
    """One layer of a stacked area: `sizes` has one entry per x."""

    name: str
    look: str
    sizes: Sequence[float]


@dataclass(frozen=True)
class Frame:
    """What every chart has: an id unique on the page, words for screen readers, the kind of x axis, the height."""

    chart_id: str
    title: str
    description: str
    axis: AxisKind = "count"
    height: int = 280


def line_chart(
    frame: Frame,
    curves: Sequence[Curve],
    levels: Sequence[Level] = (),
    y_text: Callable[[float], str] = numbers.compact,
    x_range: tuple[float, float] | None = None,
) -> str:
    """Curves with interval bands over a scale that starts at 0; a curve of one point is a dot with its whisker.

    Args:
      y_text: writes a value of the scale.
      x_range: the ends of the x axis; None takes the points' own.
    """
    points = [point for curve in curves for point in curve.points]
    if not points:
        return _wrap(frame, "", _empty(frame))
    x_low, x_high = x_range or _range([point.x for point in points])
    step, top = _y_scale(curves, levels)
    at = _Mapping(x_low, x_high, top, frame.height)

    bands = "".join(_band(curve, at) for curve in curves)
    lines = "".join(_line(curve, at) for curve in curves)
    marks = "".join(_level(level, at) for level in levels) + "".join(_end(curve, at) for curve in curves)
    scale = _grid([(n * step, y_text(n * step)) for n in range(round(top / step) + 1)], at)
    places = [at.percent_x(x) for x in sorted({point.x for point in points})]
    return _wrap(frame, scale + _x_axis(frame, at), _plot(bands + lines, at) + marks, places)


def per_thousand_scale(rate: float) -> str:
    """Writes a rate in [0, 1] on a scale of clicks per 1,000."""
    return numbers.compact(round(rate * 1000.0, 6))


def stacked_area(frame: Frame, xs: Sequence[float], layers: Sequence[Layer]) -> str:
    """Shares of a whole over x: layers stacked to 100 %, the first at the bottom; empty columns are left out."""
    columns = [n for n in range(len(xs)) if sum(layer.sizes[n] for layer in layers) > 0]
    if not columns:
        return _wrap(frame, "", _empty(frame))
    places = [xs[n] for n in columns]
    if len(places) == 1:
        # One bin has no width of its own: it fills the plot.
        columns, places = columns * 2, [places[0], places[0] + 1.0]
    at = _Mapping(places[0], places[-1], 1.0, frame.height)
    totals = [sum(layer.sizes[n] for layer in layers) for n in columns]
    floor = [0.0] * len(columns)
    areas = []
    for layer in layers:
        roof = [f + layer.sizes[n] / total for f, n, total in zip(floor, columns, totals, strict=True)]
        upper = [(at.unit_x(x), at.unit_y(y)) for x, y in zip(places, roof, strict=True)]
        lower = [(at.unit_x(x), at.unit_y(y)) for x, y in zip(places, floor, strict=True)]
        title = f"<title>{escape(layer.name)}</title>"
        areas.append(f'<path class="area {layer.look}" d="{_path(upper + lower[::-1])}Z">{title}</path>')
        floor = roof
    marks = [at.percent_x(x) for x in places] if len(set(columns)) > 1 else [(LEFT + RIGHT) / 2.0]
    scale = _grid([(share, numbers.percent(share, 0)) for share in (0.0, 0.25, 0.5, 0.75, 1.0)], at)
    axis = _x_axis(frame, at) if len(set(columns)) > 1 else ""
    return _wrap(frame, "", _plot("".join(areas), at) + scale + axis, marks)


def interval_bar(
    chart_id: str,
    label: str,
    value: float,
    low: float,
    high: float,
    span: tuple[float, float],
    look: str,
    zero: float | None,
) -> str:
    """A dot with its interval on a horizontal track from `span[0]` to `span[1]`; `zero` marks where nothing changes."""
    width = (span[1] - span[0]) or 1.0

    def place(x: float) -> float:
        return 1.0 + 98.0 * min(1.0, max(0.0, (x - span[0]) / width))

    mark = (
        "" if zero is None else f'<line class="zero" x1="{place(zero):.2f}%" x2="{place(zero):.2f}%" y1="0" y2="20"/>'
    )
    return (
        f'<svg class="interval" id="{escape(chart_id)}" role="img" width="100%" height="20"'
        f' aria-label="{escape(label)}">'
        f'<line class="track" x1="0" x2="100%" y1="10" y2="10"/>{mark}'
        f'<line class="reach {look}" x1="{place(low):.2f}%" x2="{place(high):.2f}%" y1="10" y2="10"/>'
        f'<circle class="dot {look}" cx="{place(value):.2f}%" cy="10" r="5"/></svg>'
    )


def legend(entries: Sequence[tuple[str, str]]) -> str:
    """The names of what is drawn, each with a swatch: (name, look)."""
    items = "".join(
        f'<li><i class="swatch {look}" aria-hidden="true"></i>{escape(name)}</li>' for name, look in entries
    )
    return f'<ul class="legend">{items}</ul>'


def table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The figures behind a chart as a table, folded away; the first column names the row."""
    cells = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in row[1:])}</tr>'
        for row in rows
    )
    return (
        f'<details class="figures"><summary>Show as table</summary><div class="scroll" role="region" tabindex="0"'
        f' aria-label="{escape(caption)}"><table><caption>{escape(caption)}</caption>'
        f"<thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table></div></details>"
    )


class _Mapping:
    """From values to places: percentages across and pixels down for marks, units of the inner viewport for curves."""

    def __init__(self, x_low: float, x_high: float, y_high: float, height: int) -> None:
        self.x_low, self.x_high, self.y_high, self.height = x_low, x_high, y_high, height
        self.plot_height = height - TOP - BOTTOM

    def share_x(self, x: float) -> float:
        """0 to 1 across the plot; a range without width puts everything in the middle."""
        return 0.5 if self.x_high <= self.x_low else (x - self.x_low) / (self.x_high - self.x_low)

    def percent_x(self, x: float) -> float:
        return LEFT + (RIGHT - LEFT) * self.share_x(x)

    def pixel_y(self, y: float) -> float:
        return TOP + self.plot_height * (1.0 - min(1.0, max(0.0, y / self.y_high)))

    def unit_x(self, x: float) -> float:
        return self.percent_x(x) * UNITS / 100.0

    def unit_y(self, y: float) -> float:
        # Bands may leave the plot: the inner viewport cuts them.
        return UNITS * (1.0 - y / self.y_high)


def _range(values: Sequence[float]) -> tuple[float, float]:
    return min(values), max(values)


def _y_scale(curves: Sequence[Curve], levels: Sequence[Level]) -> tuple[float, float]:
    """(step, top) of the scale from 0."""
    peak = max([point.y for curve in curves for point in curve.points] + [level.y for level in levels])
    reach = max((p.high for curve in curves for p in curve.points if p.high is not None), default=0.0)
    highest = max(peak * 1.08, min(reach, peak * BAND_HEADROOM))
    if highest <= 0.0:
        return 1.0, 1.0
    step = numbers.nice_step(highest, Y_STEPS)
    steps = next(n for n in range(1, Y_STEPS + 2) if n * step >= highest * (1 - 1e-9))
    return step, steps * step


def _path(places: Sequence[tuple[float, float]]) -> str:
    return "".join(f"{'L' if n else 'M'}{x:.1f} {y:.1f}" for n, (x, y) in enumerate(places))


def _band(curve: Curve, at: _Mapping) -> str:
    ends = [(p.x, p.low, p.high) for p in curve.points if p.low is not None and p.high is not None]
    if len(ends) < 2:
        return ""
    upper = [(at.unit_x(x), at.unit_y(high)) for x, _, high in ends]
    lower = [(at.unit_x(x), at.unit_y(low)) for x, low, _ in reversed(ends)]
    return f'<path class="band {curve.look}" d="{_path(upper + lower)}Z"/>'


def _line(curve: Curve, at: _Mapping) -> str:
    if len(curve.points) < 2:
        return ""
    places = [(at.unit_x(point.x), at.unit_y(point.y)) for point in curve.points]
    return f'<path class="line {curve.look}" d="{_path(places)}" vector-effect="non-scaling-stroke"/>'


def _end(curve: Curve, at: _Mapping) -> str:
    """The dot at the newest point; the whisker where it is the only one."""
    if not curve.points:
        return ""
    last = curve.points[-1]
    x, y = at.percent_x(last.x), at.pixel_y(last.y)
    whisker = ""
    if len(curve.points) == 1 and last.low is not None and last.high is not None:
        ends = f'y1="{at.pixel_y(last.low):.1f}" y2="{at.pixel_y(last.high):.1f}"'
        whisker = f'<line class="whisker {curve.look}" x1="{x:.2f}%" x2="{x:.2f}%" {ends}/>'
    return f'{whisker}<circle class="dot {curve.look}" cx="{x:.2f}%" cy="{y:.1f}" r="4.5"/>'


def _level(level: Level, at: _Mapping) -> str:
    y = at.pixel_y(level.y)
    return (
        f'<line class="level {level.look}" x1="{LEFT}%" x2="100%" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text class="name {level.look}" x="100%" y="{y - 6:.1f}" text-anchor="end">{escape(level.name)}</text>'
    )


def _grid(marks: Sequence[tuple[float, str]], at: _Mapping) -> str:
    lines, texts = [], []
    for y, label in marks:
        down = at.pixel_y(y)
        lines.append(f'<line x1="0" x2="100%" y1="{down:.1f}" y2="{down:.1f}"/>')
        texts.append(f'<text x="0" y="{down - 4:.1f}">{escape(label)}</text>')
    return (
        f'<g class="rules" aria-hidden="true">{"".join(lines)}</g>'
        f'<g class="scale" aria-hidden="true">{"".join(texts)}</g>'
    )


def _x_axis(frame: Frame, at: _Mapping) -> str:
    texts = []
    for x, label in _x_marks(frame.axis, at.x_low, at.x_high):
        place = at.percent_x(x)
        anchor = "end" if place > 94.0 else "middle"
        texts.append(f'<text x="{place:.2f}%" y="{at.height - 8}" text-anchor="{anchor}">{escape(label)}</text>')
    return f'<g class="scale" aria-hidden="true">{"".join(texts)}</g>'


def _x_marks(kind: AxisKind, low: float, high: float) -> list[tuple[float, str]]:
    """Round values inside [low, high] with their labels; one mark where there is no width."""
    if high <= low:
        return [(low, numbers.clock_time(low) if kind == "time" else numbers.compact(low))]
    step = numbers.time_step(high - low, X_STEPS) if kind == "time" else numbers.nice_step(high - low, X_STEPS)
    first = -(-low // step)
    places = [n * step for n in (first + k for k in range(X_STEPS + 2)) if low <= n * step <= high]
    if kind == "time":
        return [(x, numbers.clock_time(x, step)) for x in places]
    return [(x, numbers.compact(x)) for x in places]


def _plot(curves: str, at: _Mapping) -> str:
    return (
        f'<svg class="plot" x="0" y="{TOP}" width="100%" height="{at.plot_height}"'
        f' viewBox="0 0 {UNITS:.0f} {UNITS:.0f}" preserveAspectRatio="none">{curves}</svg>'
    )


def _empty(frame: Frame) -> str:
    return f'<text class="nothing" x="50%" y="{frame.height // 2}" text-anchor="middle">No data yet</text>'


def _wrap(frame: Frame, below: str, above: str, places: Sequence[float] = ()) -> str:
    """The drawing in its frame. `data-x` holds the places of the table's rows, which live.js reads values by."""
    chart_id = escape(frame.chart_id)
    data = f' data-x="{" ".join(f"{place:.2f}" for place in places)}"'
    return (
        f'<svg class="chart" id="{chart_id}" role="img" width="100%" height="{frame.height}"{data}'
        f' aria-labelledby="{chart_id}-title {chart_id}-text">'
        f'<title id="{chart_id}-title">{escape(frame.title)}</title>'
        f'<desc id="{chart_id}-text">{escape(frame.description)}</desc>{below}{above}</svg>'
    )
