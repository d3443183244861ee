"""Which characters may stand in a campaign's fields, and whether a text holds a banned term. Pure."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache

# Controls, formats (bidirectional marks and zero-width characters among them), private use, surrogates, unassigned,
# line and paragraph separators.
_REFUSED = {"Cc", "Cf", "Co", "Cs", "Cn", "Zl", "Zp"}
# Unicode's default-ignorable letters and marks, which no category tells apart, and the empty Braille pattern.
_UNSEEN = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u2800\u3164\uffa0")
# How the character before is drawn. Emoji need U+FE0F, some names written in Chinese characters the second range.
_SELECTORS = re.compile("[\ufe00-\ufe0f\U000e0100-\U000e01ef]")


def bad_character(text: str, also: str = "") -> str | None:
    """The first character that a person cannot see, as `U+200B ZERO WIDTH SPACE`; None where there is none.

    `also` lists the control characters that are allowed (a line feed in a control text). A variation selector passes
    right behind a character that it can belong to, and nowhere else: texts of nothing but selectors look empty.
    """
    if text.isascii() and text.isprintable():
        return None
    before = " "
    for character in text:
        unseen = unicodedata.category(character) in _REFUSED or character in _UNSEEN
        selector = _SELECTORS.match(character) is not None
        stray = selector and (before.isspace() or _SELECTORS.match(before) is not None)
        if (unseen and character not in also) or stray:
            return f"U+{ord(character):04X} {unicodedata.name(character, 'control character')}"
        before = character
    return None


def folded(text: str) -> str:
    """Compatibility form, without accents, variation selectors and case, any run of spaces as one: how banned terms are
    compared."""
    decomposed = unicodedata.normalize("NFKD", _SELECTORS.sub("", text.casefold()))
    plain = "".join(character for character in decomposed if not unicodedata.combining(character))
    return " ".join(plain.split())


def banned_term(banned: Iterable[str], text: str) -> str | None:
    """A banned term that stands in `text` as whole words, the first in the text; None where there is none."""
    pattern, terms = _banned(tuple(banned))
    match = pattern.search(folded(text)) if terms else None
    return None if match is None else terms[match.group()]


@lru_cache(maxsize=256)
def _banned(banned: tuple[str, ...]) -> tuple[re.Pattern[str], dict[str, str]]:
    """One pattern for all terms (`re` itself keeps no more than 512), and each as it was given by its folded form."""
    terms: dict[str, str] = {}
    for term in banned:
        if wanted := folded(term):
            terms.setdefault(wanted, term)
    return re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, terms))})(?!\w)"), terms
