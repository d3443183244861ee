"""What serving knows, rebuilt from the log: campaigns, pools, policy stages, the live critic, statistics.

One lock guards everything: `refresh` (a background thread, and every write that must be read back at once) changes the
tables, requests read them. Nothing here writes to the log.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import msgspec
import numpy as np

from optimizer.errors import StoreError
from optimizer.ids import campaign_hash, variant_id, version_order
from optimizer.maths.selection import Bools, Floats
from optimizer.stream.guarded import UNREADABLE
from optimizer.stream.log import EventLog, LogReader, Record, whole
from optimizer.stream.views import PolicyStages
from optimizer.types import Campaign, Candidate, Outcome, PolicyRecord, Pool, Scalar
from serving.stats import CampaignTally, Ledger
from serving.text import banned_term

logger = logging.getLogger(__name__)

POLL_RECORDS = 500  # bounds how long a request waits for the lock during catch-up
POOLS_KEPT = 8
EARLIER_TRIED = 8  # good versions are looked for so far back; further back their files may have been pruned
FRESH_PREFIX = "fresh."
TABLES = ("campaigns", "policies", "candidates")


# What a critic keeps of a pool; only the critic that made it looks inside.
Features: TypeAlias = Any


class Critic(Protocol):
    """The reward model of one policy version (optimizer/learning/critic.py:CriticView), immutable."""

    @property
    def version(self) -> str: ...

    def encode(self, campaign: Campaign, segment: str, texts: tuple[Candidate, ...], /) -> Features:
        """Features of a pool's texts, made once a pool."""
        ...

    def score(self, features: Features, context: Mapping[str, Scalar], /) -> Floats:
        """`[H, n]`: what each head expects of each text in this context."""
        ...


class Board(Protocol):
    """Who is told about everything that changes (serving/board.py:LiveBoard)."""

    def on_campaign(self, campaign: Campaign) -> None: ...
    def on_campaign_deleted(self, tenant: str, campaign_id: str) -> None: ...
    def on_pool(self, pool: Pool) -> None: ...
    def on_policy(self, record: PolicyRecord) -> None: ...
    def on_outcome(self, previous: Outcome | None, new: Outcome) -> None: ...


# None where the version has no critic; raises StoreError where it must not be used.
CriticLoader = Callable[[PolicyRecord], "Critic | None"]
# A reason why these slots may not be shown for the campaign, or None.
TextCheck = Callable[[Campaign, Mapping[str, str]], "str | None"]


@dataclass(frozen=True)
class Shelf:
    """A pool made ready to be drawn from: which candidates may be shown under the campaign as it stands, and what the
    critic needs to score them. `permitted` has at least one True."""

    pool: Pool
    permitted: Bools
    critic: Critic | None
    features: Features


class _Head(msgspec.Struct, frozen=True):
    """The fields of a pool record that say where it belongs; the rest is decoded when the pool is first drawn from, or
    shown on a board, which is told of every pool as it comes."""

    pool_id: str
    tenant: str
    campaign_id: str
    segment: str
    policy_version: str
    campaign_hash: str


@dataclass
class _Held:
    head: _Head
    raw: bytes
    pool: Pool | None = None
    judged: tuple[Campaign, Bools] | None = None
    """What may be shown, as judged for this campaign: a new critic changes nothing of that."""

    def decode(self) -> Pool:
        if self.pool is None:
            self.pool = _POOL.decode(self.raw)
            self.raw = b""
        return self.pool


_CAMPAIGN = msgspec.json.Decoder(Campaign)
_POLICY = msgspec.json.Decoder(PolicyRecord)
_POOL = msgspec.json.Decoder(Pool)
_HEAD = msgspec.json.Decoder(_Head)
_OUTCOME = msgspec.json.Decoder(Outcome)


