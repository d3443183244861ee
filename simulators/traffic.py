"""A world's people meet a real server: requests, impressions, clicks and conversions, at a pace that it can learn from.

Time. The world counts simulated time: `interval_ms` from one arrival to the next. The server lives in real time. An
impression is claimed at the real moment it was shown, what follows at the impression's time plus the world's offset; it
is *posted* when simulated time has come that far. So delayed conversions come late in the stream, as they do in life,
while a run of many simulated hours takes minutes.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from optimizer.clock import Clock
from simulators.ad_client import AdClient, Json
from simulators.worlds import World

WAVE = 16  # requests in flight at once; one wave's events are posted together


@dataclass(frozen=True)
class Shown:
    """One impression and what the world knows of it. Rates are true click rates, in [0, 1].

    `control_rate` is the mean over the campaign's controls for the same arrival; `clicked` is the person's own doing,
    inside the click window; `valid` is the world's judgement of the text."""

    number: int
    campaign_id: str
    segment: str
    context: Mapping[str, object]
    slots: Mapping[str, str]
    source: str
    policy_version: str
    rate: float
    control_rate: float
    clicked: bool
    valid: bool


class Due:
    """Events that wait until simulated time reaches them, earliest first."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, Json]] = []
        self._count = itertools.count()

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, due_ms: int, event: Json) -> None:
        heapq.heappush(self._heap, (due_ms, next(self._count), event))

    def take(self, now_ms: int) -> list[Json]:
        """Every event due at or before `now_ms`."""
        taken = []
        while self._heap and self._heap[0][0] <= now_ms:
            taken.append(heapq.heappop(self._heap)[2])
        return taken


@dataclass(frozen=True)
class Remains:
    """What a run left: events posted after the last arrival, and those whose time lies beyond what was lived."""

    posted_after: int
    unlived: int


async def put_campaigns(world: World, client: AdClient) -> dict[str, Json]:
    """PUT every campaign of the world; returns them with the server's defaults filled in."""
    return {
        campaign_id: await client.put_campaign(campaign_id, body) for campaign_id, body in world.campaigns().items()
    }


async def play(
    world: World,
    campaigns: Mapping[str, Json],
    client: AdClient,
    impressions: int,
    clock: Clock,
    admit: Callable[[int], Awaitable[None]],
    seen: Callable[[Shown], None],
) -> Remains:
    """Send `impressions` arrivals through the server and post what people do.

    Within a wave all arrivals come first, then the answers, then the responses in the order of arrival: the world is
    asked in the same order whichever answer is back first, so its arrivals are those of its seed.

    Args:
      campaigns: as the server answered them (`put_campaigns`).
      admit: awaited before each wave with the number shown so far; paces the run.
      seen: called for each impression, in order.

    After the last arrival simulated time runs on for the longest click window, so that no click is lost to the run's
    end. What comes later still (conversions) has not happened yet and is left out, counted in `unlived`.
    """
    due, ids = Due(), itertools.count()

    def event(kind: str, variant: Json, ts: int, value: float = 0.0) -> Json:
        fields = {"event_id": f"e-{next(ids)}", "type": kind, "ts": ts}
        fields |= {"decision_id": variant["decision_id"], "token": variant["token"]}
        return fields | ({"value": value} if kind in ("conversion", "rating") else {})

    for start in range(0, impressions, WAVE):
        await admit(start)
        arrivals = [world.arrive() for _ in range(min(WAVE, impressions - start))]
        variants = await asyncio.gather(*(client.generate(campaign_id, context) for campaign_id, context in arrivals))
        posts, shown_ts = [], clock.now_ms()
        for number, ((campaign_id, context), variant) in enumerate(zip(arrivals, variants, strict=True), start):
            posts.append(event("impression", variant, shown_ts))
            responses = world.respond(campaign_id, context, variant["slots"])
            for kind, offset_ms, value in responses:
                due.add(number * world.interval_ms + offset_ms, event(kind, variant, shown_ts + offset_ms, value))
            window_ms = campaigns[campaign_id]["attribution"]["click_window_ms"]
            clicked = any(kind == "click" and offset_ms <= window_ms for kind, offset_ms, _ in responses)
            seen(_shown(world, campaigns[campaign_id], number, context, variant, clicked))
        await client.post_events(posts + due.take((start + len(arrivals)) * world.interval_ms))
    window_ms = max(campaign["attribution"]["click_window_ms"] for campaign in campaigns.values())
    last = due.take(impressions * world.interval_ms + window_ms)
    await client.post_events(last)
    return Remains(len(last), len(due))


def _shown(
    world: World, campaign: Json, number: int, context: Mapping[str, object], variant: Json, clicked: bool
) -> Shown:
    campaign_id, plain = campaign["campaign_id"], dict(context)
    controls = [world.click_rate(campaign_id, plain, control) for control in campaign["controls"]]
    return Shown(
        number=number,
        campaign_id=campaign_id,
        segment=str(context.get("segment", campaign["segments"][0])),
        context=context,
        slots=variant["slots"],
        source=variant["source"],
        policy_version=variant["policy_version"],
        rate=world.click_rate(campaign_id, plain, variant["slots"]),
        control_rate=sum(controls) / len(controls),
        clicked=clicked,
        valid=world.valid(campaign_id, variant["slots"]),
    )
