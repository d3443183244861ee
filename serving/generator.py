"""The generator: samples candidate pools from the live policy, gates the texts, and appends them to the log ahead of
the traffic."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from optimizer.clock import Clock
from optimizer.errors import StoreError
from optimizer.ids import campaign_hash, new_id, variant_id
from optimizer.learning.archive import Archive, most_promising, near_duplicate
from optimizer.learning.base import BaseModel, load_policy, load_version
from optimizer.learning.policy import LanguagePolicy, Sample, Start
from optimizer.learning.prompt import Prompt, build_prompt, fill
from optimizer.learning.traffic import due, place_name
from optimizer.learning.view import CriticView
from optimizer.store import PolicyStore
from optimizer.stream.guarded import GuardedDecode
from optimizer.stream.log import Append, EventLog, whole
from optimizer.stream.views import campaign_table, live_policy, policy_table
from optimizer.types import Campaign, Candidate, Decode, Pool, to_json

logger = logging.getLogger(__name__)
TextCheck = Callable[[Campaign, Mapping[str, str]], str | None]
FRESH_PREFIX = "fresh."
Place = tuple[str, str, str]


@dataclass(frozen=True)
class GeneratorConfig:
    """Sizes and limits of the pools.

    `samples`: texts sampled for a pool. `regrown`: texts that begin as one of the `parents` most promising texts of
    before does, up to a place drawn at random, and go on as the live version writes; they are no samples of it. `kept`:
    the most promising texts written before, for any of the campaign's segments, that are carried over.
    `pools_per_step`: places written in one step, all in one batch where their slots agree. `rest_ms`: how long a
    version's other places wait after a batch. `attempts`: rounds of sampling for a pool in which no text passes.
    `most_surprise`: nats; a text with a token less likely than that under the reference model is refused, so that no
    reward can buy broken language."""

    samples: int = 32
    regrown: int = 32
    parents: int = 16
    kept: int = 16
    pools_per_step: int = 4
    attempts: int = 3
    rest_ms: int = 5_000
    most_surprise: float = 6.0
    decode: Decode = field(default_factory=lambda: Decode(min_p=0.05))


class Known(NamedTuple):
    """Texts written before, and what each of the critic's H heads expects of each, float64[H, n]."""

    texts: list[Candidate]
    scores: NDArray[np.float64]

    def those(self, wanted: Callable[[Candidate], bool]) -> Known:
        """The texts that are wanted, in their order."""
        at = [place for place, text in enumerate(self.texts) if wanted(text)]
        return Known([self.texts[place] for place in at], np.ascontiguousarray(self.scores[:, at]))


class Wanted(NamedTuple):
    """What a campaign's record asks for: texts for each of these places, none where none may be shown, or the model
    does not write the language or has no room for the prompts. No version changes that: it is the base model's."""

    campaign: Campaign
    hash: str
    places: tuple[Place, ...]


