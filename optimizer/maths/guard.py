"""What a click counts where conversions come back but are not paid for: the guard against bait."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def click_worth(converts: Floats, control: float) -> Floats:
    """min(1, c / c0), float64[n]: a click counts as much as a control's click where it converts as often, and less in
    proportion where it converts less. It never counts more: what is not paid for is no aim of its own.

    By click and not by impression: text that draws nine times the clicks would have to lose nine tenths of its
    conversions before it had fewer of them than control, and by then it would be shown everywhere.

    Args:
      converts: c float[n], probability that a click on each text converts.
      control: c0 > 0, the same of the control texts.
    """
    if not control > 0:
        raise ValueError(f"control: got {control}, expected > 0")
    return np.minimum(1.0, np.asarray(converts, np.float64) / control)
