"""The filter before the index of ids: it never misses one, and seldom names one that is not there."""

from __future__ import annotations

import random

from optimizer.stream.id_filter import GENERATION_BITS, IdFilter

ROWS = 1 << GENERATION_BITS


def hashes(count: int, seed: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.getrandbits(32) for _ in range(count)]


def test_what_was_added_is_found_in_its_generation() -> None:
    filter_ = IdFilter()
    mine = hashes(2_000, 1)
    rows = [(hash_, generation * ROWS + i) for generation in (0, 3, 9) for i, hash_ in enumerate(mine)]
    filter_.add(rows)
    found = set(filter_.find(mine))
    assert {(i, generation) for i in range(len(mine)) for generation in (0, 3, 9)} <= found


def test_a_full_generation_names_few_that_are_absent() -> None:
    filter_ = IdFilter()
    filter_.add([(hash_, seq) for seq, hash_ in enumerate(hashes(ROWS, 2))])
    wrong = sum(1 for _ in filter_.find(hashes(100_000, 3)))
    # (1 - e^(-4/32))^4 = 0.00019 of them: 19 +- 4.4; one seed in a million would fail, and this is one seed.
    assert wrong < 45


def test_a_generation_goes_with_its_last_row_and_leaves_its_neighbours() -> None:
    filter_ = IdFilter()
    filter_.add([(7, 0), (8, 1), (7, ROWS)])
    filter_.remove(0)
    assert (0, 0) in set(filter_.find([8])), "bits stay while the generation has rows"
    filter_.remove(1)
    assert set(filter_.find([7, 8])) == {(0, 1)}
    filter_.remove(ROWS)
    assert set(filter_.find([7])) == set()


def test_an_empty_filter_knows_nothing() -> None:
    assert list(IdFilter().find([1, 2])) == []
    assert list(IdFilter().find([])) == []
