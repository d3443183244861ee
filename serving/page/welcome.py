"""What the page shows before the first impression: how to point an ad server at it, in three calls. Pure."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from html import escape
from typing import Any

CAMPAIGN: dict[str, object] = {
    "product": {"name": "Trail Runner 3"},
    "controls": [{"headline": "Trail Runner 3: light and waterproof"}],
}
EVENTS: list[dict[str, object]] = [
    {"event_id": "e-1", "type": "impression", "decision_id": "DECISION_ID", "token": "TOKEN"},
    {"event_id": "e-2", "type": "click", "decision_id": "DECISION_ID", "token": "TOKEN"},
]


def calls(base_url: str) -> list[str]:
    """The three curl commands, ready for a shell."""
    return [
        _curl("PUT", f"{base_url}/v1/campaigns/trail-runner", CAMPAIGN),
        _curl("POST", f"{base_url}/v1/generate", {"campaign_id": "trail-runner"}),
        _curl("POST", f"{base_url}/v1/events", EVENTS),
    ]


def welcome(snapshot: Mapping[str, Any], base_url: str) -> str:
    """The first steps; what is done already is marked."""
    put, generate, events = calls(base_url)
    known = bool(snapshot["campaigns"])
    steps = (
        _step("Describe what you sell", "A product and one line of your own copy to beat: the control.", put, known),
        _step("Ask for an ad", "The answer holds the text, a decision_id and a token. Show the text.", generate, False),
        _step("Say what happened", "Post the impression, and the click if there is one.", events, False),
    )
    return (
        '<section class="welcome" aria-labelledby="welcome-name">'
        '<h1 id="welcome-name">Waiting for the first impression</h1>'
        "<p>Adloop writes ad copy, serves it, and learns from the clicks that come back. Point an ad server at it with"
        " three calls; this page fills in as soon as the first impression arrives.</p>"
        f'<ol class="steps">{"".join(steps)}</ol></section>'
    )


def _step(name: str, words: str, command: str, done: bool) -> str:
    mark = '<span class="chip live">Done</span>' if done else ""
    return (
        f"<li><h2>{escape(name)}{mark}</h2><p>{escape(words)}</p>"
        f'<div class="code"><pre tabindex="0" aria-label="Command: {escape(name)}"><code>{escape(command)}</code></pre>'
        '<button type="button" data-copy>Copy</button></div></li>'
    )


def _curl(method: str, url: str, body: dict[str, object] | list[dict[str, object]]) -> str:
    """One command; each field of an object, and each object of a list, on a line of its own."""
    if isinstance(body, list):
        data = "[" + ",\n      ".join(json.dumps(part) for part in body) + "]"
    else:
        data = "{" + ",\n      ".join(f"{json.dumps(name)}: {json.dumps(part)}" for name, part in body.items()) + "}"
    head = f"curl -X {method} {shlex.quote(url)} \\\n  -H 'Content-Type: application/json' \\\n"
    return f"{head}  -d {shlex.quote(data)}"
