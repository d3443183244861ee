"""Prints the table of `docs/worlds.md`: what control, the untrained model's texts and the oracle earn in each world.

Run from the repository's root: `python scripts/worlds_table.py [WORLD ...] [--seeds K] [--samples N]`. The texts are
written once, by the tiny model as serving would have it write them, for the market's eight campaigns; a world with
campaigns of its own gets the texts of the same goods, with its own names put in.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from optimizer.arguments import positive
from simulators.places import write_pools
from simulators.worlds import load_world
from simulators.worlds.catalogue import Masking, shipped
from simulators.worlds.market import Market

COLUMNS = ("control", "uniform", "best of 20", "best of 50", "best of all", "oracle", "well formed")
POOLS = 200


def written(samples: int) -> dict[str, list[str]]:
    """Goods -> distinct texts of the untrained model, masked."""
    bodies = Market(1).campaigns()
    found: dict[str, dict[str, None]] = defaultdict(dict)
    with tempfile.TemporaryDirectory() as folder:
        for (campaign_id, _), texts in write_pools(bodies, Path(folder) / "data", 1, size=samples).items():
            masking = Masking(bodies[campaign_id]["product"])
            goods = shipped()[campaign_id].goods
            found[goods].update((masking.masked(slots["headline"]), None) for slots in texts)
    return {goods: list(texts) for goods, texts in found.items()}


def texts_for(world: Market, campaign_id: str, masked: Mapping[str, Sequence[str]]) -> list[str]:
    """What may be shown of them for a campaign."""
    item = world.items()[campaign_id]
    masking = Masking(item.body["product"])
    filled = [
        masking.filled(text.replace("[fact]", "".join(item.body["product"].get("facts", ())[:1])))
        for text in masked[item.goods]
    ]
    return [text for text in filled if "[" not in text and len(text) <= 80]


def row(name: str, seed: int, masked: Mapping[str, Sequence[str]]) -> list[float]:
    """The figures of `COLUMNS`, weighted by the arrivals, of a world as it begins; the best of K: expected, of random
    texts, one pool for each campaign and segment, under the true rates."""
    world = load_world(name, seed)
    assert isinstance(world, Market)
    rng = np.random.default_rng(0)
    total = np.zeros(len(COLUMNS))
    for campaign_id, body in world.campaigns().items():
        texts = texts_for(world, campaign_id, masked)
        valid = float(np.mean([world.valid(campaign_id, {"headline": text}) for text in texts]))
        for segment, share in world.shares(campaign_id).items():
            context = {"segment": segment}
            rates = np.array([world.click_rate(campaign_id, context, {"headline": text}) for text in texts])
            control = np.mean([world.click_rate(campaign_id, context, slots) for slots in body["controls"]])
            best = [rng.choice(rates, (POOLS, size)).max(axis=1).mean() for size in (20, 50)]
            total += share * np.array([control, rates.mean(), *best, rates.max(), 0.0, valid])
    total[5] = world.oracle_rate()
    return [float(figure) for figure in total]


def main() -> None:
    """Print the table in Markdown: for each world the mean over the seeds, and in brackets the range of the oracle."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "worlds",
        nargs="*",
        default=["market", "subtle", "phrases", "sparse", "drift", "delay", "proxy", "fatigue", "cold"],
    )
    parser.add_argument("--seeds", type=positive, default=3)
    parser.add_argument("--samples", type=positive, default=150, help="texts for each campaign and segment")
    options = parser.parse_args()
    masked = written(options.samples)
    print(f"{sum(map(len, masked.values()))} texts", file=sys.stderr)
    print(f"| world | {' | '.join(COLUMNS)} |")
    print("|---" * (len(COLUMNS) + 1) + "|")
    for name in options.worlds:
        rows = np.array([row(name, seed, masked) for seed in range(1, options.seeds + 1)])
        cells = [f"{100 * figure:.{2 if figure < 0.1 else 1}f} %" for figure in rows.mean(axis=0)]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
