"""The records that cross process borders, as msgspec structs (shapes: docs/api.md).

Times are UTC epoch milliseconds (`ts`), durations end in `_ms`, ids are at most 64 of `A-Za-z0-9._:-`.
A field that is None says so in the docstring. Log records carry `schema` = 1; unknown fields in them are ignored here
and kept by whoever passes the record on (the joiner carries the decision as the bytes it read).
"""

from __future__ import annotations

import re
from typing import Final, Literal, get_args

import msgspec
from msgspec import Struct, field

SCHEMA = 1
MOST_WINDOW_MS = 10 * 365 * 24 * 3_600_000  # as long as a campaign's windows, and the retention after them, may be
ID_PATTERN = re.compile(r"[A-Za-z0-9._:-]{1,64}")

Scalar = str | int | float | bool
ContentType = Literal["ad", "social_post", "email", "product_description", "blog_post", "video_script", "chat_reply"]
CountRule = Literal["first", "last", "all"]
EventType = Literal["impression", "click", "conversion", "rating", "retraction"]
Source = Literal["pool", "control", "fresh"]
Stage = Literal["candidate", "canary", "live", "rolled_back"]
Reason = Literal[
    "undecodable",
    "schema",
    "too_large",
    "bad_token",
    "token_mismatch",
    "expired_token",
    "unknown_key",
    "clock",
    "value",
    "conflict",
    "orphan",
    "late",
]
HaltReason = Literal["kl", "kl_step", "entropy", "length", "duplicates", "rejected", "bait"]
HALT_REASONS: Final[tuple[HaltReason, ...]] = get_args(HaltReason)
"""What the sentinel halts learning for (maths/sentinel.py:ails, baits)."""


class Attribution(Struct, frozen=True):
    """How events are credited to a decision (docs/api.md, Attribution). Windows in milliseconds."""

    click_window_ms: int = 1_800_000
    conversion_window_ms: int = 604_800_000
    view_through_ms: int = 0
    count: CountRule = "first"

    def window_ms(self) -> int:
        """Longest time after the impression at which something can still count."""
        return max(self.click_window_ms + self.conversion_window_ms, self.view_through_ms)


class RewardWeights(Struct, frozen=True):
    """reward = sum of weight x component; a missing weight is 0."""

    click: float = 0.0
    conversion: float = 0.0
    value: float = 0.0
    rating: float = 0.0


class Product(Struct, frozen=True):
    """What is advertised; an empty string or tuple means not stated."""

    name: str
    brand: str = ""
    category: str = ""
    price: str = ""
    facts: tuple[str, ...] = ()


class Slot(Struct, frozen=True):
    """One named piece of text; `max_chars` counts code points."""

    name: str
    max_chars: int = 80


class Rules(Struct, frozen=True):
    """What may be shown: banned terms, and whether a person must approve generated texts first."""

    banned: tuple[str, ...] = ()
    require_approval: bool = False


class Campaign(Struct, frozen=True):
    """A campaign with its defaults filled in. Producer: serving (PUT). Consumers: all roles. Topic `campaigns`, key
    `tenant/campaign_id`; a null value there is a deletion."""

    campaign_id: str
    product: Product
    controls: tuple[dict[str, str], ...]
    tenant: str = "default"
    audience: str = ""
    content_type: ContentType = "ad"
    language: str = "en"
    segments: tuple[str, ...] = ("all",)
    slots: tuple[Slot, ...] = (Slot("headline", 80),)
    rules: Rules = Rules()
    reward: RewardWeights = RewardWeights(click=1.0)
    attribution: Attribution = Attribution()
    holdback: float = 0.05
    schema: int = SCHEMA

    @property
    def primary_language(self) -> str:
        """The first part of the language tag in lower case; `en` however English is called."""
        first = self.language.lower().split("-")[0]
        return "en" if first in ("eng", "english") else first


class Candidate(Struct, frozen=True):
    """One text of a pool.

    `token_ids` and `log_probs` have one entry per *sampled* token (forced tokens are left out); log-probabilities are
    natural logarithms under the distribution that was sampled from (`Pool.decode`). `count` is how many of the pool's
    samples gave this text. `rejected` is None for a text that may be shown, else the gate's reason: such a text is
    never shown and earns exactly 0, so it still takes part in the gradient. `kept` marks a text carried over from an
    earlier pool or grown from the beginning of one: it may be shown but is no sample of this policy, so it takes no
    part in the gradient.
    `embedding` is base64 of little-endian float16, the policy's mean hidden state; None where there is none.
    """

    variant_id: str
    slots: dict[str, str]
    token_ids: tuple[tuple[int, ...], ...] = ()
    log_probs: tuple[tuple[float, ...], ...] = ()
    count: int = 1
    kept: bool = False
    rejected: str | None = None
    embedding: str | None = None

    def text(self) -> str:
        return "\n".join(self.slots.values())


