"""Which partitions a joiner owns: all of them on the embedded log, a share of them in a group."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, Protocol


class Assigned(NamedTuple):
    """The partitions that are ours. `generation` rises whenever they were given out anew, even to the same owners; in 0
    a group has not given us any yet."""

    generation: int
    partitions: frozenset[int]


class Assignment(Protocol):
    """Says what is ours now. It only shares the work out: that nobody else publishes is the log's `publisher`'s part,
    so an answer that has become stale costs time and no outcome."""

    def current(self) -> Assigned:
        """What is ours at this moment; cheap, asked once a step."""
        ...

    def close(self) -> None:
        """Leave, so that others get our share at once."""
        ...


class Fixed:
    """Always the same partitions."""

    def __init__(self, partitions: Iterable[int]) -> None:
        self._assigned = Assigned(0, frozenset(partitions))

    def current(self) -> Assigned:
        return self._assigned

    def close(self) -> None:
        """There is nobody to tell."""
