"""The real loop without its language model, played synchronously: log, serving, joiner and learner on one clock that
only the caller moves.

Nothing here decides or learns: each part is the one that production runs, called in a fixed order, so that the same
seed gives the same run. The replay of headline tests uses it as it is; `simulators.adloop_agent` adds the model's
roles."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from optimizer.clock import ManualClock
from optimizer.errors import AdloopError, BadInput
from optimizer.learning.view import CriticView
from optimizer.store import PolicyStore
from optimizer.stream.joiner import Joiner
from optimizer.stream.log import EventLog
from optimizer.stream.open import open_log, sqlite_url
from optimizer.stream.tokens import TokenKeys
from optimizer.types import PolicyRecord, Scalar
from serving.drawing import EPSILON
from serving.schemas import CampaignIn, GenerateIn, Variant
from serving.service import AdService
from serving.views import CriticLoader, TextCheck, Views
from serving.wire import convert
from simulators.streams import SERVICE_STREAM

TENANT = "default"
START_MS = 1_767_225_600_000  # 2026-01-01: any moment will do, as long as it is always the same
EVENTS_PER_POST = 1000
TOO_LATE = ("expired_token", "clock")
VALUED = ("conversion", "rating")
"""Reactions whose value is told."""
Reaction = tuple[str, int, float]


class Role(Protocol):
    """A part of the loop that does a bounded piece of work per step and says whether there was any. The loop closes it
    at its end."""

    def step(self) -> bool | int: ...

    def close(self) -> None: ...


def event_id(number: int) -> str:
    """The id of the event posted after `number` - 1 others: by the alphabet as by number, since that decides between
    events of one millisecond."""
    return f"e-{number:012}"


@dataclass(frozen=True)
class Shown:
    """One text shown at `ts`: what serving answered, and to which request."""

    campaign_id: str
    context: Mapping[str, Scalar]
    variant: Variant
    ts: int


@contextmanager
def within(where: str) -> Iterator[None]:
    """What is refused inside names `where` it stands: a body's field alone does not say of which campaign."""
    try:
        yield
    except BadInput as error:
        raise BadInput(*(replace(one, field=f"{where}.{one.field}") for one in error.errors)) from error


def critic_loader(store: PolicyStore) -> CriticLoader:
    """Gives serving the critic of a policy version, out of the store."""

    def load(record: PolicyRecord) -> CriticView:
        return CriticView.from_bytes(store.critic_bytes(record.version), record.version)

    return load


