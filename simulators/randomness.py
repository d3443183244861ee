"""The global random generators of Python, numpy and torch, as one world knows them.

A world that others wrote may draw from them. So may whoever plays it, and each player as often as it likes: without a
state of its own the world would meet other numbers with every player.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.random import mtrand


class Randomness:
    """States of the global generators that begin by `seed` and go on inside `restored` alone.

    Outside they begin by the seed too: what a world draws where it only tells the truth is then at least the same in
    every run."""

    def __init__(self, seed: int) -> None:
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002 - the global one is what this is about
        # Switched as a whole: that is a hundred times as fast as copying its state.
        self._numpy: np.random.BitGenerator = np.random.MT19937(np.random.SeedSequence(seed))
        self._python = random.getstate()
        self._torch: Any = None
        torch = sys.modules.get("torch")
        if torch is not None:
            torch.manual_seed(seed)
            self._torch = torch.get_rng_state()

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Inside, the generators stand where they stood when it was last left."""
        torch = sys.modules.get("torch")
        python, bits = random.getstate(), mtrand.get_bit_generator()
        state = None if torch is None else torch.get_rng_state()
        random.setstate(self._python)
        mtrand.set_bit_generator(self._numpy)
        if torch is not None and self._torch is not None:
            torch.set_rng_state(self._torch)
        try:
            yield
        finally:
            self._python = random.getstate()
            random.setstate(python)
            self._numpy = mtrand.get_bit_generator()
            mtrand.set_bit_generator(bits)
            if torch is not None:
                self._torch = torch.get_rng_state()
                torch.set_rng_state(state)
