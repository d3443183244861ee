"""From the board's snapshot to the page's markup: one root element per panel, so that a panel can be replaced alone.

Pure functions. Every text is escaped; there is neither a style attribute nor an inline script, so the page runs under
the strictest content security policy.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any
from urllib.parse import urlencode

from serving import charts, numbers
from serving.page import parts
from serving.page.critic import critic_panel
from serving.page.stream import stream_panel
from serving.page.welcome import welcome

Snapshot = Mapping[str, Any]

SUN_MOON = (
    '<svg viewBox="0 0 16 16" aria-hidden="true"><circle cx="8" cy="8" r="5.6"/>'
    '<path d="M8 2.4a5.6 5.6 0 0 1 0 11.2z" fill="currentColor"/></svg>'
)
STAGES = {
    "candidate": "Candidate",
    "canary": "Canary",
    "live": "Live",
    "rolled_back": "Rolled back",
    "retired": "Retired",
}
WIDE = 10_000_000  # from here on not every digit has room
LEARNER = {"running": "Running", "paused": "Paused", "halted": "Halted", "waiting": "Waiting"}


def page(snapshot: Snapshot, base_url: str) -> str:
    """The whole document; it is complete without scripts, and live.js keeps it up to date."""
    return (
        '<!doctype html><html lang="en-US"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><title>Adloop</title>'
        '<link rel="icon" href="/assets/icon.svg" type="image/svg+xml"><link rel="stylesheet" href="/assets/app.css">'
        '<script src="/assets/theme.js"></script><script src="/assets/live.js" defer></script></head><body>'
        '<a class="skip" href="#main">Skip to the figures</a><header class="bar"><div>'
        f'<span class="brand">{parts.MARK}Adloop</span>'
        '<span class="status" id="status" role="status" data-state="still"><i></i><span>Reload to update</span></span>'
        f'<div class="tools">{chooser(snapshot)}<button type="button" class="icon" id="theme"'
        f' aria-label="Switch between light and dark">{SUN_MOON}</button></div></div></header>'
        f"{main(snapshot, base_url)}"
        '<footer class="foot">Rates are clicks per 1,000 impressions with 95% intervals (Wilson); the lift is of reward'
        " per impression (Fieller). Times are UTC.</footer></body></html>\n"
    )


def chooser(snapshot: Snapshot) -> str:
    """The campaign filter; a plain form where there are no scripts."""
    chosen = snapshot["campaign_id"]
    options = "".join(
        f'<option value="{escape(c["campaign_id"])}"{" selected" if c["campaign_id"] == chosen else ""}>'
        f"{escape(_label(c))}</option>"
        for c in snapshot["campaigns"]
    )
    return (
        '<form id="chooser" action="/" method="get"><label class="hidden" for="campaign">Campaign</label>'
        f'<select id="campaign" name="campaign"><option value="">All campaigns</option>{options}</select>'
        f'<input type="hidden" name="axis" value="{snapshot["axis"]}"> <button class="no-script">Show</button></form>'
    )


def is_empty(snapshot: Snapshot) -> bool:
    """Whether a newcomer's first steps are shown instead of figures."""
    return not snapshot["impressions"] and snapshot["campaign_id"] is None


def main(snapshot: Snapshot, base_url: str) -> str:
    """All of the page between its header and its foot."""
    if is_empty(snapshot):
        return f'<main id="main">{welcome(snapshot, base_url)}</main>'
    board = "".join(panels(snapshot).values())
    return f'<main id="main"><h1 class="hidden">Adloop, live</h1><div class="grid">{board}</div></main>'


def panels(snapshot: Snapshot) -> dict[str, str]:
    """Each panel's markup by the id of its root element, in the order of the page."""
    return {
        "lift": _lift(snapshot),
        "tiles": _tiles(snapshot),
        "rates": _rates(snapshot),
        "kl": _kl(snapshot),
        "traffic": _traffic(snapshot),
        "versions": _versions(snapshot),
        "critic": critic_panel(snapshot["critic"]),
        "stream": stream_panel(snapshot["stream"]),
        "best": _best(snapshot),
        "newest": _newest(snapshot),
    }


def _lift(snapshot: Snapshot) -> str:
    found = snapshot["lift"]
    if found is None:
        words = (
            f'<p class="number unknown">Cannot be told yet</p><p class="words">{escape(snapshot["lift_missing"])}</p>'
        )
        return parts.card("lift", "Lift over control", words, "hero w5")
    value, low, high = found["value"], found["low"], found["high"]
    look = "good" if low > 0 else "bad" if high < 0 else "unsure"
    ends = f"{numbers.signed_percent(low)} to {numbers.signed_percent(high)}"
    margin = 0.08 * (max(high, 0.0) - min(low, 0.0))
    bar = charts.interval_bar(
        "lift-bar",
        f"Lift {numbers.signed_percent(value)}, 95% interval {ends}",
        value,
        low,
        high,
        (min(low, 0.0) - margin, max(high, 0.0) + margin),
        look,
        0.0,
    )
    if look == "unsure":
        words = "The interval includes zero: the difference may still be chance."
    else:
        times = numbers.decimal(1.0 + value, 1 if value > 0 else 2)
        words = f"Learned texts earn {times} times the reward of the control texts, impression for impression."
    body = (
        f'<p class="number {look}">{numbers.signed_percent(value)}</p><p class="range">95% interval {ends}</p>{bar}'
        f'<p class="words">{words}</p>'
    )
    return parts.card("lift", "Lift over control", body, "hero w5", "Reward per impression")


