"""The replay buffer: revisions replace each other, totals equal a rebuild from the last ones, the old makes room."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimizer.learning.buffer import ReplayBuffer
from optimizer.types import Attribution, Outcome, RewardWeights
from tests.learning_rig import START_MS, outcome

HEADS = 3
WINDOW = 60_000
BRIEF = Attribution(click_window_ms=WINDOW)
PAID = RewardWeights(click=1.0, conversion=5.0)
STATES = ("open", "clicked", "converted", "viewed", "closed", "closed_click")


def record(name: str, revision: int, state: str) -> Outcome:
    """A revision in one of the states of an impression's life; `viewed` is a conversion without a click."""
    click = state in ("clicked", "converted", "closed_click")
    conversions = int(state in ("converted", "viewed"))
    return outcome(
        name,
        revision,
        click=click,
        conversions=conversions,
        closed=state.startswith("closed"),
        attribution=BRIEF,
        reward=PAID,
    )


def filled(buffer: ReplayBuffer, records: list[tuple[int, Outcome]]) -> ReplayBuffer:
    for row, revised in records:
        while buffer.rows <= row:
            buffer.new_row(buffer.rows)
        buffer.add(row, revised)
    return buffer


def arrays(buffer: ReplayBuffer, now_ms: int) -> list[np.ndarray]:
    """Everything that the critic sees at `now_ms`; open decisions in an order of their own."""
    open_ = buffer.settle(now_ms)
    totals = buffer.totals()
    order = np.lexsort((*open_.weight.T, open_.age_ms, open_.row))
    return [*totals, open_.row[order], open_.age_ms[order], open_.window_ms[order], open_.weight[order]]


@settings(max_examples=120)
@given(
    steps=st.lists(
        st.tuples(st.integers(0, 5), st.sampled_from(STATES), st.sampled_from([None, 1_000, WINDOW + 1])), max_size=30
    )
)
def test_any_revisions_leave_the_totals_of_a_rebuild(steps: list[tuple[int, str, int | None]]) -> None:
    # Decision k is in row k % 2; between revisions time may pass, so that what is open is settled by age in between.
    buffer, last, revisions = filled(ReplayBuffer(HEADS), []), {}, [0] * 6
    buffer.new_row(0)
    buffer.new_row(1)
    for name, state, settled_at in steps:
        revisions[name] += 1
        last[name] = record(f"d{name}", revisions[name], state)
        assert buffer.add(name % 2, last[name])
        assert not buffer.add(name % 2, last[name])
        if settled_at is not None:
            buffer.settle(START_MS + settled_at)
    rebuilt = ReplayBuffer(HEADS)
    rebuilt.new_row(0)
    rebuilt.new_row(1)
    for name, revised in last.items():
        rebuilt.add(name % 2, revised)
    late = START_MS + WINDOW + 1
    for got, expected in zip(arrays(buffer, late), arrays(rebuilt, late), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-4)


def test_open_clicked_retracted_closed_moves_its_weight_each_time() -> None:
    buffer = filled(ReplayBuffer(HEADS), [(0, record("d", 1, "open"))])
    weight = buffer.bootstrap("d")
    open_ = buffer.settle(START_MS + 10)
    np.testing.assert_array_equal(open_.weight, [weight])
    assert (open_.row.tolist(), open_.age_ms.tolist(), open_.window_ms.tolist()) == ([0], [10], [WINDOW])
    buffer.add(0, record("d", 2, "clicked"))
    np.testing.assert_array_equal(buffer.totals().clicked, [weight])
    assert len(buffer.settle(START_MS).row) == 0
    buffer.add(0, record("d", 3, "open"))
    np.testing.assert_array_equal(buffer.totals().clicked, [weight * 0])
    assert len(buffer.settle(START_MS).row) == 1
    buffer.add(0, record("d", 4, "closed"))
    np.testing.assert_array_equal(buffer.totals().settled, [weight])
    assert len(buffer.settle(START_MS).row) == 0


