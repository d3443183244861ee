"""Claims that an advertiser must be able to keep, found in English copy by pattern. Pure.

A claim may be made only where the campaign makes it itself: in the product's name, brand, price, facts, or a control.
"""

from __future__ import annotations

import re

from serving.text import folded
from serving.wellformed import OWN

_NUMBER = re.compile(r"\d+(?:[.,:/]\d+)*")
_SIGN = re.compile(r"[%‰$€£¥₹₽]|\bper ?cent\b|\bpercentage\b")

_WORDS = re.compile(
    r"\b(?:"
    # price and offers
    r"(?<!feel )free(?! time| spirit| spirits| evening| afternoon| morning| hand)(?: \w+)?|for nothing|no extra cost"
    r"|discount\w*|sale|on offer|half price|price drop"
    r"|cheap|bargain\w*|coupons?|vouchers?|cashback|money back|refund\w*|rebate\w*|clearance"
    r"|shipping|ships|delivery|delivered|in stock|limited (?:time|offer|edition)|last chance|today only"
    r"|sold out|while (?:stocks?|supplies) lasts?|offer ends|act now|best ?sell\w*"
    r"|half off|price of (?:one|two|three)|on us|nothing to pay|pay later|black friday|cyber monday|click here|prizes?"
    r"|only (?:a few|one|two|three|four|five) left|almost gone|selling fast|order (?:by|now|today)"
    r"|call (?:us )?(?:now|today)|verify your|your (?:account|password)|dear (?:customer|user|sir|madam)"
    r"|(?:try it|yours) for a (?:week|month|year)|trial|win a|you(?: have)? won(?!')|been selected|sign up"
    # `Was $129 until today`: the campaign's own price, of which only the stand-in is left, folded as the text is
    rf"|was {folded(OWN)}\w"
    # promises
    r"|guarantee\w*|warranty|warranties|we promise|lifetime|risk free|no risk|without risk|always works|never fails"
    r"|no obligation|no strings attached|unlimited"
    # rank and approval
    r"|(?:number|no\.?) one|world's|award\w*|prize ?winning|leading (?:brand|product|choice)|market leader|top rated"
    r"|five stars?|unbeatable|unrivall?ed|unmatched"
    r"|certified|patented|proven|tested|approved|endorsed|recommended by|trusted by|as seen on|experts agree|official"
    r"|(?:hundreds|thousands|millions) of|out of (?:five|ten|a hundred)|rated|voted|celebrit\w+"
    r"|ultimate|world class|nothing else comes close|than any other|unlike (?:other|any)\w*"
    r"|than (?:the|our) compet\w+|worst"
    r"|scientific\w*|studies show|research shows|twice as|three times as|double your"
    # health
    r"|cures?|cured|heals?|healing|remedy|remedies|clinical\w*|medical\w*|medicine|medicinal|doctors?|dermatolog\w*|fda"
    r"|diagnos\w*|therapeutic|relie(?:f|ves?)|pain ?free|painless"
    r"|painkill\w*|weight ?loss|lose weight|slimming|burns? fat"
    r"|anti ?ag(?:e|ing|eing)|antibacterial|antiviral|immun\w*|detox\w*|boosts?|side effects?"
    r"|fights? (?:germs|bacteria|viruses|ageing|aging|disease)"
    r"|health\w*|never (?:get|be) (?:sick|ill)|good for your (?:heart|skin|gut|body|back|bones)|younger"
    r"|stops? (?:coughing|smoking|snoring|pain)|covid\w*|lose (?:\w+ )?(?:kilos?|pounds?|stone|inches)"
    r"|last longer|stay hard"
    r"|anxiety|depression|insomnia|cancer|diabetes|wrinkles?|acne|allerg\w*|hypoallergenic"
    # money
    r"|profits?|profitable|get rich|make money|earn money|passive income|returns? on|interest free|tax free"
    r"|earn while|quit your job|you(?: will|'ll)? (?:always )?win"
    r"|payouts?|save (?:up to|money|big)|savings|wealth\w*|investments? that|beat the market"
    # materials and technical properties
    r"|waterproof\w*|water resistant|windproof|shockproof|fireproof|unbreakable|indestructible|scratch resistant"
    r"|stainless|organic\w*|natural ingredients|all natural|vegan|gluten|\w+ free(?= \w+ed\b)|recycl\w*|sustainab\w*"
    r"|eco ?friendly|carbon|biodegradable|compostable|non ?toxic|fair ?trade|cruelty|hand ?made|hand ?crafted"
    r"|cotton|wool|linen|silk|made by hand|climate|zero emissions?|good for the planet|saves? the planet"
    r""
    r"|child ?proof|safe for|safety|leather|titanium|bluetooth|wireless|rechargeable|lightweight|made in"
    r"|machine washable|one size fits all"
    r")\b"
)
_FREE_COMPOUND = re.compile(r"\b(?!care)\w+-free\b")
_SUPERLATIVE = re.compile(r"\b(?:[a-z]+est|the most \w+|the only \w+|second to none|like no other|ever made)\b")
_NO_SUPERLATIVES = frozenset(
    re.findall(
        r"\w+",
        "rest guest quest forest interest honest west nest chest harvest request invest modest contest arrest digest "
        "suggest protest latest crest earnest manifest zest jest pest vest fest everest tempest conquest dishonest "
        "test attest infest detest bequest inquest ingest divest priest southwest northwest midwest lest breast",
    )
)


def claims_in(text: str) -> list[str]:
    """Every claim found in `text`, folded, in no particular order; [] where there is none."""
    plain = folded(text).replace("\u2019", "'")
    spread = plain.replace("-", " ")
    found = [match.group() for pattern in (_NUMBER, _SIGN) for match in pattern.finditer(plain)]
    found += [match.group() for match in _FREE_COMPOUND.finditer(plain)]
    found += [match.group() for match in _WORDS.finditer(spread)]
    found += [match.group() for match in _SUPERLATIVE.finditer(spread) if match.group() not in _NO_SUPERLATIVES]
    return found


def unstated_claim(text: str, stated: str) -> str | None:
    """The first claim of `text` that does not stand, as whole words, in `stated` (both in any case and accent)."""
    source = folded(stated).replace("\u2019", "'")
    spread = source.replace("-", " ")
    for claim in claims_in(text):
        if claim in "%‰$€£¥₹₽":
            if claim not in source:
                return claim
            continue
        wanted = rf"(?<!\w){re.escape(claim)}(?!\w)"
        if not re.search(wanted, source) and not re.search(wanted, spread):
            return claim
    return None
