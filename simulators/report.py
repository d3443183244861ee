"""Self-contained HTML reports of what a run found: no scripts, no other files, the look of the live page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from optimizer.ids import version_number
from serving import charts, numbers
from serving.page import parts
from serving.series import Bin, Count, group_name, version_groups
from simulators.compare_report import compare_html
from simulators.results import (
    CompareCurve,
    CompareRow,
    DemoResult,
    SegmentRow,
    Setup,
    TextPair,
)

CONTROL = "control"
LAYERS = 7
ORACLE_REACH = 3.0


def write_report(result: DemoResult, path: Path) -> Path:
    """Write the demo's report as one HTML file without scripts; folders are made. Returns `path`. Raises OSError."""
    return _write(path, "Adloop demo", demo_html(result))


def write_compare_report(
    rows: Sequence[CompareRow],
    curves: Sequence[CompareCurve],
    path: Path,
    skipped: Sequence[Mapping[str, str]] = (),
    setup: Setup | None = None,
) -> Path:
    """Write a comparison's report as one HTML file without scripts; folders are made. Returns `path`. Raises OSError.

    Args:
      rows: one per policy and seed.
      curves: likewise; seeds of one policy are averaged where their points stand at the same impressions.
      skipped: {name, why} of who could not play.
      setup: what was compared, and what counts.
    """
    return _write(path, "Adloop comparison", compare_html(rows, curves, skipped, setup))


def demo_html(result: DemoResult) -> str:
    """The body of the demo's report."""
    lead = (
        f"{numbers.integer(result.impressions)} impressions of a simulated market (seed {result.seed}), served over "
        f"HTTP in {numbers.duration(result.seconds)}. In the last fifth of the run learned texts were clicked "
        f"{numbers.per_thousand(result.learned_ctr)} times per 1,000 impressions, the control texts "
        f"{numbers.per_thousand(result.control_ctr)} times."
    )
    panels = (
        _demo_tiles(result),
        parts.card("learning", "Clicks per 1,000 impressions", _learning(result), "w8", "Bins of the run, in order"),
        parts.card("kl", "Distance from the reference", _kl(result), "w4", "KL, nats per sequence"),
        parts.card("traffic", "Traffic by policy version", _traffic(result), "", "Share of impressions"),
        parts.card("texts", "Before and after", _pairs(result.texts), "", "True click rate on the same arrivals"),
        parts.card(
            "segments", "Segments", _segments(result.segments), "", "Last fifth of the run, per 1,000 impressions"
        ),
        parts.card("method", "How it was measured", _list(result.method)),
    )
    return f'<h1>What the demo learned</h1><p class="lead">{escape(lead)}</p><div class="grid">{"".join(panels)}</div>'


def _demo_tiles(result: DemoResult) -> str:
    if result.lift_interval is None:
        interval = "Too few clicks to tell yet"
    else:
        low, high = (numbers.signed_percent(end) for end in result.lift_interval)
        interval = f"95% interval {low} to {high}"
    within = "within" if result.kl <= result.kl_budget else "over"
    of_oracle = numbers.percent(result.learned_ctr / result.oracle_ctr, 0) if result.oracle_ctr > 0 else numbers.NOTHING
    tiles = (
        parts.tile("Lift over control", numbers.signed_percent(result.lift), interval),
        parts.tile("Learned, per 1,000", numbers.per_thousand(result.learned_ctr), "Last fifth of the run", "learned"),
        parts.tile("Control, per 1,000", numbers.per_thousand(result.control_ctr), "Hand-written texts", "control"),
        parts.tile(
            "Oracle, per 1,000", numbers.per_thousand(result.oracle_ctr), f"Learned reaches {of_oracle} of it", "oracle"
        ),
        parts.tile(
            "KL to the reference", numbers.decimal(result.kl), f"{within} its budget of {result.kl_budget:g} nats", "kl"
        ),
        parts.tile("Well-formed texts", numbers.percent(result.valid_share), "Of learned texts shown"),
        parts.tile("Impressions", numbers.integer(result.impressions), f"Seed {result.seed}"),
        parts.tile("Time", numbers.duration(result.seconds), "Wall clock, with all set-up"),
    )
    return f'<dl class="tiles">{"".join(tiles)}</dl>'


def _learning(result: DemoResult) -> str:
    ours = [charts.Point(p.impression, p.learned_ctr, p.low, p.high) for p in result.curve if p.learned_ctr is not None]
    theirs = [charts.Point(p.impression, p.control_ctr) for p in result.curve if p.control_ctr is not None]
    frame = charts.Frame(
        "learning-chart",
        "Clicks per 1,000 impressions, learned and control",
        f"Learned texts end at {numbers.per_thousand(ours[-1].y if ours else None)}, control texts at "
        f"{numbers.per_thousand(theirs[-1].y if theirs else None)}; "
        f"the oracle is at {numbers.per_thousand(result.oracle_ctr)}.",
        height=320,
    )
    # A far-off oracle would press the curves flat: then it stands in the legend only.
    inside = result.oracle_ctr <= ORACLE_REACH * max((p.y for p in ours + theirs), default=0.0)
    svg = charts.line_chart(
        frame,
        [charts.Curve("Control", "control", theirs), charts.Curve("Learned", "learned", ours)],
        [charts.Level("Oracle", "oracle", result.oracle_ctr)] if inside else [],
        y_text=charts.per_thousand_scale,
        x_range=(0.0, float(result.impressions)),
    )
    rows = [
        (
            numbers.integer(p.impression),
            numbers.per_thousand(p.learned_ctr),
            f"{numbers.per_thousand(p.low)} to {numbers.per_thousand(p.high)}",
            numbers.per_thousand(p.control_ctr),
        )
        for p in result.curve
    ]
    oracle = f"Oracle, {numbers.per_thousand(result.oracle_ctr)}" + ("" if inside else ", above the chart")
    entries = [("Learned, with its 95% interval", "learned"), ("Control", "control"), (oracle, "oracle")]
    table = charts.table("Clicks per 1,000 impressions", ("Impressions", "Learned", "95% interval", "Control"), rows)
    return parts.figure(svg, charts.legend(entries), table)


