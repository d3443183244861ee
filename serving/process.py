"""One server process put together: views, service, application, and the roles that run beside them in threads."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable
from functools import partial

import numpy as np

from optimizer import metrics
from optimizer.clock import Clock
from optimizer.control import OTHER, read_halt
from optimizer.stream.log import EventLog
from optimizer.types import HALT_REASONS
from serving.app import build_app
from serving.board import LearnerState, LiveBoard
from serving.guardrails import Gate
from serving.health import Health, Metrics
from serving.joiners import ASK_EVERY_S, Asking, Delays, Joining
from serving.live import live_router
from serving.loop import IDLE_S, RoleThread, Steps
from serving.operate import Operator
from serving.roles import (
    LearningOnce,
    PromptGuard,
    Writer,
    files_damage,
    load_critic,
    make_generator,
    make_learner,
)
from serving.routes import Parts
from serving.service import AdService
from serving.settings import Settings
from serving.views import Views

GAUGES_EVERY_S = 0.25
VIEWS_IDLE_S = 0.05  # how soon new pools and versions are served
OF_VERSION = {
    metrics.LEARNER_UNUSED_OUTCOMES: "unused_outcomes",
    metrics.LEARNER_STALE_REVISIONS: "stale_revisions",
    metrics.LEARNER_EVICTED_DECISIONS: "evicted_decisions",
    metrics.CRITIC_CLICKS_EXPECTED: "clicks_expected",
    metrics.CRITIC_CLICKS_SEEN: "clicks_seen",
    metrics.CRITIC_BRIER: "brier",
    metrics.CRITIC_BRIER_SKILL: "brier_skill",
    metrics.POLICY_KL: "kl",
    metrics.POLICY_KL_STEP: "kl_step",
    metrics.POLICY_ENTROPY: "entropy",
    metrics.POLICY_SAMPLES_LENGTH: "samples_length",
    metrics.POLICY_SAMPLES_DUPLICATES: "samples_duplicates",
    metrics.POLICY_SAMPLES_REJECTED: "samples_rejected",
    metrics.POLICY_SKIPPED_STEPS: "skipped_steps",
    metrics.POLICY_CLIPPED_STEPS: "clipped_steps",
    metrics.POLICY_TEMPERED_STEPS: "tempered_steps",
}
"""Gauges that tell what the live version's record says, and the name of the fact there."""
STOP_S = 2.0  # how long all roles together may take to end; HTTP has had its own grace before


