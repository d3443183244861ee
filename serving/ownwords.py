"""The campaign's own words in a text: what stands in for them while rules about words are asked, whether they fit where
they stand, and whether the text speaks against them. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from optimizer.learning.prompt import plain_fact
from optimizer.types import Campaign
from serving.text import folded
from serving.wellformed import OWN, own_word

_MARKS = tuple(".,;:!?\u2026")
_BEGINS = re.compile(r"(?:^|[.!?\u2026]\s)$")
_PRICED = re.compile(r"\b(?:at|for|from|just|only)\s$", re.IGNORECASE)
_FOR_FREE = re.compile(r"\bfor\s$", re.IGNORECASE)
_AMOUNT = re.compile(r"[^\w\s]?\s*\d|[A-Z]{2,3}[\s$]?\d")

_IT = rf"{OWN}[a-z]\b"
_NAME = rf"{OWN}[ab]\b"
"""The product's name or its brand: `own_words` numbers them first."""
_AGAINST = re.compile(
    r"\b(?:say no to|goodbye,?|so long,|break up with|forget|no more|away with|avoid|ditch|refuse|reject|boycott|hate"
    r"|don't (?:buy|try|choose|trust|bother with|get|use|want|need)|never (?:buy|try|choose|trust|get|use)"
    r"|(?:nobody|no one) (?:needs|wants|likes|loves|remembers|misses)|tired of|sick of|enough of|too much|fed up with"
    r"|no to|we don't do|never settle for|life(?: is|'s) too short for|(?:i'm|i am|we're|we are) done with"
    rf"|(?<!why )not|hardly|barely|no longer|instead of|other than|less) (?:the |a |your |our )?{_IT}"
    rf"|(?:^|[.!?\u2026] )(?:who needs|move over,?) {_IT}|\bsome say {_IT}\. we say\b|\bdear {_IT}: it's not us"
    rf"|(?:^|[.!?\u2026] )(?:skip|leave|drop|dump|quit|lose|ignore) (?:the |a |your |our )?{_NAME}"
    r"(?: (?:behind|at home|alone))?(?:[.!\u2026]|$)"
    rf"|{_IT}(?:\? no,? (?:thanks|thank you)| had a good run)|\bwe tried {_IT}\. we prefer"
    rf"|{_IT}(?:,| is| was| are)? (?:(?:so|very|really|just|simply|quite|a bit|rather) )?"
    r"(?:terrible|awful|bad|worse|worst|boring|disappointing|useless|overpriced|ugly|broken|a mistake|a scam|a lie|fake"
    r"|sucks)\b"
    r"|\b(?:disappointing|useless|overpriced|worthless|terrible|awful) as ever\b",
    re.IGNORECASE,
)
_WITHOUT = re.compile(
    r"(?:^|[.!?\u2026] )(?:(?!\b(?:not|no|nobody|none|never|nothing|few|rarely|seldom|hardly|lost|hard|impossible"
    rf"|incomplete|why|how|what|who|cannot|\w+n't)\b)[^.!?\u2026])*\bwithout {_IT}(?:[.!\u2026]|$)",
    re.IGNORECASE,
)
"""A sentence that ends in it; not `Never leave without Trail Runner 3`, nor `A run without Halden is only a walk`."""


@dataclass(frozen=True)
class OwnWords:
    """What a campaign states itself: `own` finds its name, brand, price and facts; `stated` holds controls as well."""

    campaign: Campaign
    own: re.Pattern[str]
    numbers: dict[str, int]
    stated: str

    def mask(self, text: str) -> str:
        """The text with a stand-in for each of the campaign's own words, another one for each of them."""
        return self.own.sub(lambda match: own_word(self.numbers.get(match.group().lower(), 25)), text)

    def misfit(self, text: str) -> bool:
        """Whether the campaign's own words, as the advertiser wrote them, do not fit where they stand: a fact with a
        full stop before another mark, a fact in small letters where a sentence begins, `at from $9`."""
        product = self.campaign.product
        facts = {plain_fact(fact).lower() for fact in product.facts}
        for match in self.own.finditer(text):
            words, before, after = match.group(), text[: match.start()], text[match.end() :]
            if words.endswith(_MARKS) and after.startswith(_MARKS):
                return True
            if words.lower() in facts and words[0].islower() and _BEGINS.search(before):
                return True
            if words.lower() == product.price.lower() and _PRICED.search(before) and not _AMOUNT.match(words):
                return not (words.lower() == "free" and _FOR_FREE.search(before))
        return False


def own_words(campaign: Campaign) -> OwnWords:
    """The campaign's, ready to be looked for."""
    product = campaign.product
    facts = map(plain_fact, product.facts)  # as `fill` writes them
    # Numbered by their place, so that the first two are always name and brand.
    named = list(enumerate((product.name, product.brand, product.price, *facts)))
    own = [words for _, words in named if words.strip()]
    longest_first = sorted(own, key=len, reverse=True)
    pattern = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest_first))})(?!\w)", re.IGNORECASE)
    controls = [text for control in campaign.controls for text in control.values()]
    numbers = {words.lower(): number for number, words in named if words.strip()}
    return OwnWords(campaign, pattern, numbers, folded("\n".join([*own, *controls])))


def speaks_against(masked: str) -> bool:
    """Whether an English text with stand-ins argues against what they stand for: `Say no to Trail Runner 3`, `Not
    waterproof at all`."""
    plain = masked.replace("\u2019", "'")
    return _AGAINST.search(plain) is not None or _WITHOUT.search(plain) is not None