class Generator:
    """One of these writes pools for a log. Not thread-safe. Same log, store and seed: same pools."""

    def __init__(
        self,
        log: EventLog,
        store: PolicyStore,
        base: BaseModel,
        clock: Clock,
        gate: TextCheck,
        seed: int = 0,
        config: GeneratorConfig | None = None,
    ) -> None:
        self.config = config or GeneratorConfig()
        self.sampled = 0
        self.rejected: dict[str, int] = {}
        self._log, self._store, self._base, self._clock, self._gate = log, store, base, clock, gate
        # Before there is anything to close: a model that cannot be loaded leaves nothing open.
        self._policy = load_policy(base)
        self._guarded = GuardedDecode()
        self._deleted: set[str] = set()
        with ExitStack() as unless_made:
            self._campaigns = campaign_table(log, self._guarded, self._deleted.add)
            unless_made.callback(self._campaigns.close)
            self._policies = policy_table(log, self._guarded)
            unless_made.callback(self._policies.close)
            self._reader = log.reader(whole(log, "candidates"))
            unless_made.pop_all()
        self._decoder = msgspec.json.Decoder(Pool)
        self._wanted: dict[str, Wanted] = {}
        self._pools: dict[Place, Pool] = {}
        self._unclaimed: set[str] = set()
        self._archive = Archive()
        self._written = ("", 0)
        self._refused: str | None = None
        self._critic: CriticView | None = None
        self._rng = np.random.default_rng([seed, 11])
        self._torch = torch.Generator(device=self._policy.device).manual_seed(seed)

    def close(self) -> None:
        """Let go of the log; the pools that were written stand there."""
        with ExitStack() as stack:  # each, also where one fails
            for held in (self._reader, self._policies, self._campaigns):
                stack.callback(held.close)

    def step(self) -> bool:
        """Write the pools that are most out of date; False where there is none, or a rest is due.

        One batch a version, then a rest: a learner on the same machine needs the processor more than the pools need the
        very last version. Places without a pool do not wait."""
        self._refresh()
        if not self._policy.version:
            return False
        stale = self._stale()
        version, written_ms = self._written
        if version == self._policy.version and self._clock.now_ms() - written_ms < self.config.rest_ms:
            stale = [(place, wanted) for place, wanted in stale if self._lacks(place, wanted)]
        places = stale[: self.config.pools_per_step]
        by_slots: dict[object, list[tuple[Campaign, str]]] = {}
        for place, wanted in places:
            by_slots.setdefault(wanted.campaign.slots, []).append((wanted.campaign, place[2]))
        for same in by_slots.values():
            pools = self._write(same, self.config.samples)
            self._log.append([Append("candidates", pool.pool_id, to_json(pool)) for pool in pools])
        if places:
            self._written = (self._policy.version, self._clock.now_ms())
        return bool(places)

    def _lacks(self, place: Place, wanted: Wanted) -> bool:
        """True where there is no pool for the campaign as it stands."""
        pool = self._pools.get(place)
        return pool is None or pool.campaign_hash != wanted.hash

    @property
    def policy(self) -> LanguagePolicy:
        """The model that writes; its `version` is empty before the first policy version."""
        return self._policy

    def fresh(self, campaign: Campaign, segment: str, cancelled: Callable[[], bool]) -> Pool | None:
        """A pool for one request alone, appended to the log; None before the first policy version, and for a campaign
        that the model has no room for, or whose language it does not write. Raises `Cancelled` when the caller has
        gone."""
        self._refresh()
        if not self._policy.version or not self._base.writes(campaign):
            return None
        if not self._policy.fits(build_prompt(campaign, segment)):
            return None
        pool = self._write([(campaign, segment)], self.config.samples, cancelled, FRESH_PREFIX)[0]
        self._log.append([Append("candidates", pool.pool_id, to_json(pool))])
        return pool

    def _refresh(self) -> None:
        self._campaigns.refresh()
        # A campaign's record stands in the log before its pools, and these were read before: it is gone, not new.
        self._forget(self._unclaimed - self._campaigns.rows.keys())
        self._unclaimed.clear()
        self._policies.refresh()
        while records := self._reader.poll(200):
            for record in records:
                pool = None if record.value is None else self._guarded.read(record, record.value, self._decoder.decode)
                if pool is not None:
                    self._archive.add(pool)
                    if not pool.pool_id.startswith(FRESH_PREFIX):
                        self._hold(pool)
        # Also what was read just now may be from before the deletion: a campaign that was put again gets pools anew.
        self._forget(self._deleted)
        self._deleted.clear()
        live = live_policy(self._policies)
        if live is None or live.version in (self._policy.version, self._refused):
            return
        for good in self._policies.stages.live_ones():
            if self._load(good.version):
                return
            # The version in use goes on writing; after a restart that is the latest good one that was live before. The
            # same refusal is not tried again.
            self._refused = live.version
            if self._policy.version:
                return

    def _hold(self, pool: Pool) -> None:
        place = (pool.tenant, pool.campaign_id, pool.segment)
        self._pools[place] = pool
        if _campaign_key(place) not in self._campaigns.rows:
            self._unclaimed.add(_campaign_key(place))

    def _forget(self, campaigns: Collection[str]) -> None:
        """Let the pools of these campaigns go."""
        if campaigns:
            self._pools = {at: pool for at, pool in self._pools.items() if _campaign_key(at) not in campaigns}

    def _load(self, version: str) -> bool:
        """Take over a version; False where the store refuses it, and then nothing has changed."""
        try:
            critic = CriticView.from_bytes(self._store.critic_bytes(version), version)
            load_version(self._policy, self._base, self._store, version)
        except StoreError as error:
            logger.warning("%s", error)
            return False
        self._critic = critic
        return True

    def _stale(self) -> list[tuple[Place, Wanted]]:
        """Places whose newest pool is not of the live version or not for the campaign as it stands: those without one
        first, then by the impressions that have come since theirs was written."""
        traffic = {} if self._critic is None else self._critic.traffic
        now_ms, places = self._clock.now_ms(), len(self._pools)
        stale: list[tuple[float, Place, Wanted]] = []
        for wanted in self._all_wanted():
            for place in wanted.places:
                if self._lacks(place, wanted):
                    stale.append((-math.inf, place, wanted))
                elif self._pools[place].policy_version != self._policy.version:
                    share = traffic.get(place_name(wanted.campaign, place[2]), 0.0)
                    urgency = due(share, max(1, now_ms - self._pools[place].ts), places)
                    stale.append((-urgency, place, wanted))
        return [(place, wanted) for _, place, wanted in sorted(stale, key=lambda entry: (entry[0], entry[1]))]

    def _all_wanted(self) -> Iterable[Wanted]:
        """What each campaign asks for, told from its record once: an idle generator asks ten times a second."""
        rows, before = self._campaigns.rows, self._wanted
        self._wanted = {
            key: known
            if (known := before.get(key)) is not None and known.campaign is campaign
            else self._want(campaign)
            for key, campaign in rows.items()
        }
        return self._wanted.values()

    def _want(self, campaign: Campaign) -> Wanted:
        # PUT refuses what the model has no room for; one that was put under another model must not stop the others.
        fits = all(self._policy.fits(build_prompt(campaign, segment)) for segment in campaign.segments)
        written = fits and not campaign.rules.require_approval
        if not self._base.writes(campaign):
            written = False
            logger.warning(
                "campaign %s/%s: language %s, but the tiny model writes %s alone: it gets no texts, and shows its "
                "controls but for pools that it has already; begin a data folder with a --model that writes it",
                campaign.tenant,
                campaign.campaign_id,
                campaign.language,
                self._base.language,
            )
        places = [(campaign.tenant, campaign.campaign_id, segment) for segment in campaign.segments if written]
        return Wanted(campaign, campaign_hash(campaign), tuple(places))

    def _write(
        self,
        places: Sequence[tuple[Campaign, str]],
        samples: int,
        cancelled: Callable[[], bool] = lambda: False,
        prefix: str = "",
    ) -> list[Pool]:
        prompts = [build_prompt(campaign, segment) for campaign, segment in places]
        drawn = self._policy.sample(prompts, samples, self.config.decode, self._torch, cancelled)
        judged = self._judged(places, prompts, drawn)
        known = [Known([], np.zeros((0, 0))) if prefix else self._known(*place) for place in places]
        regrown = self._regrown(places, prompts, known, cancelled)
        pools = []
        for at, (campaign, segment) in enumerate(places):
            fresh = judged[at]
            for _ in range(self.config.attempts - 1):
                if any(candidate.rejected is None for candidate in fresh.values()):
                    break
                drawn[at] = (
                    drawn[at]
                    + self._policy.sample([prompts[at]], samples, self.config.decode, self._torch, cancelled)[0]
                )
                fresh = self._judged([places[at]], [prompts[at]], [drawn[at]])[0]
            self._count(fresh.values())
            grown = [text for text in regrown[at] if text.variant_id not in fresh]
            others = {*fresh, *(text.variant_id for text in grown)}
            kept = self._kept(campaign, known[at], others)
            pools.append(
                Pool(
                    pool_id=prefix + new_id(self._rng),
                    tenant=campaign.tenant,
                    campaign_id=campaign.campaign_id,
                    segment=segment,
                    policy_version=self._policy.version,
                    campaign_hash=campaign_hash(campaign),
                    candidates=(*fresh.values(), *grown, *kept),
                    decode=self.config.decode,
                    ts=self._clock.now_ms(),
                )
            )
        return pools

    def _count(self, texts: Iterable[Candidate]) -> None:
        for text in texts:
            self.sampled += 1
            if text.rejected is not None:
                self.rejected[text.rejected] = self.rejected.get(text.rejected, 0) + 1

    def _judged(
        self, places: Sequence[tuple[Campaign, str]], prompts: Sequence[Prompt], drawn: Sequence[Sequence[Sample]]
    ) -> list[dict[str, Candidate]]:
        """Each place's distinct texts by variant, judged by the gate; a text sampled twice counts twice."""
        judged = [self._candidates(campaign, texts) for (campaign, _), texts in zip(places, drawn, strict=True)]
        # What the reference makes of a text takes a pass of the model: asked only of those that may be shown otherwise.
        rows = [
            (place, name) for place, texts in enumerate(judged) for name, text in texts.items() if text.rejected is None
        ]
        surprises = self._policy.surprise(
            [prompts[place] for place, _ in rows],
            [judged[place][name].token_ids for place, name in rows],
            self.config.decode,
        )
        controls = [{variant_id(one.campaign_id, control) for control in one.controls} for one, _ in places]
        for (place, name), surprise in zip(rows, surprises, strict=True):
            reason = None
            if surprise > self.config.most_surprise:
                reason = "unlikely"
            elif name in controls[place]:
                # The pool holds no control: the comparison between the two would blur.
                reason = "control"
            if reason is not None:
                judged[place][name] = msgspec.structs.replace(judged[place][name], rejected=reason)
        return judged

    def _candidates(self, campaign: Campaign, texts: Sequence[Sample]) -> dict[str, Candidate]:
        """The distinct texts, refused where they are unfinished or the gate refuses them."""
        found: dict[str, Candidate] = {}
        for sample in texts:
            slots = {name: fill(campaign, text) for name, text in sample.slots.items()}
            name = variant_id(campaign.campaign_id, slots)
            known = found.get(name)
            if known is not None:
                found[name] = msgspec.structs.replace(known, count=known.count + 1)
                continue
            found[name] = Candidate(
                variant_id=name,
                slots=slots,
                token_ids=sample.token_ids,
                log_probs=sample.log_probs,
                rejected="unfinished" if not sample.finished else self._gate(campaign, slots),
                embedding=sample.embedding,
            )
        return found

    def _known(self, campaign: Campaign, segment: str) -> Known:
        """What was written before for any of the campaign's segments, with what the critic makes of it in this one;
        nothing where there is no critic."""
        texts = self._archive.texts(campaign)
        if self._critic is None or not texts:
            return Known([], np.zeros((0, 0)))
        return Known(texts, self._critic.score(self._critic.encode(campaign, segment, texts), {}))

    def _regrown(
        self,
        places: Sequence[tuple[Campaign, str]],
        prompts: Sequence[Prompt],
        known: Sequence[Known],
        cancelled: Callable[[], bool],
    ) -> list[list[Candidate]]:
        """Each place's texts that go on from the beginnings of promising ones, those that may be shown.

        A whole text that is new mixes what is known to work with what the model would write there; a sample of the
        model alone meets what works only once the model has learnt it."""
        starts = [self._starts(some) for some in known]
        at = [place for place, some in enumerate(starts) if some]
        grown: list[list[Candidate]] = [[] for _ in places]
        if not at:
            return grown
        own, their = [places[place] for place in at], [prompts[place] for place in at]
        begun = [starts[place] for place in at]
        drawn = self._policy.sample(their, self.config.regrown, self.config.decode, self._torch, cancelled, begun)
        for place, texts in zip(at, self._judged(own, their, drawn), strict=True):
            self._count(texts.values())
            grown[place] = [
                msgspec.structs.replace(text, count=0, kept=True, log_probs=(), embedding=None)
                for text in texts.values()
                if text.rejected is None
            ]
        return grown

    def _starts(self, known: Known) -> list[Start]:
        """`regrown` beginnings of the most promising texts written before; none where there are none."""
        some = known.those(lambda text: sum(map(len, text.token_ids)) > 1)
        if not some.texts or not self.config.regrown:
            return []
        parents = most_promising(some.scores, self.config.parents)
        chosen = self._rng.integers(len(parents), size=self.config.regrown)
        return [self._cut(some.texts[parents[one]].token_ids) for one in chosen.tolist()]

    def _cut(self, token_ids: Start) -> Start:
        """A text's beginning, of one token at least and not the whole of it."""
        left = int(self._rng.integers(1, sum(map(len, token_ids))))
        begun: list[tuple[int, ...]] = []
        for tokens in token_ids:
            if left < len(tokens):
                return (*begun, tokens[:left])
            begun.append(tokens)
            left -= len(tokens)
        raise AssertionError("a cut lies inside of the text")

    def _kept(self, campaign: Campaign, known: Known, others: Collection[str]) -> list[Candidate]:
        """The most promising of the texts written before that are not among the `others` of the pool; they may be
        shown, but are no samples of this version."""
        some = known.those(lambda text: text.variant_id not in others)
        if not some.texts:
            return []
        chosen: list[Candidate] = []
        for at in most_promising(some.scores, 4 * self.config.kept):
            if len(chosen) == self.config.kept:
                break
            text = some.texts[at]
            if not near_duplicate(text, chosen) and self._gate(campaign, text.slots) is None:
                chosen.append(Candidate(variant_id=text.variant_id, slots=text.slots, count=0, kept=True))
        return chosen


def _campaign_key(place: Place) -> str:
    """The key of the campaign's record."""
    return f"{place[0]}/{place[1]}"