class Process:
    """The parts of one process and their life. `fault` is None, or the sentence of the fault that ended it."""

    def __init__(self, settings: Settings, log: EventLog, clock: Clock) -> None:
        self.fault: str | None = None
        self._settings = settings
        self._log = log
        self._clock = clock
        self._stopping = threading.Event()
        self._roles: list[RoleThread] = []
        self._on_fatal: Callable[[], None] = self._stopping.set
        self.board = LiveBoard()
        self.views = Views(log, load_critic(settings.data), Gate().check, self.board)
        self._joining = Joining(clock) if settings.all_roles else Asking(settings.joiners)
        self._delays = Delays()
        self._writer = Writer()
        self._prompts = PromptGuard(settings.data, settings.all_roles, settings.model)
        # Ids must never repeat between processes, so production draws its seed from the operating system.
        rng = np.random.default_rng(int.from_bytes(os.urandom(32), "little"))
        self.service = AdService(
            log,
            clock,
            rng,
            settings.token_keys,
            self.views,
            retention_ms=settings.extra_retention_ms,
            prompt_limit=self._prompts,
            fresh=self._writer.fresh if settings.all_roles else None,
        )
        self.operator = Operator(log, clock, self.views, settings.data, files_damage(settings.data))
        self.health = Health(self.views, log_refuses=self.service.log_refuses)
        self.parts = Parts(self.service, self.operator, settings.api_keys, self.health, self._metrics())
        self.app = build_app(self.parts, live_router(self.board, clock))

    def start(self, on_fatal: Callable[[], None]) -> None:
        """Start the roles. `on_fatal` is called, in a role's thread, once `fault` is set."""
        self._on_fatal = on_fatal
        self._add("views", lambda: _Following(self), idle_s=VIEWS_IDLE_S)
        if isinstance(self._joining, Asking) and self._settings.joiners:
            self._add("joiners", lambda: self._joining, idle_s=ASK_EVERY_S)
        if self._settings.all_roles:
            self._add_background()
        for role in self._roles:
            role.start()

    def _add_background(self) -> None:
        settings, log, clock, joining = self._settings, self._log, self._clock, self._joining
        opened = LearningOnce(settings.data, settings.model)
        if isinstance(joining, Joining):
            extra_ms = settings.extra_retention_ms
            self._add("joiner", lambda: joining.role(log, settings.data, settings.token_keys, clock, extra_ms), log=log)
        self._add("learner", lambda: make_learner(log, opened, clock), self.operator.idle)
        self._add("generator", lambda: self._writer.role(lambda: make_generator(log, opened, clock, self._prompts)))

    def show_gauges(self) -> None:
        """Tell the page what no record of the log says."""
        stream = self._joining.figures()
        if stream is not None:
            self._delays.take(time.monotonic(), stream.delays)
        self.board.set_stream(stream, self._delays.quantile(0.5), self._delays.quantile(0.99))
        why = self.operator.halted()
        if why:
            self.board.set_gauges("halted", why)
            return
        if not self._settings.all_roles:
            self.board.set_gauges(learner="paused" if self.operator.paused() else "running")
            return
        state = self.health.roles["learner"]
        learner: LearnerState = "halted"
        if state in ("running", "paused"):
            learner = "paused" if self.operator.paused() else "running"
        elif state == "starting":
            learner = "waiting"
        reason = {"halted": state, "waiting": "the language model is being prepared"}.get(learner, "")
        self.board.set_gauges(learner, reason)

    def closing(self) -> None:
        """The end has come: open event streams end."""
        self.board.close()

    def ready(self) -> bool:
        """True once the log has been read and requests can be answered."""
        return self.health.started

    def stop(self) -> bool:
        """End the roles; returns whether every thread has ended in time."""
        self._stopping.set()
        deadline = time.monotonic() + STOP_S
        ended = [role.join(max(0.0, deadline - time.monotonic())) for role in self._roles]
        self.parts.close()
        if all(ended):
            self.views.close()
        return all(ended)

    def _add(
        self,
        name: str,
        make: Callable[[], Steps],
        paused: Callable[[], bool] = lambda: False,
        idle_s: float = IDLE_S,
        log: EventLog | None = None,
    ) -> None:
        self._roles.append(RoleThread(name, make, self.health, self._stopping, self._fail, paused, idle_s, log))

    def _fail(self, fault: str) -> None:
        if self.fault is None:
            self.fault = fault
        self._on_fatal()

    def _metrics(self) -> Metrics:
        """The server's figures, and those of a joiner in this process."""
        figures = Metrics(
            {
                metrics.BAD_RECORDS: lambda: self.views.bad_records,
                metrics.REFUSED_VERSIONS: lambda: self.views.refused_versions,
                metrics.LEARNER_HALTED: lambda: float(bool(self.operator.halted())),
                metrics.LEARNER_HALTED_BY: self._halted_by,
                **{metric: partial(self._of_version, fact) for metric, fact in OF_VERSION.items()},
                metrics.ROLE_RESTARTS: lambda: sum(role.restarts for role in self._roles),
                metrics.OUTCOMES_REMEMBERED: lambda: len(self.views.ledger),
                metrics.OUTCOMES_FORGOTTEN: lambda: self.views.ledger.forgotten,
            }
        )
        if isinstance(self._joining, Joining):
            figures.registry.register(self._joining.exported)
        return figures

    def _halted_by(self) -> dict[str, float]:
        note = read_halt(self._settings.data)
        return {name: float(note is not None and name == note.reason) for name in (*HALT_REASONS, OTHER)}

    def _of_version(self, name: str) -> float:
        """A figure that the live version's record tells; nan where it tells none."""
        live = self.views.live()
        told = None if live is None else live.evidence.get(name)
        return float(told) if isinstance(told, int | float) else math.nan


class _Following:
    """The role that keeps the views in step with the log, and the page's gauges in step with the other roles."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._looked = 0.0

    def step(self) -> int:
        process = self._process
        count = process.views.refresh()
        if not process.health.started and not count:
            process.health.started = process.views.caught_up()
        now = time.monotonic()
        if now - self._looked > GAUGES_EVERY_S:
            self._looked = now
            process.show_gauges()
        return count

    def close(self) -> None:
        """The views are the process's, which closes them once every role has ended: requests read them until then."""
