"""New texts out of two good ones: one-point crossover at a token that both have.

The first text up to a token, then what follows the same token in the second (homologous one-point crossover: Holland
1975, "Adaptation in Natural and Artificial Systems", section 6.2; Langdon 2000, "Size fair and homologous tree
crossovers"). What stands on either side of the seam has stood so in one of the two; whether the whole reads well is
for a language model to say, at the seam above all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

Tokens = tuple[tuple[int, ...], ...]
"""A text in tokens, slot by slot."""


class Child(NamedTuple):
    """`seam`: number of the first token out of the second parent, counted over all slots."""

    tokens: Tokens
    seam: int


TRIES = 4  # draws for each text that is wanted: not every pair has a seam


def crossed(parents: Sequence[Tokens], count: int, opens: Sequence[bool], rng: np.random.Generator) -> list[Child]:
    """At most `count` distinct texts, none of them a parent, in the order in which they were drawn.

    Args:
      parents: texts with the same slots.
      opens: by token, whether it begins a word or is none: a seam never lies within a word.
    """
    found: dict[Tokens, Child] = {}
    known = set(parents)
    if len(parents) < 2:
        return []
    for _ in range(TRIES * count):
        first, second = (parents[int(at)] for at in rng.choice(len(parents), 2, replace=False))
        child = _cross(first, second, opens, rng)
        if child is not None and child.tokens not in known:
            found.setdefault(child.tokens, child)
            if len(found) == count:
                break
    return list(found.values())


def _cross(first: Tokens, second: Tokens, opens: Sequence[bool], rng: np.random.Generator) -> Child | None:
    """The slots before the seam are of the first text, those behind it of the second; None where no seam is found."""
    slot = int(rng.integers(len(first)))
    head, tail = first[slot], second[slot]
    # Behind the last token of a slot there is nothing to swap.
    seams = [
        (at, to)
        for at, token in enumerate(head[:-1])
        for to, other in enumerate(tail[:-1])
        if token == other and opens[head[at + 1]] and opens[tail[to + 1]]
    ]
    if not seams:
        return None
    at, to = seams[int(rng.integers(len(seams)))]
    tokens = (*first[:slot], head[: at + 1] + tail[to + 1 :], *second[slot + 1 :])
    return Child(tokens, sum(map(len, first[:slot])) + at + 1)
