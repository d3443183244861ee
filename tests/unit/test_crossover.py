"""Crossover of two texts: where the seam may be, and what is never made."""

from __future__ import annotations

import numpy as np

from optimizer.learning.crossover import Tokens, crossed

# By token: whether it begins a word. 7 is the end of a slot, 5 an ending such as -ing.
OPENS = [True, True, True, True, True, False, True, True, True, True]


def children(*parents: Tokens, count: int = 200) -> set[Tokens]:
    found = crossed(parents, count, OPENS, np.random.default_rng(0))
    texts = [child.tokens for child in found]
    assert len(set(texts)) == len(texts)
    for tokens, seam in found:
        # Before the seam it is the one parent, from it on the other.
        flat = [token for slot in tokens for token in slot]
        each = [[token for slot in parent for token in slot] for parent in parents]
        assert any(flat[:seam] == one[:seam] for one in each)
        assert any(flat[seam:] == one[len(one) - len(flat) + seam :] for one in each)
    return set(texts)


def test_a_child_goes_on_behind_a_token_that_both_have() -> None:
    assert children(((1, 2, 3, 7),), ((4, 2, 6, 7),)) == {((1, 2, 6, 7),), ((4, 2, 3, 7),)}


def test_texts_without_a_common_token_but_their_end_have_no_children() -> None:
    assert children(((1, 3, 7),), ((4, 6, 7),)) == set()
    assert children(((1, 2, 7),)) == set()
    assert children() == set()


def test_no_seam_lies_within_a_word() -> None:
    # Behind the 2 of the first goes on an ending, 5: of `2` `5` no part is a word.
    assert children(((1, 2, 5, 7),), ((4, 2, 6, 7),)) == set()
    # The ending is common: behind it both begin a word.
    assert children(((1, 2, 5, 3, 7),), ((4, 0, 5, 6, 7),)) == {((1, 2, 5, 6, 7),), ((4, 0, 5, 3, 7),)}


def test_slots_before_the_seam_are_of_one_parent_and_those_behind_it_of_the_other() -> None:
    first, second = ((1, 2, 7), (3, 2, 8, 7), (0, 7)), ((4, 9, 7), (6, 2, 9, 7), (1, 7))
    assert children(first, second) == {((1, 2, 7), (3, 2, 9, 7), (1, 7)), ((4, 9, 7), (6, 2, 8, 7), (0, 7))}


def test_it_stops_at_what_is_wanted_and_repeats_itself_with_its_seed() -> None:
    rng = np.random.default_rng(1)
    parents = [((*rng.integers(0, 5, 6).tolist(), 7),) for _ in range(20)]
    found = crossed(parents, 12, OPENS, np.random.default_rng(3))
    assert len(found) == 12
    assert found == crossed(parents, 12, OPENS, np.random.default_rng(3))
    assert not {child.tokens for child in found} & set(parents)
