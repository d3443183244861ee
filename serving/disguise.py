"""Sees through the tricks by which a listed word is written so that a list does not find it. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

from serving.text import folded

# Letters of other alphabets that look like Latin ones (a small part of Unicode's confusables.txt).
_LOOKALIKES = str.maketrans("аеорсухівкмнтѕјԁɡαονικρτυχ", "aeopcyxibkmhtsjdgaovikptux")
_LEET = str.maketrans("013457@$!", "oieastasi")
_SPACED_OUT = re.compile(r"(?<!\w)(?:\w[\s.\-_*]+){2,}\w(?!\w)")
_BETWEEN = r"[\s.\-_*]"
_INSIDE_A_WORD = re.compile(r"(?<=\w)[.\-_*'\u2019](?=\w)")
_STRETCHED = re.compile(r"(\w)\1{2,}")


@lru_cache(maxsize=4096)
def readings(text: str) -> tuple[str, ...]:
    """The ways a reader may take `text`, folded: as it stands, look-alikes and digits read as letters, spaced-out
    letters closed up (`c h e a p`), marks inside words left out (`ch-eap`), stretched letters (`cheeeap`) shortened."""
    plain = folded(text).translate(_LOOKALIKES)
    ways = {folded(text), plain}
    for way in (plain, plain.translate(_LEET)):
        closed = _SPACED_OUT.sub(lambda match: re.sub(_BETWEEN, "", match.group()), way)
        # `a c h e a p thrill`: the first letter may be a word of its own.
        apart = _SPACED_OUT.sub(lambda match: f"{match.group()[0]} {re.sub(_BETWEEN, '', match.group()[1:])}", way)
        for joined in (closed, apart, _INSIDE_A_WORD.sub("", closed)):
            ways |= {joined, _STRETCHED.sub(r"\1", joined), _STRETCHED.sub(r"\1\1", joined)}
    return tuple(sorted(ways))


@lru_cache(maxsize=256)
def listed(terms: tuple[str, ...]) -> re.Pattern[str]:
    """A pattern that finds any of `terms` as whole words in a folded text; a final `*` stands for any ending."""
    choices = [
        re.escape(folded(term.rstrip("*"))) + (r"\w*" if term.endswith("*") else "")
        for term in terms
        if folded(term.rstrip("*"))
    ]
    return re.compile(rf"(?<!\w)(?:{'|'.join(choices) or '(?!)'})(?!\w)")


def hidden_term(terms: Iterable[str], text: str) -> str | None:
    """What stands for one of `terms` in some reading of `text`; None where nothing does."""
    pattern = listed(tuple(terms))
    for way in readings(text):
        if (match := pattern.search(way)) is not None:
            return match.group()
    return None
