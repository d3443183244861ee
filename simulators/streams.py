"""The random streams of who plays. Worlds are begun with the same seed, and those written by others may take any small
number for theirs: a policy that drew with the numbers which decide clicks would not be drawing. (The generator's and
the critic's are production's, [seed, 11] and [seed, 7].)"""

from __future__ import annotations

import numpy as np

SERVICE_STREAM, BANDIT_STREAM, VOWPAL_STREAM, LANGUAGE_STREAM = 0x5E21, 0xB0B5, 0x7093, 0x1A46


def salted(stream: int, seed: int) -> int:
    """A seed of that stream's own, for what takes one number: 32 bits."""
    return int(np.random.SeedSequence([stream, seed]).generate_state(1)[0])
