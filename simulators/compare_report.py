"""The body of a comparison's report: policies ranked over seeds, their curves, each run. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from html import escape
from statistics import fmean
from typing import NamedTuple

from serving import charts, numbers
from serving.page import parts
from simulators.notes import apart_notes, failed_notes, row_notes
from simulators.results import CompareCurve, CompareRow, Setup
from simulators.settings import SETTINGS
from simulators.summary import OURS, beside_ours, by_name, summary

LOOKS = ("c0", "c1", "c2", "c3", "c4", "c5", "c6", "c7")
# Where a chart can't hold everybody: the best of each kind, and these kinds last of all.
LAST_KINDS = ("uniform",)


class _Measured(NamedTuple):
    """What a chart shows: its card, its title, and how a value is told and stands on the scale."""

    panel: str
    title: str
    points: Callable[[CompareCurve], Sequence[tuple[int, float]]]
    told: Callable[[float | None], str]
    scale: Callable[[float], str]


CLICKS = _Measured(
    "learning",
    "Clicks per 1,000 impressions",
    lambda curve: curve.points,
    numbers.per_thousand,
    charts.per_thousand_scale,
)
REWARD = _Measured(
    "rewards",
    "Reward per impression",
    lambda curve: curve.rewards,
    lambda value: numbers.decimal(value, 4),
    lambda value: f"{value:.4g}",
)


def compare_html(
    rows: Sequence[CompareRow],
    curves: Sequence[CompareCurve],
    skipped: Sequence[Mapping[str, str]] = (),
    setup: Setup | None = None,
) -> str:
    """The body of a comparison's report: means over seeds with their 95 % intervals, then each run."""
    by = "mean_ctr" if setup is None else setup.ranked_by
    named = by_name(rows)
    shown = drawn(rows, by)
    note = "Mean of the seeds, band from lowest to highest"
    if len(named) > len(LOOKS):
        note += "; of each kind of policy the one with the highest mean"
    ranked = "reward" if by == "mean_reward" else "clicks"
    means = f"Means over the seeds, and their 95 % intervals; ranked by {ranked}"
    panels = [parts.card("means", "Summary", _means(rows, by), "", means)]
    if by == "mean_reward":
        panels.append(parts.card(REWARD.panel, REWARD.title, _compare_chart(curves, shown, REWARD), "", note))
    panels.append(parts.card(CLICKS.panel, CLICKS.title, _compare_chart(curves, shown, CLICKS), "", note))
    if beside_ours(rows):
        note = "The other's rate seed by seed: mean, 95 % interval, the least of a seed, and in how many seeds ahead"
        panels.append(parts.card("beside", f"{OURS} over each other policy", _beside(rows), "", note))
    panels.append(parts.card("runs", "Each run", _runs(rows)))
    if notes := [*failed_notes(() if setup is None else setup.failed), *row_notes(rows)]:
        items = "".join(f"<li>{escape(one)}</li>" for one in notes)
        panels.append(parts.card("notes", "What to know beside the figures", f'<ul class="how">{items}</ul>'))
    lead = escape(_lead(rows, skipped, setup))
    return f'<h1>Policies compared</h1><p class="lead">{lead}</p><div class="grid">{"".join(panels)}</div>'


def _lead(rows: Sequence[CompareRow], skipped: Sequence[Mapping[str, str]], setup: Setup | None) -> str:
    """What was compared, and what makes the comparison less than it should be."""
    count, seeds = len(by_name(rows)), len({row.seed for row in rows})
    apart = () if setup is None else setup.apart
    policies = "1 policy" if count == 1 else f"{count} policies"
    each = "1 seed" if seeds == 1 else f"{seeds} seeds"
    sentences = [f"{policies}{'' if apart else ' on the same arrivals'}, {each} each."]
    if setup is not None:
        model = "the tiny model" if setup.model is None else f"the model {setup.model}"
        sentences.append(
            f"World {setup.world}, {numbers.integer(setup.impressions)} impressions a run, an increment each "
            f"{numbers.integer(setup.increment)}, {model}."
        )
        if setup.failed:
            failed = len(setup.failed)
            sentences.append(f"{failed} {'run' if failed == 1 else 'runs'} failed, left out of the means.")
    if skipped:
        sentences.append("Skipped: " + "; ".join(f"{entry['name']} ({entry['why']})" for entry in skipped) + ".")
    if apart:
        sentences.append("Warning, " + ". Also, ".join(apart_notes(apart)) + ".")
    return " ".join(sentences)


def drawn(rows: Sequence[CompareRow], by: str = "mean_ctr") -> list[str]:
    """The policies that the chart shows, in the order of their colours: Adloop first, then by the mean of that measure.
    Where there are more than colours: the best of each kind."""
    means = {name: fmean(getattr(run, by) for run in runs) for name, runs in by_name(rows).items()}
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


def _means(rows: Sequence[CompareRow], by: str) -> str:
    rewarded = by == "mean_reward"
    more = ("Its last tenth", "Of best reward") if rewarded else ()
    head = (
        "Policy",
        "Clicks per 1,000",
        "Last tenth",
        "Of oracle",
        "Reward",
        *more,
        "KL",
        "Well-formed",
        "Texts",
        "Time",
    )
    body = []
    for entry in sorted(summary(rows), key=lambda entry: -entry[by]["mean"]):
        last = (_spread(entry["last_tenth_reward"], 4), _spread(entry["share_of_reward"], 1, 100.0, "%"))
        cells = (
            entry["name"],
            _spread(entry["mean_ctr"], 1, 1000.0),
            _spread(entry["last_tenth_ctr"], 1, 1000.0),
            _spread(entry["share_of_oracle"], 1, 100.0, "%"),
            _spread(entry["mean_reward"], 4),
            *(last if rewarded else ()),
            _spread(entry["kl"], 2),
            numbers.percent(entry["valid_share"]["mean"]),
            numbers.integer(entry["distinct_texts"]["mean"]),
            numbers.duration(entry["seconds"]["mean"]),
        )
        body.append(cells)
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


def _compare_chart(curves: Sequence[CompareCurve], names: Sequence[str], measured: _Measured) -> str:
    at: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for curve in curves:
        if curve.name in names:
            for impression, value in measured.points(curve):
                at[curve.name][impression].append(value)
    lines = [
        charts.Curve(name, LOOKS[n], [charts.Point(x, fmean(v), min(v), max(v)) for x, v in sorted(at[name].items())])
        for n, name in enumerate(names)
    ]
    xs = sorted({x for places in at.values() for x in places})
    rows = [(numbers.integer(x), *(measured.told(fmean(at[n][x]) if x in at[n] else None) for n in names)) for x in xs]
    head = ("Impressions", *names)
    if any(point.y < 0.0 for line in lines for point in line.points):
        # The chart's scale begins at 0.
        return parts.plain_table(measured.title, head, rows)
    ranked = sorted((line for line in lines if line.points), key=lambda line: -line.points[-1].y)
    ends = ", ".join(f"{line.name} {measured.told(line.points[-1].y)}" for line in ranked)
    frame = charts.Frame(f"{measured.panel}-chart", f"{measured.title} by policy", f"At the end: {ends}.", height=380)
    svg = charts.line_chart(frame, lines, y_text=measured.scale)
    table = charts.table(measured.title, head, rows)
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
