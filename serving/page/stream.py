"""The live page's panel of the reward stream: what the joiners do, partition by partition."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from serving import numbers
from serving.page import parts

UNSEEN = "This server does not see its joiner: start it with --joiner URL, of the joiner's --metrics-port."
HEAD = ("Partition", "Decisions behind", "Events behind", "Event time behind", "Still to catch up")


def stream_panel(stream: Mapping[str, Any] | None) -> str:
    """The card; `stream` is the board's `stream`, None where this process sees no joiner."""
    if stream is None:
        return parts.card("stream", "Reward stream", f'<p class="nothing-yet">{escape(UNSEEN)}</p>', "w12")
    quarantined: Mapping[str, int] = stream["quarantined"]
    facts = (
        parts.fact("Join delay, median", _delay(stream["median_s"]), "From receipt to outcome"),
        parts.fact("Join delay, 99%", _delay(stream["most_s"]), "In the last minute"),
        parts.fact("Revisions", numbers.integer(stream["revisions"]), "Of outcomes"),
        parts.fact("Quarantined", numbers.integer(sum(quarantined.values())), _reasons(quarantined)),
    )
    rows = [
        (
            str(lane["partition"]),
            numbers.integer(lane["decisions"]),
            numbers.integer(lane["events"]),
            numbers.NOTHING if lane["age_s"] is None else numbers.duration(max(0.0, lane["age_s"])),
            numbers.integer(lane["behind"]),
        )
        for lane in stream["lanes"]
    ]
    table = parts.plain_table("The joiner's partitions", HEAD, rows) if rows else ""
    body = f'<div class="stream"><dl class="facts">{"".join(facts)}</dl>{table}</div>'
    return parts.card("stream", "Reward stream", body, "w12", aside=_state(stream))


def _state(stream: Mapping[str, Any]) -> str:
    count, silent = stream["joiners"], stream["silent"]
    if silent:
        return f'<span class="chip halted">{silent} of {count} joiners silent</span>'
    if not stream["ready"]:
        return '<span class="chip waiting">Catching up</span>'
    return f'<span class="chip running">{"Joiner" if count == 1 else f"{count} joiners"} up to date</span>'


def _delay(seconds: float | None) -> str:
    if seconds is None:
        return numbers.NOTHING
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else numbers.duration(seconds)


def _reasons(quarantined: Mapping[str, int]) -> str:
    return (
        ", ".join(f"{reason} {numbers.integer(count)}" for reason, count in quarantined.items()) or "No record refused"
    )
