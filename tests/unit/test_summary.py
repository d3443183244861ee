"""Means over seeds, their intervals, and Adloop beside the others."""

from __future__ import annotations

import pytest

from simulators.results import CompareRow
from simulators.summary import beside_ours, interval, summary


def row(name: str, seed: int, ctr: float) -> CompareRow:
    return CompareRow(name, seed, ctr, 2 * ctr, 0.5, ctr, 0.0, 1.0, 7, 1.0, ctr / 0.5)


def test_an_interval_is_students() -> None:
    # t of 2 degrees of freedom at 97.5 %: 4.302653; standard deviation 1, over the root of 3.
    assert interval([1.0, 2.0, 3.0]) == pytest.approx({"mean": 2.0, "low": 2 - 2.484138, "high": 2 + 2.484138})
    assert interval([4.0]) == {"mean": 4.0, "low": None, "high": None}
    assert interval([]) == {"mean": None, "low": None, "high": None}


def test_policies_are_summed_up_over_seeds() -> None:
    first, second = summary([row("b", 1, 0.1), row("a", 1, 0.2), row("b", 2, 0.3)])
    assert (first["name"], first["seeds"], second["name"], second["seeds"]) == ("b", 2, "a", 1)
    assert first["mean_ctr"]["mean"] == pytest.approx(0.2)
    assert first["share_of_oracle"]["mean"] == pytest.approx(0.4)


def test_ratios_are_of_the_same_seed() -> None:
    rows = [row("adloop", 1, 0.4), row("adloop", 2, 0.1), row("vw", 1, 0.1), row("vw", 2, 0.2), row("vw", 3, 0.9)]
    (entry,) = beside_ours([*rows, row("adloop", 4, 0.1)])
    assert entry["name"] == "vw"
    assert entry["mean_ctr"]["mean"] == pytest.approx((4.0 + 0.5) / 2)
    assert (entry["mean_ctr"]["least"], entry["mean_ctr"]["ahead"]) == (pytest.approx(0.5), 1)
    nothing = beside_ours([row("adloop", 1, 0.4), row("silent", 1, 0.0)])[0]
    assert nothing["mean_ctr"] == {"mean": None, "low": None, "high": None, "least": None, "ahead": 1}
    assert nothing["seeds"] == 1
    assert beside_ours([row("vw", 1, 0.1)]) == []
