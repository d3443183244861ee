"""The body of a comparison's report: policies ranked over seeds, their curves, each run. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from html import escape
from statistics import fmean

from serving import charts, numbers
from serving.page import parts
from simulators.results import CompareCurve, CompareRow
from simulators.settings import SETTINGS
from simulators.summary import OURS, beside_ours, by_name, summary

LOOKS = ("c0", "c1", "c2", "c3", "c4", "c5", "c6", "c7")
# Where a chart can't hold everybody: the best of each kind, and these kinds last of all.
LAST_KINDS = ("uniform",)


def compare_html(
    rows: Sequence[CompareRow], curves: Sequence[CompareCurve], skipped: Sequence[Mapping[str, str]] = ()
) -> str:
    """The body of a comparison's report: means over seeds with their 95 % intervals, then each run."""
    named = by_name(rows)
    seeds = len({row.seed for row in rows})
    lead = f"{len(named)} policies on the same arrivals, {seeds} {'seed' if seeds == 1 else 'seeds'} each."
    if skipped:
        lead += " Skipped: " + "; ".join(f"{entry['name']} ({entry['why']})" for entry in skipped) + "."
    panels = [
        parts.card("means", "Summary", _means(rows), "", "Means over the seeds, and their 95 % intervals"),
        parts.card(
            "learning",
            "Clicks per 1,000 impressions",
            _compare_chart(curves, drawn(rows)),
            "",
            "Mean of the seeds, band from lowest to highest"
            + ("" if len(named) <= len(LOOKS) else "; of each kind of policy the one with the highest mean"),
        ),
    ]
    if beside_ours(rows):
        note = "The other's rate seed by seed: mean, 95 % interval, the least of a seed, and in how many seeds ahead"
        panels.append(parts.card("beside", f"{OURS} over each other policy", _beside(rows), "", note))
    panels.append(parts.card("runs", "Each run", _runs(rows)))
    return f'<h1>Policies compared</h1><p class="lead">{escape(lead)}</p><div class="grid">{"".join(panels)}</div>'


def drawn(rows: Sequence[CompareRow]) -> list[str]:
    """The policies that the chart shows, in the order of their colours: Adloop first, then by mean click rate. Where
    there are more than colours: the best of each kind."""
    means = {name: fmean(run.mean_ctr for run in runs) for name, runs in by_name(rows).items()}
    ranked = sorted(means, key=lambda name: (name != OURS, -means[name]))
    if len(ranked) <= len(LOOKS):
        return ranked
    best: dict[str, str] = {}
    for name in ranked:
        best.setdefault(_kind(name), name)
    kept = sorted(best.values(), key=lambda name: (_kind(name) in LAST_KINDS, ranked.index(name)))[: len(LOOKS)]
    return sorted(kept, key=ranked.index)


def _kind(name: str) -> str:
    return SETTINGS[name].kind if name in SETTINGS else name


def _means(rows: Sequence[CompareRow]) -> str:
    head = ("Policy", "Clicks per 1,000", "Last tenth", "Of oracle", "Reward", "KL", "Well-formed", "Texts", "Time")
    ranked = sorted(summary(rows), key=lambda entry: -entry["mean_ctr"]["mean"])
    body = [
        (
            entry["name"],
            _spread(entry["mean_ctr"], 1, 1000.0),
            _spread(entry["last_tenth_ctr"], 1, 1000.0),
            _spread(entry["share_of_oracle"], 1, 100.0, "%"),
            _spread(entry["mean_reward"], 4),
            _spread(entry["kl"], 2),
            numbers.percent(entry["valid_share"]["mean"]),
            numbers.integer(entry["distinct_texts"]["mean"]),
            numbers.duration(entry["seconds"]["mean"]),
        )
        for entry in ranked
    ]
    return parts.plain_table("Means over seeds", head, body)


def _beside(rows: Sequence[CompareRow]) -> str:
    head = ("Policy", "Clicks", "Least", "Ahead", "Last tenth", "Least", "Ahead", "Reward", "Least", "Ahead")
    body = []
    for entry in beside_ours(rows):
        cells = [entry["name"]]
        for measure in ("mean_ctr", "last_tenth_ctr", "mean_reward"):
            ratio = entry[measure]
            cells += [_spread(ratio, 2), numbers.decimal(ratio["least"]), numbers.integer(ratio["ahead"])]
        body.append(tuple(cells))
    return parts.plain_table("Ratios seed by seed", head, body)


def _runs(rows: Sequence[CompareRow]) -> str:
    head = ("Policy", "Clicks per 1,000", "Last tenth", "Oracle", "Reward", "KL", "Well-formed", "Texts", "Time")
    body = [
        (
            f"{row.name}, seed {row.seed}" + (" (halted)" if row.halted else ""),
            *(numbers.per_thousand(rate) for rate in (row.mean_ctr, row.last_tenth_ctr, row.oracle_ctr)),
            numbers.decimal(row.mean_reward, 4),
            numbers.decimal(row.kl),
            numbers.percent(row.valid_share),
            numbers.integer(row.distinct_texts),
            numbers.duration(row.seconds),
        )
        for row in rows
    ]
    return parts.plain_table("Each run", head, body)


def _compare_chart(curves: Sequence[CompareCurve], names: Sequence[str]) -> str:
    at: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for curve in curves:
        if curve.name in names:
            for impression, ctr in curve.points:
                at[curve.name][impression].append(ctr)
    lines = [
        charts.Curve(name, LOOKS[n], [charts.Point(x, fmean(v), min(v), max(v)) for x, v in sorted(at[name].items())])
        for n, name in enumerate(names)
    ]
    ranked = sorted((line for line in lines if line.points), key=lambda line: -line.points[-1].y)
    ends = ", ".join(f"{line.name} {numbers.per_thousand(line.points[-1].y)}" for line in ranked)
    frame = charts.Frame("compare-chart", "Clicks per 1,000 impressions by policy", f"At the end: {ends}.", height=380)
    svg = charts.line_chart(frame, lines, y_text=charts.per_thousand_scale)
    xs = sorted({x for places in at.values() for x in places})
    rows = [
        (numbers.integer(x), *(numbers.per_thousand(fmean(at[n][x]) if x in at[n] else None) for n in names))
        for x in xs
    ]
    table = charts.table("Clicks per 1,000 impressions", ("Impressions", *names), rows)
    return parts.figure(svg, charts.legend([(line.name, line.look) for line in lines]), table)


def _spread(measured: Mapping[str, float | None], digits: int, scale: float = 1.0, unit: str = "") -> str:
    """The mean, and its interval where there is one."""
    mean, low, high = measured["mean"], measured["low"], measured["high"]
    if mean is None:
        return numbers.NOTHING
    text = numbers.decimal(mean * scale, digits) + unit
    if low is None or high is None:
        return text
    return f"{text} ({numbers.decimal(low * scale, digits)} to {numbers.decimal(high * scale, digits)})"
