"""A comparison's rows, summed up over the seeds: means with their intervals, and Adloop beside each of the others."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from simulators.results import CompareRow

MEASURES = (
    "mean_ctr",
    "last_tenth_ctr",
    "share_of_oracle",
    "mean_reward",
    "last_tenth_reward",
    "share_of_reward",
    "kl",
    "valid_share",
    "distinct_texts",
    "seconds",
)
OURS = "adloop"
RATIOS = ("mean_ctr", "last_tenth_ctr", "mean_reward")


def summary(rows: Sequence[CompareRow]) -> list[dict[str, Any]]:
    """One entry a policy, in the rows' order: `name`, `seeds`, and for each of `MEASURES` {mean, low, high}."""
    entries = []
    for name, runs in by_name(rows).items():
        entry: dict[str, Any] = {"name": name, "seeds": len(runs)}
        for measure in MEASURES:
            values = [getattr(run, measure) for run in runs]
            entry[measure] = interval([value for value in values if value is not None])
        entries.append(entry)
    return entries


def beside_ours(rows: Sequence[CompareRow]) -> list[dict[str, Any]]:
    """Adloop over each other policy, seed by seed: for each of `RATIOS` {mean, low, high, least, ahead}.

    `least` is the smallest ratio of a seed; seeds in which the other earned nothing, or either lost, have none. `ahead`
    counts the seeds in which Adloop earned more, of all `seeds` that both played."""
    named = by_name(rows)
    ours = {run.seed: run for run in named.get(OURS, ())}
    entries = []
    for name, runs in named.items():
        if name == OURS or not ours:
            continue
        entry: dict[str, Any] = {"name": name, "seeds": sum(run.seed in ours for run in runs)}
        for measure in RATIOS:
            pairs = [(getattr(ours[run.seed], measure), getattr(run, measure)) for run in runs if run.seed in ours]
            ratios = [mine / theirs for mine, theirs in pairs if theirs > 0.0 and mine >= 0.0]
            ahead = sum(mine > theirs for mine, theirs in pairs)
            entry[measure] = interval(ratios) | {"least": min(ratios, default=None), "ahead": ahead}
        entries.append(entry)
    return entries


def interval(values: Sequence[float]) -> dict[str, float | None]:
    """Mean and its 95 % confidence interval by Student's t over the seeds; no interval from fewer than two, no mean
    from none."""
    if not values:
        return {"mean": None, "low": None, "high": None}
    mean = fmean(values)
    if len(values) < 2:
        return {"mean": mean, "low": None, "high": None}
    # Imported here: it takes a second, which the command's help does without.
    from scipy.stats import t

    reach = float(t.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
    return {"mean": mean, "low": mean - reach, "high": mean + reach}


def by_name(rows: Sequence[CompareRow]) -> Mapping[str, list[CompareRow]]:
    """The rows of each policy, policies in the order of their first row."""
    named: dict[str, list[CompareRow]] = {}
    for row in rows:
        named.setdefault(row.name, []).append(row)
    return named
