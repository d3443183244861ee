"""Prints the table of `docs/worlds.md`: what control, random generated copy and the oracle earn in the market world.

Run from the repository's root: `python scripts/market_table.py 1 2 3 4 5`.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
import numpy as np

from optimizer.learning import phrases
from optimizer.learning.corpus import generate_corpus
from optimizer.learning.prompt import fill
from optimizer.types import Campaign, Product
from simulators.worlds.market import SEGMENTS, Market

ADS = 2_000
ROWS = 900_000


def headlines() -> Mapping[str, list[str]]:
    """Category bank's first name ("" for generic copy) -> headlines of that category in the generated corpus."""
    banks = {name: bank.names[0] for bank in phrases.categories() for name in bank.names}
    found: dict[str, list[str]] = defaultdict(list)
    for row in generate_corpus(1, ROWS):
        if tuple(row.slots) == ("headline",):
            found[banks.get(row.category, "")].append(row.slots["headline"])
    return found


def ads(body: Mapping[str, Any], corpus: Mapping[str, list[str]]) -> list[str]:
    """`ADS` random ads for a campaign, as a model that has only read the corpus would write them."""
    product = msgspec.convert(body["product"], Product)
    campaign = Campaign("table", product, ())
    banks = {name: bank.names[0] for bank in phrases.categories() for name in bank.names}
    filled = (fill(campaign, text) for text in corpus[banks.get(product.category, "")])
    return [text for text in filled if "[" not in text and len(text) <= 80][:ADS]


def rows(seeds: list[int]) -> Iterator[list[float]]:
    """Per seed: seed, control, mean, best of 30, 95 %, 99 %, maximum, oracle, share judged well formed."""
    corpus = headlines()
    rng = np.random.default_rng(0)
    for seed in seeds:
        market = Market(seed)
        total = np.zeros(7)
        for campaign_id, body in market.campaigns().items():
            texts = ads(body, corpus)
            shares = market.shares(campaign_id)
            for segment in SEGMENTS:
                context = {"segment": segment}
                rates = np.array([market.click_rate(campaign_id, context, {"headline": text}) for text in texts])
                control = np.mean([market.click_rate(campaign_id, context, slots) for slots in body["controls"]])
                best = rng.choice(rates, (200, 30)).max(axis=1).mean()
                valid = np.mean([market.valid(campaign_id, {"headline": text}) for text in texts])
                figures = [control, rates.mean(), best, *np.quantile(rates, [0.95, 0.99]), rates.max(), valid]
                total += shares[segment] * np.array(figures)
        yield [seed, *total[:6], market.oracle_rate(), total[6]]


def main() -> None:
    """Print the table in Markdown."""
    print("| seed | control | mean ad | best of 30 | 95 % | 99 % | best of 2,000 | oracle | well formed |")
    print("|---|---|---|---|---|---|---|---|---|")
    for seed, *figures in rows([int(seed) for seed in sys.argv[1:]] or [1, 2, 3, 4, 5]):
        print(f"| {seed:.0f} | " + " | ".join(f"{100 * figure:.1f} %" for figure in figures) + " |", flush=True)


if __name__ == "__main__":
    main()
