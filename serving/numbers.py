"""Numbers and times as people read them (en-US), for the live page and the reports. Pure functions to plain text."""

from __future__ import annotations

import math
from datetime import UTC, datetime

NOTHING = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"
SECOND_MS, MINUTE_MS, HOUR_MS, DAY_MS = 1_000, 60_000, 3_600_000, 86_400_000


def integer(value: float) -> str:
    """12345 -> 12,345."""
    return f"{round(value):,}".replace("-", MINUS)


def compact(value: float) -> str:
    """For axes and small places: 950, 1.2K, 34K, 1.5M, 2B."""
    size, sign = abs(value), MINUS if value < 0 else ""
    for limit, unit in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        # 999,500 would round to "1,000K": it is a million already.
        if size >= limit * 0.9995:
            scaled = size / limit
            return f"{sign}{scaled:.1f}".removesuffix(".0") + unit if scaled < 9.95 else f"{sign}{scaled:.0f}{unit}"
    return f"{sign}{size:.4g}"


def per_thousand(rate: float | None) -> str:
    """A rate in [0, 1] as clicks per 1,000: 0.0413 -> 41.3."""
    return NOTHING if rate is None else f"{rate * 1000.0:,.1f}"


def percent(share: float | None, digits: int = 1) -> str:
    """A share as a percentage: 0.1234 -> 12.3%."""
    return NOTHING if share is None else f"{share * 100.0:,.{digits}f}%".replace("-", MINUS)


def signed_percent(change: float | None) -> str:
    """A relative change: 1.42 -> +142%, -0.05 -> -5.0% with a true minus sign; one digit below 10 %."""
    if change is None:
        return NOTHING
    size = abs(change) * 100.0
    shown = f"{size:,.1f}" if size < 9.95 else f"{size:,.0f}"
    if float(shown.replace(",", "")) == 0.0:
        return "0%"
    return f"{'+' if change > 0 else MINUS}{shown}%"


def decimal(value: float | None, digits: int = 2) -> str:
    """1234.5 -> 1,234.50."""
    return NOTHING if value is None else f"{value:,.{digits}f}".replace("-", MINUS)


def duration(seconds: float) -> str:
    """75 -> 1 min 15 s."""
    whole = round(seconds)
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours:,} h {minutes} min"
    if minutes:
        return f"{minutes} min {rest} s"
    return f"{seconds:.1f} s" if seconds < 10 else f"{rest} s"


def clock_time(ts: float, step_ms: float = MINUTE_MS) -> str:
    """A UTC epoch time in milliseconds, as precisely as a step of `step_ms` needs: 14:05:10, 14:05 or Nov 24."""
    moment = datetime.fromtimestamp(ts / 1000.0, UTC)
    if step_ms >= DAY_MS:
        return f"{moment:%b} {moment.day}"
    return f"{moment:%H:%M:%S}" if step_ms < MINUTE_MS else f"{moment:%H:%M}"


def date_time(ts: float) -> str:
    """Nov 24, 14:05 UTC."""
    moment = datetime.fromtimestamp(ts / 1000.0, UTC)
    return f"{moment:%b} {moment.day}, {moment:%H:%M} UTC"


def nice_step(span: float, steps: int) -> float:
    """The smallest of 1, 2, 2.5, 5 x 10^k that covers `span` > 0 in at most `steps` steps."""
    raw = span / steps
    power = 10.0 ** math.floor(math.log10(raw))
    # The tolerance keeps a span that is exactly a whole number of steps from being rounded up by a last bit.
    return next(m * power for m in (1.0, 2.0, 2.5, 5.0, 10.0) if m * power >= raw * (1 - 1e-9))


TIME_STEPS = tuple(
    [SECOND_MS * n for n in (1, 2, 5, 10, 15, 30)]
    + [MINUTE_MS * n for n in (1, 2, 5, 10, 15, 30)]
    + [HOUR_MS * n for n in (1, 2, 3, 6, 12)]
    + [DAY_MS * n for n in (1, 2, 7, 14, 30, 90, 180, 365)]
)


def time_step(span_ms: float, steps: int) -> int:
    """The smallest human step of time that covers `span_ms` in at most `steps` steps."""
    return next((step for step in TIME_STEPS if span_ms / step <= steps), TIME_STEPS[-1])
