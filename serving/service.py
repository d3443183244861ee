"""The ad service without HTTP: campaigns, generate, events, statistics. HTTP, simulations and replays call it.

The order in `generate` and `post_events` is the promise: decide, append durably, answer.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from optimizer.clock import Clock
from optimizer.errors import BadInput, FieldError
from optimizer.ids import new_id
from optimizer.maths.attribution import EXTRA_RETENTION_MS, expiry_s
from optimizer.stream.admission import Refused
from optimizer.stream.log import MAX_RECORD_BYTES, Append, EventLog
from optimizer.stream.tokens import TokenKeys
from optimizer.types import Campaign, Decision, Event, Pool, Scalar, to_json
from serving.campaigns import campaign_body, campaign_from
from serving.drawing import EPSILON, Arms, Drawn, control_arms, draws, pool_arms
from serving.idempotency import Idempotency, KeyReused
from serving.ingest import admit, rejected
from serving.problems import Problem, conflict, not_found, unavailable
from serving.schemas import MAX_SAFE_INTEGER, CampaignIn, EventResult, GenerateIn, GenerateOut, Variant
from serving.views import Views

MAX_CONTEXT_CHARS = 2_048  # an address or a user agent fits
NEWEST_TEXTS = 5
REFUSED_MS = 10_000
NO_POLICY = "none"

# Samples a pool for one request and appends it under an id that begins with FRESH_PREFIX: called with campaign, segment
# and `cancelled`; None where the model cannot write one now, or once cancelled.
FreshSampler = Callable[[Campaign, str, Callable[[], bool]], "Pool | None"]
# The prompt is longer than the model takes: (campaign) -> the refused field; None where it fits.
PromptLimit = Callable[[Campaign], "FieldError | None"]


class AdService:
    """One tenant-aware ad service over one log. Thread-safe.

    Args:
      rng: source of ids and draws; the same seed and calls give the same decisions.
      keys: sign the tokens of decisions and verify those of events.
      epsilon: the selector's share of uniform exploration.
      retention_ms: kept beyond the attribution windows (docs/api.md, Attribution).
      prompt_limit: asked at `put_campaign`; None lets every prompt pass.
      fresh: samples a pool for `fresh: true`; without it such requests get controls.
    """

    def __init__(
        self,
        log: EventLog,
        clock: Clock,
        rng: np.random.Generator,
        keys: TokenKeys,
        views: Views,
        *,
        epsilon: float = EPSILON,
        retention_ms: int = EXTRA_RETENTION_MS,
        prompt_limit: PromptLimit | None = None,
        fresh: FreshSampler | None = None,
    ) -> None:
        self.views = views
        self.fresh = fresh
        self.prompt_limit = prompt_limit
        self._log = log
        self._clock = clock
        self._rng = rng
        self._keys = keys
        self._epsilon = epsilon
        self._retention_ms = retention_ms
        self._refused_ms: int | None = None
        self._write_lock = threading.Lock()
        self._rng_lock = threading.Lock()
        self._idempotency: Idempotency[GenerateOut] = Idempotency(clock)

    # -- campaigns ----------------------------------------------------------------------------------------------------

    def put_campaign(self, tenant: str, campaign_id: str, body: CampaignIn) -> tuple[Campaign, bool]:
        """Create or replace; returns the campaign and whether it is new. Raises BadInput."""
        campaign = campaign_from(tenant, campaign_id, body)
        if self.prompt_limit is not None and (error := self.prompt_limit(campaign)) is not None:
            raise BadInput(error)
        with self._write_lock:
            self.views.refresh_tables()
            known = self.views.campaign(tenant, campaign_id)
            if known != campaign:
                self._append([Append("campaigns", f"{tenant}/{campaign_id}", to_json(campaign))])
                self.views.refresh_tables()
        return campaign, known is None

    def get_campaign(self, tenant: str, campaign_id: str) -> Campaign:
        """Raises Problem 404, the same for an unknown id and another tenant's."""
        campaign = self.views.campaign(tenant, campaign_id)
        if campaign is None:
            raise not_found("campaign_id", campaign_id)
        return campaign

    def delete_campaign(self, tenant: str, campaign_id: str) -> None:
        """Raises Problem 404."""
        with self._write_lock:
            self.views.refresh_tables()
            self.get_campaign(tenant, campaign_id)
            self._append([Append("campaigns", f"{tenant}/{campaign_id}", None)])
            self.views.refresh_tables()

    def list_campaigns(self, tenant: str) -> list[dict[str, Any]]:
        return [campaign_body(campaign) for campaign in self.views.campaigns(tenant)]

    # -- generate -----------------------------------------------------------------------------------------------------

    def generate(
        self,
        tenant: str,
        request: GenerateIn,
        idempotency_key: str | None = None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> GenerateOut:
        """Draw, append the decisions, answer. Raises BadInput (422), Problem (404, 409, 503), OSError (disk)."""
        if idempotency_key is None:
            return self._generate(tenant, request, cancelled)
        body = msgspec.json.encode(request, order="sorted")
        try:
            return self._idempotency.run(
                tenant, idempotency_key, body, lambda: self._generate(tenant, request, cancelled)
            )
        except KeyReused as error:
            raise conflict(
                "Idempotency-Key", "a key used with another body", "one key per body", "send a new key"
            ) from error

    def generate_many(self, tenant: str, requests: Sequence[GenerateIn]) -> list[GenerateOut]:
        """Many requests under one append, for simulations and replays: the same draws as one `generate` after another,
        with the arms of equal (campaign, context) pairs computed once. `fresh` is not served here."""
        arms: dict[tuple[str, bytes], tuple[Arms, Arms | None]] = {}
        records: list[Append] = []
        answers: list[GenerateOut] = []
        for request in requests:
            if request.fresh:
                raise ValueError("generate_many serves no fresh samples; call generate")
            campaign = self.get_campaign(tenant, request.campaign_id)
            at = (request.campaign_id, msgspec.json.encode(request.context, order="sorted"))
            context = checked_context(campaign, request.context)
            if at not in arms:
                arms[at] = self._arms(campaign, context)
            decisions, answer = self._decide(campaign, context, request.count, *arms[at])
            records.extend(Append("decisions", d.decision_id, to_json(d)) for d in decisions)
            answers.append(answer)
        self._append(records)
        return answers

    def _generate(self, tenant: str, request: GenerateIn, cancelled: Callable[[], bool]) -> GenerateOut:
        campaign = self.get_campaign(tenant, request.campaign_id)
        context = checked_context(campaign, request.context)
        if request.fresh:
            control, learned = self._fresh_arms(campaign, context, cancelled)
        else:
            control, learned = self._arms(campaign, context)
        decisions, answer = self._decide(campaign, context, request.count, control, learned)
        self._append([Append("decisions", decision.decision_id, to_json(decision)) for decision in decisions])
        return answer

    def _arms(self, campaign: Campaign, context: Mapping[str, Scalar]) -> tuple[Arms, Arms | None]:
        """The controls and the pool, each with its share of the requests; None where there is no pool."""
        shelf = self.views.shelf(campaign, str(context["segment"]))
        if shelf is None:
            return control_arms(campaign, 1.0, self._live_version()), None
        learned = pool_arms(shelf, context, 1.0 - campaign.holdback, "pool", self._epsilon)
        return control_arms(campaign, campaign.holdback, self._live_version()), learned

    def _fresh_arms(
        self, campaign: Campaign, context: Mapping[str, Scalar], cancelled: Callable[[], bool]
    ) -> tuple[Arms, Arms | None]:
        """As `_arms`, from a pool sampled now. It is sampled before the holdback draw, so that the probability of a
        control is exact also where no fresh text may be shown, or none can be written."""
        segment = str(context["segment"])
        pool = self.fresh(campaign, segment, cancelled) if self.fresh is not None else None
        if pool is None and cancelled():
            raise unavailable("the client has left before there was a sample", "ask again", "fresh")
        shelf = None
        if pool is not None and not campaign.rules.require_approval:
            shelf = self.views.ready_shelf(campaign, pool)
        if shelf is None:
            return control_arms(campaign, 1.0, self._live_version()), None
        learned = pool_arms(shelf, context, 1.0 - campaign.holdback, "fresh", self._epsilon)
        return control_arms(campaign, campaign.holdback, self._live_version()), learned

    def _decide(
        self, campaign: Campaign, context: dict[str, Scalar], count: int, control: Arms, learned: Arms | None
    ) -> tuple[list[Decision], GenerateOut]:
        """Hold back or not, draw, and write down what was drawn with which probability."""
        now = self._clock.now_ms()
        with self._rng_lock:
            held_back = learned is None or self._rng.random() < campaign.holdback
            arms = control if held_back or learned is None else learned
            drawn = draws(arms, count, self._rng)
            request_id = new_id(self._rng)
            ids = [new_id(self._rng) for _ in drawn]
        decisions = [
            _decision(campaign, context, arms, one, request_id, decision_id, position, now)
            for position, (one, decision_id) in enumerate(zip(drawn, ids, strict=True))
        ]
        return decisions, GenerateOut(request_id, arms.policy_version, [self._variant(arms, d) for d in decisions])

    def _variant(self, arms: Arms, decision: Decision) -> Variant:
        slots = arms.slots[decision.candidate]
        exp_s = expiry_s(decision.ts, decision.attribution, self._retention_ms)
        return Variant(
            decision_id=decision.decision_id,
            variant_id=decision.variant_id,
            slots=slots,
            text="\n".join(slots.values()),
            propensity=decision.propensity,
            source=decision.source,
            token=self._keys.sign(decision, exp_s),
        )

    def _live_version(self) -> str:
        live = self.views.live()
        return NO_POLICY if live is None else live.version

    def _append(self, records: Sequence[Append]) -> None:
        """Durable on return. A refusal is remembered for a while, so that readiness tells of it. Raises Problem for a
        record that is too large, which the log would refuse."""
        for record in records:
            if record.value is not None and len(record.value) > MAX_RECORD_BYTES:
                got, most = f"a record of {len(record.value)} bytes", f"at most {MAX_RECORD_BYTES}"
                raise Problem(413, "a record would be too large", [FieldError("body", got, most, "send less")])
        try:
            self._log.append(records)
        except OSError:
            self._refused_ms = self._clock.now_ms()
            raise
        self._refused_ms = None

    def log_refuses(self) -> bool:
        """True for some seconds after the log refused an append, unless one succeeded since. Not for ever: an unready
        server gets no traffic that could show that the disk takes writes again."""
        refused = self._refused_ms
        return refused is not None and self._clock.now_ms() - refused < REFUSED_MS

    # -- events -------------------------------------------------------------------------------------------------------

    def post_events(self, tenant: str, raws: Sequence[object]) -> list[EventResult]:
        """Check each event (JSON values as parsed) by itself, append those let in at once, answer in order.

        Raises OSError where the disk refuses: then none of them was accepted.
        """
        now = self._clock.now_ms()
        results: list[EventResult] = []
        accepted: list[Event] = []
        for raw in raws:
            try:
                event = admit(raw, tenant, self._keys, now)
            except Refused as refusal:
                results.append(rejected(raw, refusal.reason, str(refusal)))
            else:
                accepted.append(event)
                results.append(EventResult(event.event_id, "accepted"))
        if accepted:
            self._append([Append("events", event.decision_id, to_json(event)) for event in accepted])
        return results

    # -- statistics ---------------------------------------------------------------------------------------------------

    def stats(self, tenant: str) -> dict[str, Any]:
        """`GET /v1/stats` from the last revisions of the outcomes."""
        live = self.views.live()
        kl = live.evidence.get("kl") if live is not None else None
        campaigns: dict[str, Any] = {}
        with self.views.lock:
            for campaign in self.views.campaigns(tenant):
                tally = self.views.tally(tenant, campaign.campaign_id)
                lift = tally.lift()
                campaigns[campaign.campaign_id] = {
                    "policies": {version: side.figures() for version, side in tally.policies.items()},
                    "control": tally.control.figures(),
                    "lift": None if lift is None else lift._asdict(),
                    "kl": float(kl) if isinstance(kl, (int, float)) else 0.0,
                    "newest": self.views.newest(tenant, campaign.campaign_id, NEWEST_TEXTS),
                }
        return {"campaigns": campaigns}


def checked_context(campaign: Campaign, context: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """The context with its segment filled in first. Raises BadInput."""
    segment = context.get("segment", campaign.segments[0])
    if segment not in campaign.segments:
        known = ", ".join(campaign.segments[:8])
        raise BadInput(FieldError("context.segment", repr(segment)[:80], f"one of {known}", "send one of these"))
    for name, value in context.items():
        too_long = isinstance(value, str) and len(value) > MAX_CONTEXT_CHARS
        too_big = type(value) is int and abs(value) > MAX_SAFE_INTEGER
        if too_long or too_big:
            expected = f"a text of at most {MAX_CONTEXT_CHARS} characters, or an integer within 2^53"
            raise BadInput(FieldError(f"context.{name}", repr(value)[:80], expected, "send a shorter or smaller value"))
    return {**context, "segment": segment}


def _decision(
    campaign: Campaign,
    context: dict[str, Scalar],
    arms: Arms,
    drawn: Drawn,
    request_id: str,
    decision_id: str,
    position: int,
    now: int,
) -> Decision:
    return Decision(
        decision_id=decision_id,
        request_id=request_id,
        position=position,
        tenant=campaign.tenant,
        campaign_id=campaign.campaign_id,
        context=context,
        pool_id=arms.pool_id,
        candidate=drawn.candidate,
        variant_id=arms.variant_ids[drawn.candidate],
        propensity=drawn.propensity,
        probabilities=drawn.probabilities,
        source=arms.source,
        policy_version=arms.policy_version,
        critic_version=arms.critic_version,
        ts=now,
        reward=campaign.reward,
        attribution=campaign.attribution,
    )