def _kl(result: DemoResult) -> str:
    points = [charts.Point(point.impression, point.kl) for point in result.kl_curve]
    frame = charts.Frame(
        "kl-chart",
        "KL divergence from the reference model",
        f"Ends at {numbers.decimal(result.kl)} nats with a budget of {numbers.decimal(result.kl_budget)}.",
        height=320,
    )
    budget = charts.Level(f"Budget {result.kl_budget:g}", "budget", result.kl_budget)
    svg = charts.line_chart(frame, [charts.Curve("KL", "kl", points)], [budget], x_range=(0.0, result.impressions))
    rows = [(numbers.integer(point.impression), numbers.decimal(point.kl)) for point in result.kl_curve]
    table = charts.table("KL to the reference", ("Impressions", "Nats per sequence"), rows)
    return parts.figure(svg, charts.legend([("Live version", "kl")]), table)


def _traffic(result: DemoResult) -> str:
    versions = list(dict.fromkeys(name for each in result.traffic for name in each.shares if name != CONTROL))
    bins = [Bin(t.impression, t.impression, {n: Count(k) for n, k in t.shares.items()}) for t in result.traffic]
    layers = [charts.Layer("Control", "v0", [t.shares.get(CONTROL, 0) for t in result.traffic])]
    for look, group in enumerate(version_groups(bins, versions, LAYERS), start=1):
        told = [version_number(version) for version in group]
        name = group_name([versions.index(v) + 1 if n is None else n for v, n in zip(group, told, strict=True)])
        layers.append(charts.Layer(name, f"v{look}", [sum(t.shares.get(v, 0) for v in group) for t in result.traffic]))
    frame = charts.Frame(
        "traffic-chart",
        "Share of impressions by policy version",
        f"{len(versions)} policy versions were shown, oldest at the bottom above control.",
        height=240,
    )
    svg = charts.stacked_area(frame, [t.impression for t in result.traffic], layers)
    rows = [
        (numbers.integer(t.impression), *(numbers.integer(layer.sizes[n]) for layer in layers))
        for n, t in enumerate(result.traffic)
    ]
    table = charts.table("Impressions by policy version", ("Impressions", *(layer.name for layer in layers)), rows)
    return parts.figure(svg, charts.legend([(layer.name, layer.look) for layer in layers]), table)


def _pairs(texts: Sequence[TextPair]) -> str:
    def quote(kind: str, name: str, text: str, ctr: float | None) -> str:
        rate = "" if ctr is None else f", {numbers.per_thousand(ctr)} clicks per 1,000"
        return f'<blockquote class="{kind}"><small>{escape(name + rate)}</small>{escape(text)}</blockquote>'

    return "".join(
        f'<div class="pair"><p class="where">{escape(t.campaign_id)}, segment {escape(t.segment)}</p>'
        f"{quote('before', 'Before', t.before, t.before_ctr)}{quote('after', 'After', t.after, t.after_ctr)}</div>"
        for t in texts
    )


def _segments(rows: Sequence[SegmentRow]) -> str:
    told = any(row.oracle_ctr is not None for row in rows)
    head = ("Campaign and segment", "Impressions", "Control", "Learned", *(("Oracle",) if told else ()), "Lift")
    body = [
        (
            f"{row.campaign_id}, {row.segment}",
            numbers.integer(row.impressions),
            numbers.per_thousand(row.control_ctr),
            numbers.per_thousand(row.learned_ctr),
            *((numbers.per_thousand(row.oracle_ctr),) if told else ()),
            numbers.signed_percent(
                row.learned_ctr / row.control_ctr - 1.0 if row.learned_ctr and row.control_ctr else None
            ),
        )
        for row in rows
    ]
    return parts.plain_table("Click rates by campaign and segment", head, body)


def _list(sentences: Sequence[str]) -> str:
    return f'<ul class="how">{"".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)}</ul>'


def _write(path: Path, title: str, body: str) -> Path:
    css = parts.asset("app.css").decode()
    html = (
        '<!doctype html><html lang="en-US"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{css}</style></head>"
        f'<body class="report"><header class="bar"><div><span class="brand">{parts.MARK}Adloop</span></div></header>'
        f"<main>{body}</main></body></html>\n"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(html, encoding="utf-8")
    return path
