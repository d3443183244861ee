"""What a click counts where conversions come back but are not paid for: the guard against bait."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


POWER = 2.0


def click_worth(converts: Floats, control: float) -> Floats:
    """min(1, c / c0) ** POWER, float64[n]: a click counts in full where it converts as often as a control's, a quarter
    where it converts half as often. It never counts more: what is not paid for is no aim of its own.

    By click and not by impression: text that draws nine times the clicks would have to lose nine tenths of its
    conversions before it had fewer of them than control, and by then it would be shown everywhere. Squared, since c is
    learnt after the clicks: drawn towards c0 by its prior, it is too high just when it matters (docs/decisions.md).

    Args:
      converts: c float[n], probability that a click on each text converts.
      control: c0 > 0, the same of the control texts.
    """
    if not control > 0:
        raise ValueError(f"control: got {control}, expected > 0")
    return np.minimum(1.0, np.asarray(converts, np.float64) / control) ** POWER
