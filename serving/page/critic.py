"""The live page's panel of the critic: what it expected of decisions, and what came of them."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from serving import numbers
from serving.page import parts

UNKNOWN = "Nothing can be told yet: no decision of which this critic spoke before is old enough to be judged."
HEAD = ("Expected, per 1,000", "Clicked, per 1,000", "Decisions")


def critic_panel(critic: Mapping[str, Any] | None) -> str:
    """The card; `critic` is the board's `critic`, None before a click window is over."""
    if critic is None:
        return parts.card(
            "critic", "Clicks expected and seen", f'<p class="nothing-yet">{escape(UNKNOWN)}</p>', "w12", "Critic"
        )
    facts = (
        parts.fact("Expected, per 1,000", numbers.per_thousand(critic["expected"]), "Before it was learnt from"),
        parts.fact("Clicked, per 1,000", numbers.per_thousand(critic["seen"]), "The same decisions"),
        parts.fact("Brier score", numbers.decimal(critic["brier"], 4), "Mean squared error; less is better"),
        parts.fact("Skill", numbers.percent(critic["skill"]), "Over always saying the common rate"),
    )
    rows = [
        (numbers.per_thousand(expected), numbers.per_thousand(seen), numbers.integer(count))
        for count, expected, seen in critic["curve"]
    ]
    table = parts.plain_table("Clicks expected and seen, by what was expected", HEAD, rows)
    body = f'<div class="stream"><dl class="facts">{"".join(facts)}</dl>{table}</div>'
    return parts.card("critic", "Clicks expected and seen", body, "w12", "Critic, about the newest 10,000 decisions")
