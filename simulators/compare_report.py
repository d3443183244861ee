"""The body of a comparison's report: policies ranked over seeds, their curves, each run. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from html import escape
from statistics import fmean

from serving import charts, numbers
from serving.page import parts
from simulators.results import CompareCurve, CompareRow

LOOKS = ("c0", "c1", "c2", "c3", "c4", "c5", "c6", "c7")


def compare_html(rows: Sequence[CompareRow], curves: Sequence[CompareCurve]) -> str:
    """The body of a comparison's report: means over seeds with their spread, then each run."""
    seeds = len({row.seed for row in rows})
    by_name: dict[str, list[CompareRow]] = defaultdict(list)
    for row in rows:
        by_name[row.name].append(row)
    ranked = sorted(by_name.items(), key=lambda item: -fmean(row.last_tenth_ctr for row in item[1]))
    means = [
        (
            name,
            *(_spread([of(row) * 1000.0 for row in runs], 1) for of in (_mean_ctr, _last_ctr, _oracle)),
            _spread([row.mean_reward for row in runs], 4),
            _spread([row.kl for row in runs if row.kl is not None], 2),
            numbers.percent(_mean([row.valid_share for row in runs if row.valid_share is not None])),
            numbers.integer(fmean(row.distinct_texts for row in runs)),
            numbers.duration(fmean(row.seconds for row in runs)),
        )
        for name, runs in ranked
    ]
    head = ("Policy", "Clicks per 1,000", "Last tenth", "Oracle", "Reward", "KL", "Well-formed", "Texts", "Time")
    runs = [
        (
            f"{row.name}, seed {row.seed}",
            *(numbers.per_thousand(of(row)) for of in (_mean_ctr, _last_ctr, _oracle)),
            numbers.decimal(row.mean_reward, 4),
            numbers.decimal(row.kl),
            numbers.percent(row.valid_share),
            numbers.integer(row.distinct_texts),
            numbers.duration(row.seconds),
        )
        for row in rows
    ]
    lead = f"{len(by_name)} policies on the same arrivals, {seeds} {'seed' if seeds == 1 else 'seeds'} each."
    panels = (
        parts.card(
            "means",
            "Summary",
            parts.plain_table("Means over seeds", head, means),
            "",
            "Mean, and lowest to highest seed",
        ),
        parts.card(
            "learning",
            "Clicks per 1,000 impressions",
            _compare_chart(curves),
            "",
            "Mean of the seeds, band from lowest to highest",
        ),
        parts.card("runs", "Each run", parts.plain_table("Each run", head, runs)),
    )
    return f'<h1>Policies compared</h1><p class="lead">{escape(lead)}</p><div class="grid">{"".join(panels)}</div>'


def _compare_chart(curves: Sequence[CompareCurve]) -> str:
    at: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for curve in curves:
        for impression, ctr in curve.points:
            at[curve.name][impression].append(ctr)
    ranked = sorted(at.items(), key=lambda item: -fmean(item[1][max(item[1])]))
    drawn = [
        charts.Curve(
            name, LOOKS[n % len(LOOKS)], [charts.Point(x, fmean(v), min(v), max(v)) for x, v in sorted(places.items())]
        )
        for n, (name, places) in enumerate(ranked)
    ]
    ends = ", ".join(f"{c.name} {numbers.per_thousand(c.points[-1].y)}" for c in drawn if c.points)
    frame = charts.Frame("compare-chart", "Clicks per 1,000 impressions by policy", f"At the end: {ends}.", height=380)
    svg = charts.line_chart(frame, drawn, y_text=charts.per_thousand_scale)
    xs = sorted({x for places in at.values() for x in places})
    rows = [
        (numbers.integer(x), *(numbers.per_thousand(fmean(p[x]) if x in p else None) for p in at.values())) for x in xs
    ]
    table = charts.table("Clicks per 1,000 impressions", ("Impressions", *at), rows)
    return parts.figure(svg, charts.legend([(curve.name, curve.look) for curve in drawn]), table)


def _mean_ctr(row: CompareRow) -> float:
    return row.mean_ctr


def _last_ctr(row: CompareRow) -> float:
    return row.last_tenth_ctr


def _oracle(row: CompareRow) -> float:
    return row.oracle_ctr


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None


def _spread(values: Sequence[float], digits: int) -> str:
    """The mean, and the range where there is more than one value."""
    if not values:
        return numbers.NOTHING
    mean = numbers.decimal(fmean(values), digits)
    ends = f" ({numbers.decimal(min(values), digits)} to {numbers.decimal(max(values), digits)})"
    return mean + (ends if len(values) > 1 else "")
