"""Records that can't be read: counted, logged with their place, and skipped. One bad record must not stop every reader
of its topic for good: it would be there again after each restart."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final, TypeVar

import msgspec

from optimizer.stream.log import Record

logger = logging.getLogger(__name__)

T = TypeVar("T")
# msgspec's own errors, bytes that are no text, a number beyond its type, and nesting that is too deep.
UNREADABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, ValueError, RecursionError)


class GuardedDecode:
    """Counts what its owner had to skip (`skipped`). Not thread-safe."""

    def __init__(self) -> None:
        self.skipped = 0

    def read(self, record: Record, part: bytes, decode: Callable[[bytes], T]) -> T | None:
        """`part` of the record (its key or its value), decoded; None where it can't be."""
        try:
            return decode(part)
        except UNREADABLE as error:
            self.skipped += 1
            logger.warning("skipped %s[%d]@%d: %s", record.topic, record.partition, record.offset, error)
            return None
