"""The bodies of requests and answers (docs/api.md, Requests), as msgspec structs. Unknown fields are refused."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from optimizer.types import MOST_WINDOW_MS, ContentType, CountRule, EventType, Reason, Scalar, Source

MAX_EVENTS = 1000
MAX_COUNT = 16
MAX_SAFE_INTEGER = 2**53

Id = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,63}\Z", description="1 to 64 of A-Za-z0-9._:-, a letter or digit first"
    ),
]
Language = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z]{2,8}(-[A-Za-z0-9]{1,8})*\Z", max_length=35, description="a language tag such as en or pt-BR"
    ),
]
Label = Annotated[str, Meta(min_length=1, max_length=64)]
Line = Annotated[str, Meta(max_length=500)]
Share = Annotated[float, Meta(ge=0.0, le=1.0)]
Weight = Annotated[float, Meta(ge=-1e6, le=1e6)]
Window = Annotated[int, Meta(ge=0, le=MOST_WINDOW_MS)]


class ProductIn(Struct, frozen=True, forbid_unknown_fields=True):
    """What is advertised. Only the name is needed."""

    name: Annotated[str, Meta(min_length=1, max_length=200)]
    brand: Line = ""
    category: Line = ""
    price: Line = ""
    facts: Annotated[tuple[Line, ...], Meta(max_length=50)] = ()


class SlotIn(Struct, frozen=True, forbid_unknown_fields=True):
    """One named piece of text; `max_chars` in code points."""

    name: Id
    max_chars: Annotated[int, Meta(ge=1, le=10_000)] = 80


class RulesIn(Struct, frozen=True, forbid_unknown_fields=True):
    """What no text may hold, and whether texts need a person's approval before they are shown."""

    banned: Annotated[tuple[Annotated[str, Meta(min_length=1, max_length=100)], ...], Meta(max_length=1000)] = ()
    require_approval: bool = False


class RewardIn(Struct, frozen=True, forbid_unknown_fields=True):
    """reward = sum of weight x component; each weight has its own default."""

    click: Weight = 1.0
    conversion: Weight = 0.0
    value: Weight = 0.0
    rating: Weight = 0.0


class AttributionIn(Struct, frozen=True, forbid_unknown_fields=True):
    """How events are credited to a decision (docs/api.md, Attribution)."""

    click_window_ms: Annotated[int, Meta(ge=1, le=MOST_WINDOW_MS)] = 1_800_000
    conversion_window_ms: Window = 604_800_000
    view_through_ms: Window = 0
    count: CountRule = "first"


class CampaignIn(Struct, frozen=True, forbid_unknown_fields=True):
    """Body of `PUT /v1/campaigns/{campaign_id}`. `campaign_id` may be repeated in the body, if it is the path's."""

    product: ProductIn
    controls: Annotated[tuple[dict[str, str], ...], Meta(min_length=1, max_length=100)]
    campaign_id: Id | None = None
    audience: Line = ""
    content_type: ContentType = "ad"
    language: Language = "en"
    segments: Annotated[tuple[Label, ...], Meta(min_length=1, max_length=64)] = ("all",)
    slots: Annotated[tuple[SlotIn, ...], Meta(min_length=1, max_length=16)] = (SlotIn("headline"),)
    rules: RulesIn = RulesIn()
    reward: RewardIn = RewardIn()
    attribution: AttributionIn = AttributionIn()
    holdback: Share = 0.05


class CampaignPath(Struct, frozen=True):
    """The id in the path of a campaign that is about to be created."""

    campaign_id: Id


class GenerateIn(Struct, frozen=True, forbid_unknown_fields=True):
    """Body of `POST /v1/generate`."""

    campaign_id: str
    context: Annotated[dict[Label, Scalar], Meta(max_length=64)] = msgspec.field(default_factory=dict)
    count: Annotated[int, Meta(ge=1, le=MAX_COUNT)] = 1
    fresh: bool = False


class Variant(Struct, frozen=True):
    """One decision of an answer: the text, the probability it was chosen with, and the token that its events carry."""

    decision_id: str
    variant_id: str
    slots: dict[str, str]
    text: str
    propensity: float
    source: Source
    token: str


class GenerateOut(Struct, frozen=True):
    """Answer of `POST /v1/generate`: every decision in it is durable in the log."""

    request_id: str
    policy_version: str
    variants: list[Variant]


class EventIn(Struct, frozen=True, forbid_unknown_fields=True):
    """One event as posted. `ts` None: the server's clock stands in. `retracts` belongs to retractions alone.

    A token of any length is a token: one that is too long does not verify, and is refused as that."""

    event_id: Id
    type: EventType
    decision_id: Id
    token: str
    ts: int | None = None
    value: float | None = None
    retracts: Id | None = None


class EventResult(Struct, frozen=True):
    """What became of one posted event; `event_id` is None where none could be read. `reason` is None when accepted."""

    event_id: str | None
    status: Literal["accepted", "rejected"]
    reason: Reason | None = None
    detail: str | None = None


class EventResults(Struct, frozen=True):
    """Answer of `POST /v1/events`, in the order of the request."""

    results: list[EventResult]
