"""What the tests of serving share: a service over a log in a temporary folder, and records to put into that log."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from starlette.testclient import TestClient

from optimizer.clock import ManualClock
from optimizer.ids import campaign_hash, variant_id
from optimizer.stream.log import Append, EventLog, whole
from optimizer.stream.sqlite_log import SqliteLog
from optimizer.stream.tokens import TokenKeys
from optimizer.types import (
    Campaign,
    Candidate,
    Components,
    Decision,
    Decode,
    Outcome,
    PolicyRecord,
    Pool,
    Stage,
    to_json,
)
from serving.app import build_app
from serving.auth import KeyRing
from serving.health import Health, Metrics
from serving.operate import Operator
from serving.routes import Parts
from serving.schemas import CampaignIn, GenerateIn
from serving.service import AdService
from serving.views import Views
from serving.wire import convert

TENANT = "default"
MINIMAL: dict[str, Any] = {"product": {"name": "Trail Runner 3"}, "controls": [{"headline": "Trail Runner 3: light"}]}
TEXTS = ["Run light", "Run far", "Run dry", "Run home"]
CONTROLS = [{"headline": "Plain one"}, {"headline": "Plain two"}]


@dataclass
class Rig:
    """A service and everything around it, on a clock that stands still."""

    log: EventLog
    clock: ManualClock
    keys: TokenKeys
    views: Views
    service: AdService
    parts: Parts
    data: Path

    def put(self, campaign_id: str = "c1", tenant: str = TENANT, **fields: object) -> Campaign:
        body = convert({**MINIMAL, **fields}, CampaignIn)
        return self.service.put_campaign(tenant, campaign_id, body)[0]

    def generate(self, campaign_id: str = "c1", tenant: str = TENANT, **fields: object) -> Any:
        return self.service.generate(tenant, convert({"campaign_id": campaign_id, **fields}, GenerateIn))

    def append(self, topic: str, key: str, record: Any) -> None:
        self.log.append([Append(topic, key, None if record is None else to_json(record))])
        self.views.refresh()

    def add_pool(self, campaign: Campaign, texts: Sequence[str], **fields: Any) -> Pool:
        pool = make_pool(campaign, texts, **fields)
        self.append("candidates", pool.pool_id, pool)
        return pool

    def records(self, topic: str) -> list[bytes]:
        reader = self.log.reader(whole(self.log, topic))
        try:
            found: list[bytes] = []
            while records := reader.poll(1000):
                found.extend(record.value for record in records if record.value is not None)
            return found
        finally:
            reader.close()

    def client(self) -> TestClient:
        return TestClient(build_app(self.parts), raise_server_exceptions=False)

    def close(self) -> None:
        self.parts.close()
        self.views.close()
        self.log.close()


def make_rig(tmp_path: Path, *, seed: int = 0, api_keys: str = "", **views: Any) -> Rig:
    """A rig over a new log in `tmp_path`; `views` are options of Views."""
    clock = ManualClock()
    log = SqliteLog(tmp_path / "log.db", clock, synchronous="off")
    keys = TokenKeys({"k1": b"x" * 32})
    following = Views(log, **views)
    service = AdService(log, clock, np.random.default_rng(seed), keys, following)
    health = Health(following, log_refuses=service.log_refuses, started=True)
    operator = Operator(log, clock, following, tmp_path)
    parts = Parts(service, operator, KeyRing.parse(api_keys), health, Metrics({}))
    return Rig(log, clock, keys, following, service, parts, tmp_path)


def decisions(rig: Rig) -> list[Decision]:
    """Every decision in the log, in its order."""
    return [msgspec.json.decode(raw, type=Decision) for raw in rig.records("decisions")]


def make_pool(
    campaign: Campaign,
    texts: Sequence[str],
    *,
    segment: str = "all",
    version: str = "v1",
    pool_id: str = "p1",
    **more: Any,
) -> Pool:
    """A pool of one-slot texts as the generator writes it."""
    slot = campaign.slots[0].name
    candidates = tuple(Candidate(variant_id(campaign.campaign_id, {slot: text}), {slot: text}) for text in texts)
    fields: dict[str, Any] = {
        "pool_id": pool_id,
        "tenant": campaign.tenant,
        "campaign_id": campaign.campaign_id,
        "segment": segment,
        "policy_version": version,
        "campaign_hash": campaign_hash(campaign),
        "candidates": candidates,
        "decode": Decode(),
        "ts": 0,
    }
    return Pool(**{**fields, **more})


def make_policy(version: str, stage: Stage = "live", parent: str | None = None, **evidence: Any) -> PolicyRecord:
    return PolicyRecord(version, "0" * 64, parent, f"policies/{version}", stage, 0, evidence)


def make_outcome(decision: Decision, *, revision: int = 1, click: int = 0, reward: float | None = None) -> Outcome:
    """An outcome of a shown decision; its reward is the click unless given."""
    return Outcome(
        decision_id=decision.decision_id,
        revision=revision,
        state="open",
        as_of=decision.ts,
        impression_ts=decision.ts,
        click_ts=decision.ts if click else None,
        components=Components(click=click),
        reward=float(click) if reward is None else reward,
        events=["e"],
        decision=decision,
    )
