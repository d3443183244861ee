"""Which characters may stand in a campaign's fields, and whether a text holds a banned term. Pure."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache

# Controls, formats (bidirectional marks and zero-width characters among them), private use, surrogates, unassigned,
# line and paragraph separators.
_REFUSED = {"Cc", "Cf", "Co", "Cs", "Cn", "Zl", "Zp"}


def bad_character(text: str, also: str = "") -> str | None:
    """The first character that a person cannot see, as `U+200B ZERO WIDTH SPACE`; None where there is none.

    `also` lists the control characters that are allowed (a line feed in a control text).
    """
    if text.isascii() and text.isprintable():
        return None
    for character in text:
        if unicodedata.category(character) in _REFUSED and character not in also:
            return f"U+{ord(character):04X} {unicodedata.name(character, 'control character')}"
    return None


def folded(text: str) -> str:
    """Compatibility form, without accents and case, any run of spaces as one: how banned terms are compared."""
    decomposed = unicodedata.normalize("NFKD", text.casefold())
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
