"""Made-up traffic: decisions and what becomes of them, with copies, retractions and disorder."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import msgspec

from optimizer.maths.attribution import EXTRA_RETENTION_MS
from optimizer.stream.log import Append
from optimizer.types import Attribution, Decision
from tests.laws import oracle
from tests.stream_rig import HOUR, MINUTE, T0, appended, decision, event, raw, token

SECRET: Final = b"0123456789abcdef0123456789abcdef"
SPAN_MS: Final = 12 * HOUR  # event time that a whole history takes: outcomes close in the middle of it
JUDGED_BY: Final = [
    Attribution(10 * MINUTE, HOUR, view, count) for view in (0, 30 * MINUTE) for count in ("first", "last", "all")
]

Json = dict[str, Any]


class Told(NamedTuple):
    """A decision and its events, each once."""

    decision: Decision
    events: list[Json]

    def expected(self) -> Json | None:
        """Its outcome in the end, by the oracle."""
        return expected([self]).get(self.decision.decision_id)


def expected(told: list[Told]) -> dict[str, Json]:
    """The last revisions in the end, by the oracle."""
    decisions = [msgspec.to_builtins(one.decision) for one in told]
    events = [happened for one in told for happened in one.events]
    return oracle.outcomes(decisions, events, {"test": SECRET}, EXTRA_RETENTION_MS)


def tell(rng: random.Random, name: str, ts: int) -> Told:
    """A decision that was shown, and what came of it: clicks of two fifths, conversions, ratings, retractions."""
    made = decision(name, ts=ts, attribution=rng.choice(JUDGED_BY))
    signed = token(made)
    events: list[Json] = []

    def happens(event_id: str, kind: str, after_ms: int, **more: Any) -> None:
        received = ts + max(0, after_ms) + rng.randrange(1_000)
        events.append(event(made, event_id, kind, ts + after_ms, token=signed, received_ts=received, **more))

    happens("i", "impression", rng.randrange(200))
    for number in range(rng.choice((0, 0, 0, 1, 2))):
        happens(f"c{number}", "click", rng.choice((50, 3_000, 10 * MINUTE - 1, 11 * MINUTE)))
    if rng.random() < 0.2:
        for number in range(rng.choice((1, 1, 2))):
            happens(f"v{number}", "conversion", rng.choice((4_000, 20 * MINUTE, HOUR)), value=rng.random())
    if rng.random() < 0.05:
        happens("r", "rating", 5_000, value=rng.random())
    if rng.random() < 0.1:
        happens("x", "retraction", 6_000, retracts=rng.choice(("c0", "v0", "i", "never")))
    return Told(made, events)


def history(rng: random.Random, impressions: int) -> list[Told]:
    """So many decisions that were shown, over `SPAN_MS`."""
    return [tell(rng, f"d{i:06d}", T0 + i * SPAN_MS // impressions) for i in range(impressions)]


def records(rng: random.Random, told: list[Told], spread: int = 400) -> Iterator[Append]:
    """As they come in: about the order of their making, each up to `spread` places early or late (so events come before
    their decisions), one in twenty twice, and now and then one that has to be refused."""
    places: list[tuple[float, Append]] = []
    for number, one in enumerate(told):
        made = [appended(one.decision), *map(appended, one.events)]
        made += [record for record in made if rng.random() < 0.05]
        if rng.random() < 0.01:
            made.append(raw(one.events[0], event_id="bad", token="a.b.c"))
        places += [(number + rng.random() * spread, record) for record in made]
    places.sort(key=lambda place: place[0])
    return (record for _, record in places)