def _tiles(snapshot: Snapshot) -> str:
    learned, control, stream = snapshot["learned"], snapshot["control"], snapshot["stream"] or {}
    total = snapshot["impressions"]
    held = numbers.percent(control["impressions"] / total if total else None)
    body = (
        parts.tile("Learned, per 1,000", numbers.per_thousand(learned["rate"]), _interval(learned), "learned"),
        parts.tile("Control, per 1,000", numbers.per_thousand(control["rate"]), _interval(control), "control"),
        parts.tile("Impressions", _count(total), f"{held} of them control"),
        parts.tile("Records waiting", _count(stream.get("waiting")), "Decisions and events to join"),
        parts.tile("Open decisions", _count(stream.get("open_decisions")), "Can still change"),
        _learner(snapshot),
    )
    return f'<dl class="tiles w7" id="tiles">{"".join(body)}</dl>'


def _learner(snapshot: Snapshot) -> str:
    state: str = snapshot["learner"]
    count: int = snapshot["policy_count"]
    words = snapshot["learner_reason"] or f"{count:,} policy {'version' if count == 1 else 'versions'}"
    chip = f'<span class="chip {escape(state)}">{escape(LEARNER.get(state, state))}</span>'
    return f'<div class="tile-card"><dt>Learner</dt><dd>{chip}<small>{escape(words)}</small></dd></div>'


def _rates(snapshot: Snapshot) -> str:
    curve, axis = snapshot["curve"], snapshot["axis"]
    ours, theirs = ([charts.Point(*point) for point in curve[side]] for side in ("learned", "control"))
    # One band is enough for the eye; control's interval stands in its tile and in the table.
    dotted = [charts.Point(p.x, p.y) for p in theirs]
    frame = charts.Frame(
        "rates-chart",
        "Clicks per 1,000 impressions over time, learned and control",
        f"Newest: learned {numbers.per_thousand(ours[-1].y if ours else None)}, control to date "
        f"{numbers.per_thousand(theirs[-1].y if theirs else None)}.",
        axis,
        height=300,
    )
    drawn = [charts.Curve("Control", "control", dotted), charts.Curve("Learned", "learned", ours)]
    svg = charts.line_chart(frame, drawn, y_text=charts.per_thousand_scale)
    by_x: dict[float, list[str]] = {}
    for column, points in enumerate((ours, theirs)):
        for p in points:
            row = by_x.setdefault(p.x, [_x_text(p.x, axis), numbers.NOTHING, numbers.NOTHING])
            row[column + 1] = (
                f"{numbers.per_thousand(p.y)} ({numbers.per_thousand(p.low)} to {numbers.per_thousand(p.high)})"
            )
    head = ("Time" if axis == "time" else "Impressions", "Learned", "Control to date")
    table = charts.table("Clicks per 1,000 impressions, 95% intervals", head, [by_x[x] for x in sorted(by_x)])
    entries = [("Learned, with its 95% interval", "learned"), ("Control, to date", "control")]
    return parts.card(
        "rates",
        "Clicks per 1,000 impressions",
        parts.figure(svg, charts.legend(entries), table, scripted=True),
        "w8",
        aside=_axis_switch(snapshot),
    )


def _axis_switch(snapshot: Snapshot) -> str:
    links = []
    for axis, name in (("time", "Time"), ("count", "Impressions")):
        query = {"axis": axis} | ({"campaign": snapshot["campaign_id"]} if snapshot["campaign_id"] else {})
        current = "true" if axis == snapshot["axis"] else "false"
        links.append(f'<a href="/?{escape(urlencode(query))}" data-view aria-current="{current}">{name}</a>')
    return f'<nav class="segmented" aria-label="Horizontal axis">{"".join(links)}</nav>'


def _kl(snapshot: Snapshot) -> str:
    kl = snapshot["kl"]
    points = [charts.Point(ts, value) for ts, value in kl["points"]]
    budget = kl["budget"]
    levels = [] if budget is None else [charts.Level(f"Budget {budget:g}", "budget", budget)]
    now = numbers.decimal(kl["value"])
    words = f"Live version: {now} nats per sequence" + (f" of {budget:g}." if budget is not None else ".")
    frame = charts.Frame(
        "kl-chart", "KL divergence from the reference model, by policy version", words, "time", height=300
    )
    svg = charts.line_chart(frame, [charts.Curve("KL", "kl", points)], levels)
    rows = [(_x_text(ts, "time"), numbers.decimal(value)) for ts, value in kl["points"]]
    table = charts.table("KL divergence from the reference model", ("Published", "Nats per sequence"), rows)
    legend = charts.legend([(f"Live version {now} nats" if kl["value"] is not None else "Live version", "kl")])
    return parts.card("kl", "Distance from the reference", parts.figure(svg, legend, table, scripted=True), "w4", "KL")


