"""Writes the market world's own reference text, `simulators/worlds/market_data/reference.txt`.

The world may not import the optimizer: it carries its own data. This picks, out of many generated texts, those that
bring the most new pairs of neighbouring words: a modest file holds nearly every pair that such copy is made of.
Run from the repository's root: `python scripts/make_market_reference.py`.
"""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

from optimizer.learning.corpus import generate_corpus

TARGET = Path("simulators/worlds/market_data/reference.txt")
ROWS = 150_000
MAX_BYTES = 280_000
MAX_CHARS = 80


def pairs(text: str) -> set[tuple[str, str]]:
    """Neighbouring words, with the text's edges."""
    words = ["^", *re.findall(r"[\w'\-]+|[.!?]", text.lower()), "$"]
    return set(pairwise(words))


def main() -> None:
    """Choose and write the lines."""
    texts: list[str] = []
    known: set[str] = set()
    for row in generate_corpus(20261124, ROWS):
        for text in row.slots.values():
            plain = re.sub(r" #\w+", "", text)
            if len(plain) <= MAX_CHARS and "[fact]" not in plain and plain not in known:
                known.add(plain)
                texts.append(plain)
    # Two passes: whatever brings two new pairs first, then whatever brings one, up to the size that a repository likes.
    seen: set[tuple[str, str]] = set()
    chosen: list[str] = []
    size = 0
    for least in (2, 1):
        for text in texts:
            fresh = pairs(text) - seen
            if len(fresh) >= least and size + len(text.encode()) + 1 <= MAX_BYTES:
                seen |= fresh
                chosen.append(text)
                size += len(text.encode()) + 1
    TARGET.write_text("\n".join(sorted(chosen)) + "\n", encoding="utf-8")
    print(f"{len(chosen)} lines, {len(seen)} pairs, {size} bytes")


if __name__ == "__main__":
    main()
