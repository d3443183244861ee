"""SIGTERM ends a command as Ctrl-C does: by KeyboardInterrupt, so that what it holds is let go on the way out and its
exit status is the command's own."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def terminable() -> Iterator[None]:
    """Inside, SIGTERM raises KeyboardInterrupt in the main thread; afterwards it does what it did before,
    or what was asked of it inside."""
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        # Whoever has set another since wants it to stay, as a server that must end in order.
        if signal.getsignal(signal.SIGTERM) is interrupt:
            signal.signal(signal.SIGTERM, before)


def interrupt(signal_number: int, frame: object) -> None:
    """A handler that does what Ctrl-C does."""
    raise KeyboardInterrupt
