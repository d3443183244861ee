"""Roles in threads: each a plain `while not stopping: if not role.step(): wait`, restarted where that helps."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import closing
from typing import Protocol

from optimizer.errors import ConfigError, LogTruncated
from optimizer.stream.log import EventLog
from serving.health import Health

logger = logging.getLogger(__name__)

IDLE_S = 0.1
BACKOFF_FIRST_S = 0.5
BACKOFF_MOST_S = 30.0
FATAL = (ConfigError, LogTruncated)  # starting again would end the same way


class Steps(Protocol):
    """A role: a bounded piece of work at a time."""

    def step(self) -> object:
        """Do some work; the result is truthy where there was any."""
        ...

    def close(self) -> None:
        """Let go of what is held open. Called once, in the role's thread, also after a fault."""
        ...


class RoleThread:
    """One role in a thread of its own.

    A role that raises is made anew after a growing pause; a fatal fault is handed to `on_fatal`, which stops the
    process. The state stands in `health.roles` throughout.

    Args:
      make: builds the role, in the thread (it may take long: train a model, replay a log).
      paused: whether an operator has paused the role, which it heeds by itself; shown as its state.
      idle_s: the pause after a step that found nothing to do.
      log: given, an append of this process ends that pause.
    """

    def __init__(
        self,
        name: str,
        make: Callable[[], Steps],
        health: Health,
        stopping: threading.Event,
        on_fatal: Callable[[str], None],
        paused: Callable[[], bool] = lambda: False,
        idle_s: float = IDLE_S,
        log: EventLog | None = None,
    ) -> None:
        self.name = name
        self.restarts = 0
        self._make = make
        self._health = health
        self._stopping = stopping
        self._on_fatal = on_fatal
        self._paused = paused
        self._idle_s = idle_s
        self._log = log
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        health.roles[name] = "starting"

    def start(self) -> None:
        self._thread.start()

    def join(self, timeout_s: float) -> bool:
        """Wait for the thread's end; False where it is still at work."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        backoff = BACKOFF_FIRST_S
        while not self._stopping.is_set():
            try:
                with closing(self._make()) as role:
                    while not self._stopping.is_set():
                        self._step(role)
                        backoff = BACKOFF_FIRST_S
            except FATAL as error:
                self._health.roles[self.name] = f"stopped: {error}"
                self._on_fatal(f"{self.name}: {error}")
                return
            except Exception as error:
                # Anything else may pass (a busy disk, a full one): the server goes on without this role meanwhile.
                if self._stopping.is_set():
                    return
                self.restarts += 1
                self._health.roles[self.name] = f"failed, starts again: {type(error).__name__}: {error}"
                logger.exception("%s failed; it starts again in %.1f s", self.name, backoff)
                self._stopping.wait(backoff)
                backoff = min(2 * backoff, BACKOFF_MOST_S)

    def _step(self, role: Steps) -> None:
        self._health.roles[self.name] = "paused" if self._paused() else "running"
        seen = 0 if self._log is None else self._log.appends()
        if role.step():
            return
        if self._log is None:
            self._stopping.wait(self._idle_s)
        else:
            self._log.wait_for_append(seen, self._idle_s)
