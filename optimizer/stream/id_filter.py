"""Which generations of rows may hold an id: a Bloom filter (Bloom 1970) of each, stored side by side bit by bit.

Nearly every decision that arrives is new, and a B-tree of ten million random ids would have to be asked on the disk to
say so. The filter answers from memory, for a whole batch in a few array operations: 2 MiB for each eight generations of
65,536 rows, whatever the ids are. It never misses an id; of absent ones it names about one in a thousand a generation.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

GENERATION_BITS: Final = 16  # rows in a generation, as a power of two
_GROUP: Final = 8  # generations in an array: the bits of a byte
_BITS: Final = 21  # positions of a generation, as a power of two: 32 a row
# Odd multipliers (multiplicative hashing, Knuth 6.4): a 32-bit hash becomes four positions.
_MULTIPLIERS: Final = np.array(
    [[0x9E3779B97F4A7C15], [0xC2B2AE3D27D4EB4F], [0x165667B19E3779F9], [0xD6E8FEB86659FD93]], dtype=np.uint64
)
_SHIFT: Final = np.uint64(64 - _BITS)


class IdFilter:
    """The ids of the rows held, by their 32-bit hashes; rows are numbered by `seq`, ever upwards."""

    def __init__(self) -> None:
        self._groups: dict[int, NDArray[np.uint8]] = {}
        self._rows: Counter[int] = Counter()

    def add(self, rows: Sequence[tuple[int, int]]) -> None:
        """Note new rows: (hash, seq)."""
        if not rows:
            return
        hashes, seqs = np.array(rows, dtype=np.uint64).T
        generations = (seqs >> np.uint64(GENERATION_BITS)).astype(np.int64)
        for generation in np.unique(generations).tolist():
            mine = hashes[generations == generation]
            group = generation // _GROUP
            if group not in self._groups:
                self._groups[group] = np.zeros(1 << _BITS, dtype=np.uint8)
            self._groups[group][_positions(mine)] |= np.uint8(1 << generation % _GROUP)
            self._rows[generation] += len(mine)

    def remove(self, seq: int) -> None:
        """A row is gone. Its bits go with the last row of its generation."""
        generation = seq >> GENERATION_BITS
        self._rows[generation] -= 1
        if self._rows[generation]:
            return
        del self._rows[generation]
        group = generation // _GROUP
        if any(other // _GROUP == group for other in self._rows):
            self._groups[group] &= np.uint8(0xFF ^ (1 << generation % _GROUP))
        else:
            del self._groups[group]

    def find(self, hashes: Sequence[int]) -> Iterator[tuple[int, int]]:
        """(index in `hashes`, generation) wherever a row may be."""
        if not hashes or not self._groups:
            return
        positions = _positions(np.array(hashes, dtype=np.uint64))
        for group, bits in self._groups.items():
            words = np.bitwise_and.reduce(bits[positions], axis=0)
            for index in np.flatnonzero(words).tolist():
                word = int(words[index])
                for bit in range(_GROUP):
                    if word >> bit & 1:
                        yield index, group * _GROUP + bit


def _positions(hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """[4, n] positions of [n] hashes; the products wrap round at 64 bits, as they should."""
    return (hashes * _MULTIPLIERS) >> _SHIFT
