"""Plausible records for a LiveBoard: for tests and screenshots only."""

from __future__ import annotations

import argparse
import math
import threading
import time
from collections.abc import Iterator

import numpy as np

from optimizer.clock import SystemClock
from optimizer.ids import variant_id
from optimizer.types import (
    Attribution,
    Campaign,
    Candidate,
    Components,
    Decision,
    Decode,
    Outcome,
    PolicyRecord,
    Pool,
    Product,
    RewardWeights,
    Source,
)
from serving.board import LiveBoard
from serving.joiners import Lane, StreamFigures

START = 1_795_448_000_000
CAMPAIGNS = (
    ("trail-runner", "Trail Runner 3", "Trail Runner 3: light and waterproof"),
    ("kettle", "Brewline Kettle", "A kettle for every kitchen"),
    ("desk-lamp", "Lumen Desk Lamp", "The Lumen desk lamp. Now in black."),
)
OPENERS = ("Dry feet, every mile", "Quiet mornings start here", "Less weight. More view", "Ready in 90 seconds")
CLOSERS = ("Free returns.", "From $29.", "Loved by 12,000 people.", "Made to last ten years.", "Order by noon.")
SEGMENTS = ("commuters", "students", "parents")


def campaign(campaign_id: str = "trail-runner", name: str = "Trail Runner 3", control: str = "Plain") -> Campaign:
    """A campaign with one headline slot and one control."""
    return Campaign(campaign_id, Product(name), ({"headline": control},), segments=SEGMENTS)


def pool(campaign_id: str, texts: list[str], version: str, segment: str = "commuters", ts: int = START) -> Pool:
    """A pool of these texts."""
    candidates = tuple(Candidate(variant_id(campaign_id, {"headline": t}), {"headline": t}) for t in texts)
    return Pool(f"p-{version}-{segment}", "default", campaign_id, segment, version, "h", candidates, Decode(), ts)


def outcome(
    text: str = "Plain",
    click: int = 0,
    campaign_id: str = "trail-runner",
    version: str = "v1",
    source: Source = "pool",
    ts: int = START,
    revision: int = 1,
    decision_id: str = "d-1",
) -> Outcome:
    """An outcome of one text with click weight 1."""
    decision = Decision(
        decision_id, "r", 0, "default", campaign_id, {"segment": "commuters"}, "p", 0,
        variant_id(campaign_id, {"headline": text}), 0.5, [0.5, 0.5], source, version, version, ts,
        RewardWeights(click=1.0), Attribution(),
    )  # fmt: skip
    return Outcome(
        decision_id, revision, "open", ts, ts, ts if click else None, Components(click), float(click), [], decision
    )


FORECASTS: dict[str, str | int | float | bool | None] = {
    "clicks_expected": 0.0412,
    "clicks_seen": 0.0397,
    "brier": 0.0361,
    "brier_skill": 0.053,
    "reliability_curve": "310:0.00380:0.00323;1204:0.00790:0.00831;2950:0.01540:0.01390;3300:0.02890:0.02970;"
    "1480:0.05600:0.05405;602:0.11200:0.10797;154:0.22000:0.24026",
}


def policy(version: str, kl: float, ts: int, stage: str = "live", budget: float = 8.0) -> PolicyRecord:
    """A policy record with the learner's evidence."""
    evidence: dict[str, str | int | float | bool | None] = {"by": "learner", "kl": kl, "kl_budget": budget, **FORECASTS}
    return PolicyRecord(version, "hash", None, "file:", stage, ts, evidence)  # type: ignore[arg-type]


STREAM = StreamFigures(
    open_decisions=3481,
    revisions=9120,
    quarantined={"bad_token": 2, "late": 1},
    lanes=tuple(Lane(partition, 3, 9 - partition, 1.0 + partition, 0) for partition in range(4)),
)


def play(
    board: LiveBoard, impressions: int, seed: int = 0, start: int = START, step_ms: int = 400, horizon: int = 0
) -> Iterator[int]:
    """Feed a run in which learning works, one impression at a time; yields the number of each.

    Learning takes `horizon` impressions (all of them by default), with 24 policy versions."""
    horizon = horizon or impressions
    rng = np.random.default_rng(seed)
    for campaign_id, name, control in CAMPAIGNS:
        board.on_campaign(campaign(campaign_id, name, control))
    texts = {c[0]: [f"{c[1]}: {o.lower()}. {e}" for o in OPENERS for e in CLOSERS] for c in CAMPAIGNS}
    version, every = "", max(1, horizon // 24)
    for n in range(impressions):
        ts = start + n * step_ms
        progress = min(1.0, n / max(horizon, 4000))
        if n % every == 0:
            version = f"{(n * 2654435761 + 12345) % 16**12:012x}"
            board.on_policy(policy(version, 7.2 * (1 - math.exp(-5 * progress)), ts))
            for campaign_id in texts:
                newest = (n // every * 4) % 20
                chosen = [*texts[campaign_id][newest : newest + 4], *texts[campaign_id][:newest]]
                board.on_pool(pool(campaign_id, chosen, version, SEGMENTS[n // every % 3], ts))
        campaign_id, _, control = CAMPAIGNS[int(rng.integers(3))]
        held = rng.random() < 0.08
        known = min(20, 4 + n // every * 4)
        place = min(known - 1, int(rng.exponential(3 + 12 * (1 - progress))))
        text = control if held else texts[campaign_id][place]
        rate = 0.041 if held else 0.03 + 0.12 * (1 - math.exp(-4 * progress)) * (1 - place / 30)
        first = outcome(text, 0, campaign_id, version, "control" if held else "pool", ts, 1, f"d-{n}")
        board.on_outcome(None, first)
        if rng.random() < rate:
            board.on_outcome(first, outcome(text, 1, campaign_id, version, first.decision.source, ts, 2, f"d-{n}"))
        yield n


def main() -> None:
    """Serve a live page of a made-up run on loopback, to look at."""
    import uvicorn
    from fastapi import FastAPI

    from serving.live import live_router

    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--port", type=int, default=8099)
    parser.add_argument("--impressions", type=int, default=6000)
    parser.add_argument("--then", type=int, default=100_000, help="impressions after that, at --rate a second")
    parser.add_argument("--rate", type=float, default=20.0)
    args = parser.parse_args()
    board = LiveBoard()
    board.set_gauges()
    board.set_stream(STREAM, 0.043, 0.31)
    whole = args.impressions + args.then
    start = time.time_ns() // 1_000_000 - args.impressions * 400
    feed = play(board, whole, start=start, horizon=args.impressions) if args.impressions else iter(())
    for _ in zip(range(args.impressions), feed, strict=False):
        pass

    def later() -> None:
        for _ in feed:
            time.sleep(1 / args.rate)

    threading.Thread(target=later, daemon=True).start()
    app = FastAPI()
    app.include_router(live_router(board, SystemClock(), tenant_of=lambda _: "default"))
    uvicorn.run(app, port=args.port, log_level="warning")


if __name__ == "__main__":
    main()
