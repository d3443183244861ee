"""Searches for the best text that a world's people could be shown: the yardstick of reports, never of policies.

It starts from all reference lines, then puts a second and a third sentence behind the best ones. What two sentences
give together is first guessed from their features (cheap, for tens of thousands of pairs), then read exactly for the
most promising. So the result is a true rate of a real text: a lower bound of the optimum, above what sampling finds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from simulators.worlds.taste import Vector

BEAM = 150
"""How many texts are carried on, and how many second sentences each is tried with."""
READ = 100
"""How many guesses a round are read exactly."""
ROUNDS = 2


def ended(text: str) -> str:
    """The text with a full stop, unless it has an end mark."""
    return text if text[-1:] in ".!?" else f"{text}."


def best_text(
    lines: Sequence[str],
    matrix: Vector,
    guess: Callable[[Vector], Vector],
    read: Callable[[str], float],
    allowed: Callable[[str], bool],
    topics: int,
) -> tuple[float, str]:
    """(liking, text) of the best text found: the first of `best_texts`, whose arguments it takes."""
    return best_texts(lines, matrix, guess, read, allowed, topics)[0]


def best_texts(
    lines: Sequence[str],
    matrix: Vector,
    guess: Callable[[Vector], Vector],
    read: Callable[[str], float],
    allowed: Callable[[str], bool],
    topics: int,
) -> list[tuple[float, str]]:
    """(liking, text) of every text read on the way, the best first.

    Args:
      lines: texts to start from, and to join.
      matrix: float64[N, K], the lines' features; the first `topics` columns saturate, the others are 0 or 1.
      guess: liking from features, float64[M] for float64[M, K].
      read: the exact liking of a text.
      allowed: whether a text may be shown (length, well-formedness).
    Raises:
      ValueError: no line is allowed.
    """
    order = np.argsort(-guess(matrix))
    singles: list[int] = []
    found: dict[str, float] = {}
    for at in order[: 4 * READ]:
        if allowed(lines[at]):
            singles.append(int(at))
            found[lines[at]] = read(lines[at])
            if len(singles) >= BEAM:
                break
    if not singles:
        raise ValueError("best_text: no line is allowed; check the length limit and the reference text")
    second, beam = matrix[singles], [(lines[at], matrix[at]) for at in singles]
    for _ in range(ROUNDS):
        first = np.stack([row for _, row in beam])
        both = np.maximum(first[:, None, :], second[None, :, :])
        both[:, :, :topics] = 1.0 - (1.0 - first[:, None, :topics]) * (1.0 - second[None, :, :topics])
        guesses = guess(both.reshape(-1, matrix.shape[1]))
        longer: list[tuple[float, str, Vector]] = []
        for place in np.argsort(-guesses)[: 12 * READ]:
            left, right = divmod(int(place), len(singles))
            text = f"{ended(beam[left][0])} {lines[singles[right]]}"
            if text not in found and lines[singles[right]] not in beam[left][0] and allowed(text):
                found[text] = read(text)
                longer.append((found[text], text, both[left, right]))
                if len(longer) >= READ:
                    break
        if not longer:
            break
        longer.sort(key=lambda one: (-one[0], one[1]))
        beam = [(text, row) for _, text, row in longer[:BEAM]]
    return sorted(((liking, text) for text, liking in found.items()), reverse=True)
