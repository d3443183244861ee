"""A comparison's figures as a table for people, with what has to be known beside them. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from simulators.notes import apart_notes, failed_notes, row_notes
from simulators.results import Apart, CompareRow, Failed

COLUMNS = (
    ("mean CTR", "mean_ctr", 4),
    ("last tenth", "last_tenth_ctr", 4),
    ("of oracle", "share_of_oracle", 3),
    ("reward", "mean_reward", 4),
    ("its last tenth", "last_tenth_reward", 4),
    ("of best", "share_of_reward", 3),
    ("KL", "kl", 2),
    ("valid", "valid_share", 3),
    ("texts", "distinct_texts", 0),
    ("seconds", "seconds", 1),
)
REWARD_ALONE = ("last_tenth_reward", "share_of_reward")
"""Left out where the campaigns pay for clicks alone."""
WIDTH = 180


def show(figures: Mapping[str, Any]) -> str:
    """Means over the seeds and half the width of their 95 % intervals."""
    # Imported here: the command's help does without.
    from rich.console import Console
    from rich.table import Table

    rows = [CompareRow(**row) for row in figures["rows"]]
    seeds = len({row.seed for row in rows})
    title = f"{figures['world']}, {figures['impressions']:,} impressions, {seeds} {'seed' if seeds == 1 else 'seeds'}"
    by_reward = figures.get("ranked_by") == "mean_reward"
    columns = [column for column in COLUMNS if by_reward or column[1] not in REWARD_ALONE]
    table = Table(title=title, title_justify="left")
    for number, name in enumerate(("policy", *(heading for heading, _, _ in columns))):
        table.add_column(name, justify="left" if number == 0 else "right", no_wrap=True)
    for entry in figures["summary"]:
        table.add_row(entry["name"], *(_cell(entry[key], digits) for _, key, digits in columns))
    console = Console(width=WIDTH)
    with console.capture() as capture:
        console.print(table)
    differ = figures.get("arrivals_differ", ())
    notes = [
        *apart_notes([Apart(one["seed"], one["name"], one["from"], one["than"]) for one in differ]),
        *failed_notes([Failed(**one) for one in figures.get("failed", ())]),
        *(f"skipped: {entry['name']}: {entry['why']}" for entry in figures["skipped"]),
        *row_notes(rows),
    ]
    return "\n".join([capture.get().rstrip(), *notes])


def _cell(measured: Mapping[str, float | None], digits: int) -> str:
    mean, high = measured["mean"], measured["high"]
    if mean is None:
        return "-"
    return f"{mean:.{digits}f}" + ("" if high is None else f" ±{high - mean:.{digits}f}")