class Decode(Struct, frozen=True):
    """How the sampling distribution is made from a model's logits (maths/decoding.py).

    `temperature` > 0 divides them. `top_k` keeps the k likeliest tokens (0: all). `top_p`: of those, the smallest set
    of likeliest tokens whose mass reaches it (Holtzman et al. 2020, section 3.1; 1: all). `min_p`: tokens at least that
    share as likely as the likeliest (Nguyen et al. 2024, arXiv 2407.01082, section 3; 0: all); the only cut that needs
    no sorting."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0


class Pool(Struct, frozen=True):
    """Candidates for one (campaign, segment), sampled from one policy version. Producer: generator. Consumers: serving,
    learner. Topic `candidates`, key pool_id.
    `campaign_hash` names the campaign text it was written for."""

    pool_id: str
    tenant: str
    campaign_id: str
    segment: str
    policy_version: str
    campaign_hash: str
    candidates: tuple[Candidate, ...]
    decode: Decode
    ts: int
    schema: int = SCHEMA


class Decision(Struct, frozen=True):
    """What was chosen and with which probability. Producer: serving. Consumer: joiner. Topic `decisions`.

    `candidate` indexes the pool's candidates (for source control: the campaign's controls); `probabilities` are the
    selection probabilities over them at that moment, after filters. `critic_version` is "" without a critic."""

    decision_id: str
    request_id: str
    position: int
    tenant: str
    campaign_id: str
    context: dict[str, Scalar]
    pool_id: str
    candidate: int
    variant_id: str
    propensity: float
    probabilities: list[float]
    source: Source
    policy_version: str
    critic_version: str
    ts: int
    reward: RewardWeights
    attribution: Attribution
    schema: int = SCHEMA


class Event(Struct, frozen=True, omit_defaults=True):
    """Something that happened to a decision. Producer: serving (as posted). Consumer: joiner. Topic `events`.

    `value` is None but for conversions and ratings; `retracts` is None but for retractions; `received_ts` None means
    'take the log's own timestamp'; `ts_defaulted` says that the sender gave no `ts`."""

    event_id: str
    type: EventType
    decision_id: str
    token: str
    ts: int
    schema: int = field(default=0)
    value: float | None = None
    retracts: str | None = None
    received_ts: int | None = None
    ts_defaulted: bool = False


class Components(Struct, frozen=True):
    """What counted: click 0 or 1, the number of conversions, the sum of their values, the mean rating or None."""

    click: int = 0
    conversion: int = 0
    value: float = 0.0
    rating: float | None = None


class Outcome(Struct, frozen=True):
    """Self-contained training record. Producer: joiner. Consumers: learner, serving's statistics. Topic `outcomes`."""

    decision_id: str
    revision: int
    state: Literal["open", "closed"]
    as_of: int
    impression_ts: int
    click_ts: int | None
    components: Components
    reward: float
    events: list[str]
    decision: Decision
    schema: int = SCHEMA


class PolicyRecord(Struct, frozen=True):
    """A policy version and its stage. Producer: learner, or an operator through serving. Topic `policies`, key version.

    The live version is the one whose record with stage `live` stands last in the log. `parent` is None for the
    reference. `evidence` says why the stage was given: {"by": "learner" | "operator", ...figures}."""

    version: str
    content_hash: str
    parent: str | None
    uri: str
    stage: Stage
    ts: int
    evidence: dict[str, Scalar | None] = field(default_factory=dict)
    schema: int = SCHEMA


class Quarantined(Struct, frozen=True):
    """Bytes that were refused, where they stood, and one reason of the closed list. Topic `quarantine`."""

    topic: str
    partition: int
    offset: int
    reason: Reason
    detail: str
    size: int
    payload: str
    schema: int = SCHEMA


def to_json(record: Struct) -> bytes:
    """The record's JSON bytes, fields in the order of the class."""
    return msgspec.json.encode(record)
