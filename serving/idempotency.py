"""`Idempotency-Key`: the same key gives the same answer for ten minutes, from one execution, also under concurrency."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Generic, TypeVar

from optimizer.clock import Clock

T = TypeVar("T")
KEEP_MS = 600_000
MAX_ENTRIES = 100_000


class KeyReused(Exception):
    """The key came before with another body."""


@dataclass(frozen=True)
class _Entry(Generic[T]):
    body: bytes
    until_ms: int
    answer: Future[T]


class Idempotency(Generic[T]):
    """Answers by (tenant, key). Thread-safe; at most `max_entries`, of which the oldest goes first.

    It lives in memory: after a restart a key is new again.
    """

    def __init__(self, clock: Clock, max_entries: int = MAX_ENTRIES, keep_ms: int = KEEP_MS) -> None:
        self._clock = clock
        self._max = max_entries
        self._keep_ms = keep_ms
        self._lock = threading.Lock()
        self._entries: OrderedDict[tuple[str, str], _Entry[T]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def run(self, tenant: str, key: str, body: bytes, answer: Callable[[], T]) -> T:
        """The kept answer, or `answer()` once. A second caller waits for the first; an exception is not kept.

        Raises KeyReused where `body` differs from the first one under the key.
        """
        entry, mine = self._claim((tenant, key), body)
        if entry.body != body:
            raise KeyReused(key)
        if not mine:
            return entry.answer.result()
        try:
            result = answer()
        except BaseException as error:
            with self._lock:
                if self._entries.get((tenant, key)) is entry:
                    del self._entries[(tenant, key)]
            entry.answer.set_exception(error)
            raise
        entry.answer.set_result(result)
        return result

    def _claim(self, at: tuple[str, str], body: bytes) -> tuple[_Entry[T], bool]:
        """The entry under the key, and whether the caller is the one who must fill it."""
        now = self._clock.now_ms()
        with self._lock:
            while self._entries and next(iter(self._entries.values())).until_ms <= now:
                self._entries.popitem(last=False)
            entry = self._entries.get(at)
            if entry is not None:
                return entry, False
            entry = _Entry(body, now + self._keep_ms, Future())
            self._entries[at] = entry
            if len(self._entries) > self._max:
                self._entries.popitem(last=False)
            return entry, True
