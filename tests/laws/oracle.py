"""What the outcomes of a finished log must be, in one pass over everything, from the text of contracts section 4.

Written apart from the joiner and sharing no code with it: plain dictionaries, PyJWT for the tokens. It takes every
event to have come in time (late and orphan depend on event time, which a batch does not have).
"""

from __future__ import annotations

import json
import math
from typing import Any

import jwt

Json = dict[str, Any]


def outcomes(decisions: list[Json], events: list[Json], keys: dict[str, bytes], extra_ms: int) -> dict[str, Json]:
    """The last revision of each shown decision, without `revision`, `state` and `as_of`. `events` in log order."""
    made: dict[str, Json] = {}
    for record in decisions:
        if 0 < record["propensity"] <= 1 and record["ts"] >= 1_577_836_800_000:
            made.setdefault(record["decision_id"], record)
    told: dict[str, dict[str, Json]] = {decision_id: {} for decision_id in made}
    for record in events:
        mine = made.get(record["decision_id"])
        if mine is not None and _valid(record, mine, keys, extra_ms):
            told[record["decision_id"]].setdefault(record["event_id"], record)
    found = {}
    for decision_id, record in made.items():
        outcome = _outcome(record, list(told[decision_id].values()))
        if outcome is not None:
            found[decision_id] = outcome
    return found


def _valid(event: Json, decision: Json, keys: dict[str, bytes], extra_ms: int) -> bool:
    value = event.get("value")
    if value is not None and not 0 <= value <= (1 if event["type"] == "rating" else 1e12):
        return False
    try:
        kid = jwt.get_unverified_header(event["token"])["kid"]
        claims = jwt.decode(
            event["token"], keys[kid], algorithms=["HS256"], options={"verify_exp": False, "verify_sub": False}
        )
    except (jwt.InvalidTokenError, KeyError):
        return False
    if not claims["exp"] * 1000 > event["received_ts"]:
        return False
    if [claims[c] for c in ("sub", "ten", "var", "prp", "pol")] != [
        decision[f] for f in ("decision_id", "tenant", "variant_id", "propensity", "policy_version")
    ]:
        return False
    return bool(decision["ts"] - 5000 <= event["ts"] <= decision["ts"] + _window(decision) + extra_ms)


def _window(decision: Json) -> int:
    rule = decision["attribution"]
    return int(max(rule["click_window_ms"] + rule["conversion_window_ms"], rule["view_through_ms"]))


def _outcome(decision: Json, events: list[Json]) -> Json | None:
    rule = decision["attribution"]
    named = [e["retracts"] for e in events if e["type"] == "retraction"]
    alive = [e for e in events if e["type"] == "impression" or e["event_id"] not in named]
    alive.sort(key=lambda e: (e["ts"], e["event_id"]))

    shown = [e for e in alive if e["type"] == "impression"]
    if not shown:
        return None
    t = shown[0]["ts"]
    clicks = [e for e in alive if e["type"] == "click" and -5000 <= e["ts"] - t <= rule["click_window_ms"]][:1]
    at = max(clicks[0]["ts"], t) if clicks else None
    bought = []
    for e in alive:
        if e["type"] != "conversion":
            continue
        by_click = at is not None and -5000 <= e["ts"] - at <= rule["conversion_window_ms"]
        by_view = rule["view_through_ms"] > 0 and -5000 <= e["ts"] - t <= rule["view_through_ms"]
        if by_click or by_view:
            bought.append(e)
    if rule["count"] == "first":
        bought = bought[:1]
    if rule["count"] == "last":
        bought = bought[-1:]
    ratings = [e for e in alive if e["type"] == "rating"]

    worth = 0.0
    for e in bought:
        worth += e.get("value", 0)
    stars = 0.0
    for e in ratings:
        stars += e["value"]
    parts = {
        "click": len(clicks),
        "conversion": len(bought),
        "value": worth,
        "rating": stars / len(ratings) if ratings else None,
    }
    weights = decision["reward"]
    reward = 0.0
    for name in ("click", "conversion", "value", "rating"):
        reward += weights.get(name, 0) * (parts[name] or 0)
    counting = sorted([shown[0], *clicks, *bought, *ratings], key=lambda e: (e["ts"], e["event_id"]))
    assert math.isfinite(reward)
    return {
        "schema": 1,
        "decision_id": decision["decision_id"],
        "impression_ts": t,
        "click_ts": at,
        "components": parts,
        "reward": reward,
        "events": [e["event_id"] for e in counting],
        "decision": json.loads(json.dumps(decision)),
    }
