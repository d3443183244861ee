"""What a pool takes from the texts that were written before: the most promising ones themselves, their beginnings, and
new texts out of two of them. None of these is a sample of the live version."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from optimizer.ids import variant_id
from optimizer.learning.archive import most_promising, near_duplicate
from optimizer.learning.crossover import Child, crossed
from optimizer.learning.policy import LanguagePolicy, Start
from optimizer.learning.prompt import Prompt, fill
from optimizer.learning.view import CriticView
from optimizer.types import Campaign, Candidate

TextCheck = Callable[[Campaign, Mapping[str, str]], str | None]


class Earlier:
    """The texts held for a campaign, whichever segment they were written for, as the critic sees them in one of its
    segments; nothing where there is no critic."""

    def __init__(
        self, campaign: Campaign, segment: str, texts: Sequence[Candidate], critic: CriticView | None, gate: TextCheck
    ) -> None:
        self._campaign, self._segment, self._critic, self._gate = campaign, segment, critic, gate
        self._texts = list(texts) if critic is not None else []
        self._scores = self._score(self._texts)

    def kept(self, limit: int, others: Collection[str]) -> list[Candidate]:
        """At most `limit` of the most promising ones, no two of them nearly the same, without the variants `others`."""
        some = [at for at, text in enumerate(self._texts) if text.variant_id not in others]
        chosen: list[Candidate] = []
        for text in self._best(some, 4 * limit):
            if len(chosen) == limit:
                break
            if self._showable(text, chosen):
                chosen.append(text)
        return [Candidate(variant_id=text.variant_id, slots=text.slots, count=0, kept=True) for text in chosen]

    def starts(self, count: int, parents: int, rng: np.random.Generator) -> list[Start]:
        """`count` beginnings of the `parents` most promising ones, each up to a place drawn at random; none where
        nothing is held."""
        some = [at for at, text in enumerate(self._texts) if sum(map(len, text.token_ids)) > 1]
        best = self._best(some, parents)
        if not best or not count:
            return []
        return [cut(best[one].token_ids, rng) for one in rng.integers(len(best), size=count).tolist()]

    def children(
        self, count: int, parents: int, bred: int, prompt: Prompt, policy: LanguagePolicy, rng: np.random.Generator
    ) -> list[Child]:
        """At most `count` new texts out of two of the `parents` most promising ones each, in the order in which the
        critic finds them promising: of `bred` that are drawn, those that the gate lets pass."""
        best = self._best([at for at, text in enumerate(self._texts) if text.token_ids], parents)
        if not best or not count:
            return []
        limits, known = policy.slot_tokens(prompt), {text.variant_id for text in self._texts}
        new: dict[str, Candidate] = {}
        seams: dict[str, int] = {}
        for tokens, seam in crossed([text.token_ids for text in best], bred, policy.openers, rng):
            slots = {name: fill(self._campaign, text) for name, text in policy.slots_of(prompt, tokens).items()}
            name = variant_id(self._campaign.campaign_id, slots)
            if name not in known and all(len(own) <= most for own, most in zip(tokens, limits, strict=True)):
                new[name] = Candidate(variant_id=name, slots=slots, token_ids=tokens)
                seams[name] = seam
        texts, chosen = list(new.values()), list[Candidate]()
        for at in most_promising(self._score(texts), len(texts)):
            if len(chosen) == count:
                break
            if self._showable(texts[at], chosen):
                chosen.append(texts[at])
        return [Child(text.token_ids, seams[text.variant_id]) for text in chosen]

    def _score(self, texts: Sequence[Candidate]) -> NDArray[np.float64]:
        """What each of the critic's H heads expects of each text, float64[H, n]."""
        if self._critic is None or not texts:
            return np.zeros((0, 0))
        return self._critic.score(self._critic.encode(self._campaign, self._segment, texts), {})

    def _best(self, some: Sequence[int], limit: int) -> list[Candidate]:
        """The most promising of `some`."""
        if not some:
            return []
        ranked = most_promising(np.ascontiguousarray(self._scores[:, some]), limit)
        return [self._texts[some[at]] for at in ranked]

    def _showable(self, text: Candidate, chosen: Sequence[Candidate]) -> bool:
        return not near_duplicate(text, chosen) and self._gate(self._campaign, text.slots) is None


def cut(token_ids: Start, rng: np.random.Generator) -> Start:
    """A text's beginning, of one token at least and not the whole of it."""
    left = int(rng.integers(1, sum(map(len, token_ids))))
    begun: list[tuple[int, ...]] = []
    for tokens in token_ids:
        if left < len(tokens):
            return (*begun, tokens[:left])
        begun.append(tokens)
        left -= len(tokens)
    raise AssertionError("a cut lies inside of the text")
