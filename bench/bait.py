"""What the watch for bait sees, and what it only seems to see: made-up traffic of which the truth is known.

`python -m bench.bait` (`make bench-bait`). No model and no learner: people click and convert with chances that are
given, conversions come as late as in the markets, and the sentinel looks after every 64 impressions."""

from __future__ import annotations

import argparse
import heapq
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import count
from statistics import median
from typing import Any

import numpy as np
from scipy.special import expit, logit

from optimizer.arguments import natural, positive
from optimizer.learning.sentinel import Sentinel, SentinelConfig
from optimizer.types import Attribution, Components, Decision, Outcome, RewardWeights
from simulators.command import answer, execute

EVERY = 64
INTERVAL_MS = 30_000
LURE, LET_DOWN = 2.0, -4.5
"""What bait adds to the log-odds of a click and of its conversion, as in the market `proxy`."""
SEGMENTS = 4


@dataclass(frozen=True)
class Traffic:
    """`clicked`: click rate at first and from half-way on; segments of a campaign end up `apart` (standard deviation,
    in log-odds). `converts`: what clicks convert at, by segment, between these; `median_ms` after the click. `baited`:
    impressions between which the share of bait grows from none to all; None: nothing is wrong. `lives`: impressions for
    which a campaign runs, each followed by another; 0: all run to the end."""

    name: str
    clicked: tuple[float, float]
    converts: tuple[float, float]
    median_ms: float
    campaigns: int = 8
    apart: float = 0.5
    baited: tuple[int, int] | None = None
    lives: int = 0


HOUR = 3_600_000.0
KINDS = (
    Traffic("bait from 1,000 to 3,000", (0.057, 0.08), (0.3, 0.5), HOUR / 6, apart=0.2, baited=(1_000, 3_000)),
    Traffic("bait from 300 to 1,500", (0.057, 0.08), (0.3, 0.5), HOUR / 6, apart=0.2, baited=(300, 1_500)),
    Traffic("bait from 3,000 to 9,000, few convert", (0.045, 0.1), (0.05, 0.15), HOUR, baited=(3_000, 9_000)),
    Traffic("bait, one campaign", (0.057, 0.08), (0.3, 0.5), HOUR / 6, 1, apart=0.2, baited=(1_000, 3_000)),
    Traffic("bait from 5,000, others ended", (0.057, 0.08), (0.3, 0.5), HOUR / 6, 4, 0.2, (5_000, 7_000), 4_000),
    Traffic("clean: many more clicks", (0.045, 0.4), (0.05, 0.15), 8 * HOUR, apart=1.0),
    Traffic("clean: a few more clicks", (0.045, 0.055), (0.05, 0.15), 8 * HOUR, apart=0.2),
    Traffic("clean: segments draw apart", (0.045, 0.2), (0.02, 0.2), 8 * HOUR, apart=1.5),
    Traffic("clean: one campaign", (0.045, 0.3), (0.05, 0.15), HOUR, 1, apart=1.0),
    Traffic("clean: forty campaigns", (0.045, 0.2), (0.05, 0.15), HOUR, 40, apart=1.0),
    Traffic("clean: campaigns come and go", (0.045, 0.1), (0.05, 0.15), HOUR, 4, lives=1_000),
)  # fmt: skip


def play(traffic: Traffic, seed: int, impressions: int) -> int | None:
    """The impression at which learning would be halted; None where it is not."""
    rng = np.random.default_rng([seed, 7])
    shares = rng.dirichlet(np.full(traffic.campaigns, 12.0))
    segments = rng.dirichlet(np.full(SEGMENTS, 12.0), traffic.campaigns)
    converts = rng.uniform(*traffic.converts, SEGMENTS)
    gains = rng.normal(size=(traffic.campaigns, SEGMENTS)) * traffic.apart
    first, last = (float(logit(rate)) for rate in traffic.clicked)
    sentinel, later, order = Sentinel(SentinelConfig()), list[tuple[int, int, Outcome]](), count()
    for at in range(impressions):
        now = at * INTERVAL_MS
        campaign = int(rng.choice(traffic.campaigns, p=shares))
        segment = int(rng.choice(SEGMENTS, p=segments[campaign]))
        clicking, converting, baiting = rng.random(3).tolist()
        slow, slower = rng.normal(size=2).tolist()
        click = first + (last - first + float(gains[campaign, segment])) * min(1.0, 2 * at / impressions)
        convert = float(logit(converts[segment]))
        if traffic.baited is not None and baiting < (at - traffic.baited[0]) / (traffic.baited[1] - traffic.baited[0]):
            click, convert = click + LURE, convert + LET_DOWN
        clicked = clicking < expit(click)
        click_ts = now + min(1_500_000, round(20_000 * math.exp(1.1 * slow)))
        generation = at // traffic.lives if traffic.lives else 0
        tell = partial(_outcome, f"d{at}", f"c{generation}.{campaign}", f"s{segment}", now)
        told = [tell(1, now, None, 0)]
        if clicked:
            told.append(tell(2, click_ts, click_ts, 0))
            if converting < expit(convert):
                as_of = click_ts + min(120 * int(HOUR), round(traffic.median_ms * math.exp(slower)))
                told.append(tell(3, as_of, click_ts, 1))
        for one in told:
            heapq.heappush(later, (one.as_of, next(order), one))
        while later and later[0][0] <= now:
            sentinel.note_outcome(heapq.heappop(later)[2])
        if (at + 1) % EVERY == 0 and sentinel.judge(None, now) is not None:
            return at + 1
    return None


def _outcome(
    name: str,
    campaign: str,
    segment: str,
    shown: int,
    revision: int,
    as_of: int,
    click_ts: int | None,
    conversions: int,
) -> Outcome:
    decision = Decision(
        name, name, 0, "default", campaign, {"segment": segment}, "", 0, "", 1.0, [1.0], "pool", "", "", shown,
        RewardWeights(click=1.0), Attribution(),
    )  # fmt: skip
    components = Components(int(click_ts is not None), conversions)
    return Outcome(name, revision, "open", as_of, shown, click_ts, components, 0.0, [], decision)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """How often, and when, each kind of traffic halts learning."""
    rows = []
    for kind in KINDS:
        if options.only is not None and not kind.name.startswith(options.only):
            continue
        halts = [play(kind, options.first_seed + at, options.impressions) for at in range(options.seeds)]
        halted = [at for at in halts if at is not None]
        rows.append({**asdict(kind), "halted": len(halted), "median": median(halted) if halted else None})
    return {"impressions": options.impressions, "seeds": options.seeds, "rows": rows}


def show(figures: dict[str, Any]) -> str:
    """The figures as a person reads them."""
    lines = [f"{figures['impressions']:,} impressions, {figures['seeds']} seeds: halted, at which impression (median)"]
    for row in figures["rows"]:
        at = "" if row["median"] is None else f"{row['median']:,.0f}"
        lines.append(f"  {row['name']:<50}{row['halted']:>4}{at:>8}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.bait", description=__doc__)
    parser.add_argument("--seeds", type=positive, default=20, metavar="K", help="default: %(default)s")
    parser.add_argument("--first-seed", type=natural, default=1, metavar="S", help="default: %(default)s")
    parser.add_argument("--impressions", type=positive, default=12_000, metavar="N", help="default: %(default)s")
    parser.add_argument("--only", metavar="NAME", help="the kinds of traffic whose name begins so")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    options = parser.parse_args(argv)
    return execute(lambda: answer(measure(options), show, options.json))


if __name__ == "__main__":
    raise SystemExit(main())