def test_a_click_after_the_window_was_settled_takes_the_zero_back() -> None:
    buffer = filled(ReplayBuffer(HEADS), [(0, record("d", 1, "open"))])
    assert len(buffer.settle(START_MS + WINDOW).row) == 1
    assert len(buffer.settle(START_MS + WINDOW + 1).row) == 0
    np.testing.assert_array_equal(buffer.totals().settled, [buffer.bootstrap("d")])
    buffer.add(0, record("d", 2, "clicked"))
    np.testing.assert_array_equal(buffer.totals().settled, np.zeros((1, HEADS)))
    np.testing.assert_array_equal(buffer.totals().clicked, [buffer.bootstrap("d")])


def test_a_repeated_or_older_revision_changes_nothing() -> None:
    buffer = filled(ReplayBuffer(HEADS), [(0, record("d", 3, "clicked"))])
    assert not buffer.add(0, record("d", 3, "clicked"))
    assert not buffer.add(0, record("d", 2, "open"))
    np.testing.assert_array_equal(buffer.totals().clicked, [buffer.bootstrap("d")])


def test_the_oldest_make_room_and_stay_in_their_rows_totals() -> None:
    records = [(at % 2, record(f"d{at}", 1, "clicked" if at % 3 == 0 else "open")) for at in range(9)]
    buffer = filled(ReplayBuffer(HEADS, capacity=4), records)
    assert list(buffer.entries) == ["d5", "d6", "d7", "d8"]
    assert buffer.evicted == 5
    late = START_MS + WINDOW + 1
    for got, expected in zip(arrays(buffer, late), arrays(filled(ReplayBuffer(HEADS), records), late), strict=True):
        np.testing.assert_allclose(got, expected)
    # A revision of one that is gone can't be told from what its row holds already: counted, not added.
    assert not buffer.add(0, record("d0", 2, "closed"))
    assert buffer.stale_revisions == 1


def test_the_bootstrap_is_a_poisson_1_of_the_decision_alone() -> None:
    # 4,000 decisions x 3 heads: mean and variance 1 within 5 standard errors (false alarm below 1e-5 each).
    draws = np.stack([ReplayBuffer(HEADS).bootstrap(f"decision-{at}") for at in range(50)])
    other = np.stack([ReplayBuffer(HEADS).bootstrap(f"decision-{at}") for at in range(50)])
    np.testing.assert_array_equal(draws, other)
    buffer = ReplayBuffer(HEADS)
    many = np.stack([buffer.bootstrap(f"decision-{at}") for at in range(4_000)])
    assert many.mean() == pytest.approx(1.0, abs=0.05)
    assert many.var() == pytest.approx(1.0, abs=0.1)
    assert not np.array_equal(
        draws, np.stack([ReplayBuffer(HEADS, salt=1).bootstrap(f"decision-{at}") for at in range(50)])
    )


def test_rows_grow_without_losing_what_they_hold() -> None:
    buffer = filled(ReplayBuffer(HEADS), [(at, record(f"d{at}", 1, "clicked")) for at in range(600)])
    expected = np.stack([buffer.bootstrap(f"d{at}") for at in range(600)])
    np.testing.assert_array_equal(buffer.totals().clicked, expected)
    assert buffer.row_of(599) == 599
    assert buffer.row_of("never") is None


@pytest.mark.parametrize("share", [0.1, 1e-5], ids=["light", "beyond the unit's limit"])
def test_what_came_before_a_discount_counts_its_share_and_a_late_revision_takes_just_that_back(share: float) -> None:
    buffer = filled(ReplayBuffer(HEADS), [(0, record("old", 1, "clicked")), (0, record("late", 1, "open"))])
    buffer.discount(share)
    filled(buffer, [(0, record("new", 1, "clicked"))])
    old, late, new = (buffer.bootstrap(name) for name in ("old", "late", "new"))
    np.testing.assert_allclose(buffer.totals().clicked[0], share * old + new, rtol=1e-5)
    np.testing.assert_allclose(buffer.settle(START_MS).weight, [share * late], rtol=1e-5)
    buffer.add(0, record("late", 2, "clicked"))
    np.testing.assert_allclose(buffer.totals().clicked[0], share * (old + late) + new, rtol=1e-5)
    buffer.add(0, record("old", 2, "closed"))
    np.testing.assert_allclose(buffer.totals().clicked[0], share * late + new, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(buffer.totals().settled[0], share * old, rtol=1e-5)


@pytest.mark.parametrize("share", [0.0, -1.0, 1.5, float("nan")])
def test_an_impossible_discount_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="share"):
        ReplayBuffer(HEADS).discount(share)