def _traffic(snapshot: Snapshot) -> str:
    traffic, axis = snapshot["traffic"], snapshot["axis"]
    layers = [charts.Layer(layer["name"], f"v{n}", layer["sizes"]) for n, layer in enumerate(traffic["layers"])]
    frame = charts.Frame(
        "traffic-chart",
        "Share of impressions by policy version",
        "Control at the bottom, then policy versions from the oldest to the newest.",
        axis,
        height=260,
    )
    svg = charts.stacked_area(frame, traffic["x"], layers)
    rows = [
        (_x_text(x, axis), *(numbers.integer(layer["sizes"][n]) for layer in traffic["layers"]))
        for n, x in enumerate(traffic["x"])
    ]
    head = ("Time" if axis == "time" else "Impressions", *(layer["name"] for layer in traffic["layers"]))
    body = parts.figure(
        svg,
        charts.legend([(layer.name, layer.look) for layer in layers]),
        charts.table("Impressions by policy version", head, rows),
        scripted=True,
    )
    return parts.card("traffic", "Traffic by policy version", body, "w8", "Share of impressions")


def _versions(snapshot: Snapshot) -> str:
    items = "".join(
        f"<li><span><b>Version {v['number']}</b> <code>{escape(v['version'][:20])}</code></span>"
        f'<span class="chip {escape(v["stage"])}">{escape(STAGES.get(v["stage"], v["stage"]))}</span>'
        f'<span class="meta">{numbers.date_time(v["ts"])}, {_times(v["impressions"])}, '
        f"{numbers.per_thousand(v['rate'])} per 1,000</span></li>"
        for v in snapshot["policies"]
    )
    body = f'<ul class="versions">{items}</ul>' if items else _nothing("The learner has published no version yet.")
    return parts.card("versions", "Policy versions", body, "w4", f"Newest of {snapshot['policy_count']:,}")


def _best(snapshot: Snapshot) -> str:
    rows = snapshot["best"]
    top = max((row["high"] for row in rows), default=1.0)
    items = "".join(
        f'<li><div><p class="copy">{_copy(row)}</p><p class="meta">{_where(row, snapshot)}'
        f"<span>{_times(row['impressions'])}</span></p></div>"
        f"{_bar(row, n, top)}"
        f'<div class="figure">{numbers.per_thousand(row["rate"])}<small>{_interval(row)}</small></div></li>'
        for n, row in enumerate(rows)
    )
    body = f'<ol class="texts">{items}</ol>' if items else _nothing("No text has been shown yet.")
    return parts.card("best", "Best texts", body, "w7", "Clicks per 1,000, surest first")


def _newest(snapshot: Snapshot) -> str:
    items = "".join(
        f'<li><div><p class="copy">{_copy(row)}</p><p class="meta">{_where(row, snapshot)}'
        f"<span>Segment {escape(row['segment'])}</span></p></div>"
        f'<span class="chip new">{_version(row["number"])}</span></li>'
        for row in snapshot["newest"]
    )
    body = f'<ol class="texts plain">{items}</ol>' if items else _nothing("No text has been written yet.")
    return parts.card("newest", "Newest texts", body, "w5", "Just written")


def _version(number: int | None) -> str:
    return "New" if number is None else f"Version {number}"


def _bar(row: Mapping[str, Any], n: int, top: float) -> str:
    look = "control" if row["control"] else "learned"
    return charts.interval_bar(
        f"best-{n}", _interval(row) + " per 1,000", row["rate"], row["low"], row["high"], (0.0, top), look, None
    )


def _copy(row: Mapping[str, Any]) -> str:
    return (
        escape(row["text"]) if row["text"] is not None else f"Text {escape(row['variant_id'][:12])} is not known here"
    )


def _where(row: Mapping[str, Any], snapshot: Snapshot) -> str:
    kind = '<span class="chip">Control</span>' if row["control"] else ""
    return kind + (f"<span>{escape(row['campaign_id'])}</span>" if snapshot["campaign_id"] is None else "")


def _interval(figures: Mapping[str, Any]) -> str:
    if figures["rate"] is None:
        return "Nothing shown yet"
    return f"{numbers.per_thousand(figures['low'])} to {numbers.per_thousand(figures['high'])}"


def _x_text(x: float, axis: str) -> str:
    return numbers.date_time(x) if axis == "time" else numbers.integer(x)


def _count(value: int | None) -> str:
    if value is None:
        return numbers.NOTHING
    return numbers.integer(value) if value < WIDE else numbers.compact(value)


def _times(impressions: int) -> str:
    return f"{numbers.integer(impressions)} impression{'' if impressions == 1 else 's'}"


def _nothing(words: str) -> str:
    return f'<p class="nothing-yet">{escape(words)}</p>'


def _label(campaign: Mapping[str, str]) -> str:
    return f"{campaign['name']} ({campaign['campaign_id']})" if campaign["name"] else campaign["campaign_id"]