class Views:
    """Thread-safe tables over the log.

    Args:
      load_critic: gives the critic of a policy version; a StoreError keeps the critic that was live and counts.
      gate: the text gate, asked again whenever a campaign or a pool changes; banned terms are checked without it too.
      board: told of every change, with the lock held; None for nobody.
      follow_outcomes: False leaves the statistics empty (simulations that keep their own).
    """

    def __init__(
        self,
        log: EventLog,
        load_critic: CriticLoader | None = None,
        gate: TextCheck | None = None,
        board: Board | None = None,
        follow_outcomes: bool = True,
    ) -> None:
        self.lock = threading.RLock()
        self.ledger = Ledger()
        self.refused_versions = 0
        self.bad_records = 0
        self._load_critic = load_critic
        self._gate = gate
        self._board = board
        self._campaigns: dict[tuple[str, str], Campaign] = {}
        self._hashes: dict[tuple[str, str], str] = {}
        self._stages = PolicyStages()
        self._policies = self._stages.rows
        self._critic: Critic | None = None
        self._adopted: PolicyRecord | None = None
        self._tried: str | None = None
        self._pools: dict[tuple[str, str, str], list[_Held]] = {}
        self._unclaimed: set[tuple[str, str]] = set()
        self._shelves: dict[tuple[str, str, str], Shelf | None] = {}
        self._tables: list[tuple[LogReader, Callable[[Record], None]]] = [
            (log.reader(whole(log, topic)), handle)
            for topic, handle in zip(TABLES, (self._on_campaign, self._on_policy, self._on_pool), strict=True)
        ]
        self._outcomes = log.reader(whole(log, "outcomes")) if follow_outcomes else None

    # -- following the log --------------------------------------------------------------------------------------------

    def refresh(self) -> int:
        """Read the tables to their ends and the next outcomes; returns how many records there were."""
        count = self.refresh_tables()
        with self.lock:
            if self._outcomes is not None:
                records = self._outcomes.poll(POLL_RECORDS)
                for record in records:
                    self._guarded(self._on_outcome, record)
                count += len(records)
        return count

    def refresh_tables(self) -> int:
        """Read campaigns, policies and pools to their ends, take over the live version's critic; returns how many
        records there were."""
        count = self.read_tables()
        self._adopt()
        return count

    def read_tables(self) -> int:
        """As `refresh_tables`, but for the critic, which is loaded from files: for who holds the lock."""
        with self.lock:
            campaigns, *others = self._tables
            count = self._read(*campaigns)
            self._forget_unclaimed()
            return count + sum(self._read(*table) for table in others)

    def _read(self, reader: LogReader, handle: Callable[[Record], None]) -> int:
        """Read a topic to its end; returns how many records there were."""
        count = 0
        while records := reader.poll(POLL_RECORDS):
            count += len(records)
            for record in records:
                self._guarded(handle, record)
        return count

    def caught_up(self) -> bool:
        """True where every topic has been read to its end."""
        with self.lock:
            readers = [reader for reader, _ in self._tables] + ([self._outcomes] if self._outcomes else [])
            return all(reader.at_end() for reader in readers)

    def close(self) -> None:
        with self.lock:
            for reader, _ in self._tables:
                reader.close()
            if self._outcomes is not None:
                self._outcomes.close()

    def _guarded(self, handle: Callable[[Record], None], record: Record) -> None:
        """A record that cannot be read is counted and skipped: one bad record must not stop serving."""
        try:
            handle(record)
        except UNREADABLE as error:
            self.bad_records += 1
            logger.warning("skipped %s[%d]@%d: %s", record.topic, record.partition, record.offset, error)

    def _on_campaign(self, record: Record) -> None:
        tenant, _, campaign_id = (record.key or b"").decode().partition("/")
        at = (tenant, campaign_id)
        self._forget_shelves(at)
        if record.value is None:
            self._campaigns.pop(at, None)
            self._hashes.pop(at, None)
            self._unclaimed.add(at)
            if self._board is not None:
                self._board.on_campaign_deleted(*at)
            return
        campaign = _CAMPAIGN.decode(record.value)
        self._campaigns[at] = campaign
        self._hashes[at] = campaign_hash(campaign)
        if self._board is not None:
            self._board.on_campaign(campaign)

    def _on_policy(self, record: Record) -> None:
        if record.value is None:
            self._policies.pop((record.key or b"").decode(), None)
            return
        policy = _POLICY.decode(record.value)
        why = self._stages.take(policy)
        if why is not None:
            self.refused_versions += 1
            logger.warning("%s", why)
            return
        if policy.stage == "rolled_back":
            self._shelves.clear()
        if self._board is not None:
            self._board.on_policy(policy)

    def _on_pool(self, record: Record) -> None:
        if record.value is None:
            return
        head = _HEAD.decode(record.value)
        if head.pool_id.startswith(FRESH_PREFIX):
            return
        at = (head.tenant, head.campaign_id, head.segment)
        held = self._pools.setdefault(at, [])
        held.append(_Held(head, record.value))
        del held[:-POOLS_KEPT]
        if at[:2] not in self._campaigns:
            self._unclaimed.add(at[:2])
        self._shelves.pop(at, None)
        if self._board is not None:
            self._board.on_pool(held[-1].decode())

    def _on_outcome(self, record: Record) -> None:
        if record.value is None:
            return
        outcome = _OUTCOME.decode(record.value)
        applied = self.ledger.apply(outcome)
        if applied is not None and self._board is not None:
            self._board.on_outcome(applied[0], outcome)

    def _forget_unclaimed(self) -> None:
        """Let the pools of deleted campaigns go. Called when campaigns have been read to their end and pools not yet: a
        campaign that is not there now is gone, since its record stands in the log before its pools."""
        gone = self._unclaimed - self._campaigns.keys()
        self._unclaimed.clear()
        if gone:
            self._pools = {at: held for at, held in self._pools.items() if at[:2] not in gone}

    def _forget_shelves(self, campaign: tuple[str, str]) -> None:
        for at in [at for at in self._shelves if at[:2] == campaign]:
            del self._shelves[at]

    def _adopt(self) -> None:
        """Take over the critic of the live version. A version that is refused is counted, and the one that was in use
        stays; after a restart that is the latest good one of those that were live before.

        Critics are loaded without the lock: requests go on with the old one meanwhile.
        """
        with self.lock:
            live = self._stages.live()
            if self._load_critic is None or live is None or live.version == self._tried:
                return
            self._tried = live.version
            before = [] if self._adopted is not None else list(self._stages.live_ones())[1 : 1 + EARLIER_TRIED]
        for record in (live, *before):
            try:
                critic = self._load_critic(record)
            except StoreError as error:
                self.refused_versions += 1
                logger.warning("policy version %s is refused, the one before stays: %s", record.version, error)
                continue
            with self.lock:
                if self._tried != live.version:
                    # Another version went live while this one was loaded, and its turn is now, or was.
                    return
                self._adopted = record
                if critic is not None or self._critic is not None:
                    self._critic = critic
                    self._shelves.clear()
            return

    # -- what requests read -------------------------------------------------------------------------------------------

    def campaign(self, tenant: str, campaign_id: str) -> Campaign | None:
        with self.lock:
            return self._campaigns.get((tenant, campaign_id))

    def campaigns(self, tenant: str) -> list[Campaign]:
        """The tenant's campaigns in order of id."""
        with self.lock:
            return [self._campaigns[at] for at in sorted(self._campaigns) if at[0] == tenant]

    def policies(self) -> list[PolicyRecord]:
        """The versions that are held (`PolicyStages`) with their newest records, in log order."""
        with self.lock:
            return list(self._policies.values())

    def first_policy(self) -> PolicyRecord | None:
        """Number 0, the reference, where its record is there."""
        with self.lock:
            return next((one for one in self._policies.values() if version_order(one.version) == 0), None)

    def policy(self, version: str) -> PolicyRecord | None:
        with self.lock:
            return self._policies.get(version)

    def live(self) -> PolicyRecord | None:
        with self.lock:
            return self._stages.live()

    def critic(self) -> Critic | None:
        with self.lock:
            return self._critic

    def tally(self, tenant: str, campaign_id: str) -> CampaignTally:
        """The campaign's sums; empty ones where nothing was shown yet."""
        with self.lock:
            return self.ledger.campaigns.get((tenant, campaign_id)) or CampaignTally()

    def shelf(self, campaign: Campaign, segment: str) -> Shelf | None:
        """The newest pool that may be drawn from now: of a version that is not rolled back, written for the campaign's
        present text, with at least one permitted candidate. None where there is none, or texts need approval."""
        at = (campaign.tenant, campaign.campaign_id, segment)
        with self.lock:
            if at not in self._shelves:
                self._shelves[at] = self._make_shelf(campaign, at)
            return self._shelves[at]

    def newest(self, tenant: str, campaign_id: str, limit: int) -> list[str]:
        """The newest showable texts of the campaign, newest pool first, without repeats."""
        with self.lock:
            campaign = self._campaigns.get((tenant, campaign_id))
            shelves = [self.shelf(campaign, segment) for segment in campaign.segments] if campaign else []
            texts: dict[str, None] = {}
            for shelf in sorted((s for s in shelves if s), key=lambda s: -s.pool.ts):
                for candidate, shown in zip(shelf.pool.candidates, shelf.permitted, strict=True):
                    if shown and len(texts) < limit:
                        texts[candidate.text()] = None
            return list(texts)

    def ready_shelf(self, campaign: Campaign, pool: Pool, permitted: Bools | None = None) -> Shelf | None:
        """The pool with its filters applied as they stand now (or were, `permitted`); None where nothing may be
        shown."""
        if permitted is None:
            permitted = self._permitted(campaign, pool)
        if not permitted.any():
            return None
        with self.lock:
            critic = self._critic
        features = critic.encode(campaign, pool.segment, pool.candidates) if critic is not None else None
        return Shelf(pool, permitted, critic, features)

    def _make_shelf(self, campaign: Campaign, at: tuple[str, str, str]) -> Shelf | None:
        if campaign.rules.require_approval:
            return None
        wanted = self._hashes.get(at[:2])
        for held in reversed(self._pools.get(at, ())):
            policy = self._policies.get(held.head.policy_version)
            if held.head.campaign_hash != wanted or (policy is not None and policy.stage == "rolled_back"):
                continue
            if held.judged is None or held.judged[0] is not campaign:
                held.judged = campaign, self._permitted(campaign, held.decode())
            shelf = self.ready_shelf(campaign, held.decode(), held.judged[1])
            if shelf is not None:
                return shelf
        return None

    def _permitted(self, campaign: Campaign, pool: Pool) -> Bools:
        """`[n]`: not refused by the gate then or now, no control, and no text twice."""
        taken = {variant_id(campaign.campaign_id, control) for control in campaign.controls}
        permitted = np.zeros(len(pool.candidates), dtype=np.bool_)
        for index, candidate in enumerate(pool.candidates):
            if candidate.rejected is not None or candidate.variant_id in taken:
                continue
            if banned_term(campaign.rules.banned, candidate.text()) is not None:
                continue
            if self._gate is not None and self._gate(campaign, candidate.slots) is not None:
                continue
            taken.add(candidate.variant_id)
            permitted[index] = True
        return permitted