class Loop:
    """Log, serving and joiner of one tenant in one folder; the learner comes by `attach`.

    Args:
      campaigns: campaign_id -> body of `PUT /v1/campaigns/{campaign_id}`. Raises BadInput where serving would answer
      422.
      folder: takes the log and the states; empty at the start.
      seed: of serving's draws and ids and of the token key.
      epsilon: serving's option, the selector's share of uniform exploration.
      grace_ms: the joiner's option.
    """

    def __init__(
        self,
        campaigns: Mapping[str, Mapping[str, Any]],
        folder: Path,
        seed: int,
        *,
        load_critic: CriticLoader | None = None,
        gate: TextCheck | None = None,
        epsilon: float = EPSILON,
        start_ms: int = START_MS,
        grace_ms: int = 3_600_000,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.clock = ManualClock(start_ms)
        # A simulation that loses power is run again: nothing waits for the disk.
        self.log: EventLog = open_log(sqlite_url(folder / "log.sqlite") + "?synchronous=off", self.clock)
        self.keys = TokenKeys({"simulation": hashlib.sha256(f"adloop simulation {seed}".encode()).digest()})
        self.views = Views(self.log, load_critic, gate, follow_outcomes=False)
        self.service = AdService(
            self.log, self.clock, np.random.default_rng([SERVICE_STREAM, seed]), self.keys, self.views, epsilon=epsilon
        )
        self.joiner = Joiner(self.log, folder / "joiner", self.keys, self.clock, grace_ms=grace_ms, durable=False)
        self._roles: list[Role] = []
        self._later: list[tuple[int, int, dict[str, Any]]] = []
        self._posted = 0
        self.too_late = 0
        for campaign_id, body in campaigns.items():
            with within(f"campaigns[{campaign_id!r}]"):
                self.service.put_campaign(TENANT, campaign_id, convert(dict(body), CampaignIn))

    def attach(self, *roles: Role) -> None:
        """Roles that `increment` steps after the joiner, in this order, and that `close` closes."""
        self._roles.extend(roles)

    def serve(self, campaign_id: str, context: Mapping[str, Scalar]) -> Shown:
        """One decision, now."""
        answer = self.service.generate(TENANT, GenerateIn(campaign_id=campaign_id, context=dict(context)))
        return Shown(campaign_id, context, answer.variants[0], self.clock.now_ms())

    def serve_many(self, requests: Sequence[GenerateIn]) -> list[Variant]:
        """One decision for each request, under one append."""
        return [answer.variants[0] for answer in self.service.generate_many(TENANT, requests)]

    def feed(self, shown: Shown, reactions: Sequence[Reaction]) -> None:
        """Post the impression now; what the person does after it waits until `advance` reaches its time."""
        self.post([self._event(shown.variant, "impression", shown.ts, None)])
        for kind, delay_ms, value in reactions:
            ts = shown.ts + delay_ms
            event = self._event(shown.variant, kind, ts, value if kind in VALUED else None)
            heapq.heappush(self._later, (ts, self._posted, event))

    def advance(self, now_ms: int) -> None:
        """Move the clock to `now_ms`, posting on the way each event that falls due, at its time and in order of
        time."""
        while self._later and self._later[0][0] <= now_ms:
            ts, _, event = heapq.heappop(self._later)
            self._move_to(ts)
            self.post([event])
        self._move_to(now_ms)

    def post(self, events: Sequence[Mapping[str, Any]]) -> None:
        """Post events as an ad server would. People may react after the decision's retention, which no longer counts
        (`too_late`). Raises AdloopError where an event is refused for another reason: a simulation sends good ones."""
        for start in range(0, len(events), EVENTS_PER_POST):
            for result in self.service.post_events(TENANT, events[start : start + EVENTS_PER_POST]):
                if result.reason in TOO_LATE:
                    self.too_late += 1
                elif result.status != "accepted":
                    raise AdloopError(f"event {result.event_id} was refused ({result.reason}): {result.detail}")

    def impression(self, variant: Variant) -> dict[str, Any]:
        """The event of a text shown now."""
        return self._event(variant, "impression", self.clock.now_ms(), None)

    def click(self, variant: Variant) -> dict[str, Any]:
        """The event of a click on it now."""
        return self._event(variant, "click", self.clock.now_ms(), None)

    def join(self) -> None:
        """Let the joiner read all there is."""
        while self.joiner.step():
            pass

    def increment(self) -> None:
        """One turn of everything behind serving: join all there is, one step of each role, then serving takes it up."""
        self.join()
        for role in self._roles:
            role.step()
        self.views.refresh_tables()

    def close(self) -> None:
        """Close the attached roles, then what they read from; each, also where one fails."""
        with ExitStack() as stack:  # the last one that is named is closed first
            stack.callback(self.log.close)
            stack.callback(self.views.close)
            stack.callback(self.joiner.close)
            for role in self._roles:
                stack.callback(role.close)

    def __enter__(self) -> Loop:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _move_to(self, ts: int) -> None:
        self.clock.advance(max(0, ts - self.clock.now_ms()))

    def _event(self, variant: Variant, kind: str, ts: int, value: float | None) -> dict[str, Any]:
        self._posted += 1
        event: dict[str, Any] = {
            "event_id": event_id(self._posted),
            "type": kind,
            "decision_id": variant.decision_id,
            "token": variant.token,
            "ts": ts,
        }
        return event if value is None else event | {"value": value}
