"""What a reader of a comparison has to know beside its figures, in sentences. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from simulators.results import Apart, CompareRow, Failed


def row_notes(rows: Sequence[CompareRow]) -> list[str]:
    """Of the runs themselves."""
    notes = [f"halted: {row.name}, seed {row.seed}: {row.halted}" for row in rows if row.halted]
    without = dict.fromkeys((row.seed, row.oracle_why) for row in rows if row.oracle_why)
    notes += [f"no oracle: seed {seed}: {why}" for seed, why in without]
    if any(row.reward_is == "realised" for row in rows):
        notes.append(
            "reward: what the reactions were worth to the campaigns, chance included: the world does not tell what is "
            "expected (no true_rate)"
        )
    if untold := [f"{row.untold:,} ({row.name}, seed {row.seed})" for row in rows if row.untold]:
        notes.append(f"reactions still to come when the run ended: {', '.join(untold)}")
    if cut := max((row.keys_cut for row in rows), default=0):
        notes.append(f"contexts: no policy was given the last keys (up to {cut:,}) of those with more than 64")
    return notes


def failed_notes(failed: Sequence[Failed]) -> list[str]:
    """Of runs that are missing."""
    return [f"failed: {one.name}, seed {one.seed}: {one.why} (left out of the means)" for one in failed]


def apart_notes(apart: Sequence[Apart]) -> list[str]:
    """Of arrivals that were not the same."""
    return [
        f"arrivals differ: seed {one.seed}: {one.name} met others than {one.than} from arrival {one.start:,} on; the "
        "world lets what it is shown decide who comes next, or is not decided by its seed"
        for one in apart
    ]
