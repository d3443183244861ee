"""Cheap rules of written English (and of most languages with spaces) that any reader would agree with. Pure.

Each takes a text and returns whether it breaks the rule. Where a rule must not judge the campaign's own words (a brand
in small letters, a product called "Duran Duran"), the caller has put `own_word(n)` in their place.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from functools import cache

from optimizer.learning import phrases
from serving.grammar import disagrees, gerund_due

OWN = "Xown"
"""How every stand-in for the campaign's own words begins (`own_word`)."""

_WORD = re.compile(r"[^\W_]+(?:['\u2019\-][^\W_]+)*")
_HASHTAG = re.compile(r"#\w{2,30}")
_OPENERS = "\"'“\u2018«„¿¡(#$€£¥"
_ENDINGS = ".!?…)\"'”\u2019»%€$£"
_DANGLING = re.compile(
    r"(?:(?<!\w)(?:a|an|the|and|or|but|nor|your|my|our|their|than|because|if|into|very|every|i'm|you're|we're|they're)"
    r"|^\W*\w+ (?:of|to|for|with|from|at|by|in|on))[.!…]*$"
)
_BAD_MARKS = re.compile(
    r"\.\.|,,|[!?]{2}|;;|::|[.,;:!?][,;:]|[,;:][.!?]|\s[.,;:!?…](?!\w)|  |^\s|\s$"
    r"|[,;:](?=[^\W\d])|[^\W\d]{2}[.!?](?=[^\W\d]{2})"
)
_TWICE = re.compile(r"(?<![\w'\u2019-])([^\W_]+(?:['\u2019\-][^\W_]+)*)\s+\1(?![\w'\u2019-])", re.IGNORECASE)
_SMALL_START = re.compile(r"[.!?] ([^\W\d_])")
_SENTENCE_END = re.compile(r"[.!?\u2026]+(?:\s+|$)")
_NAMES = re.compile(rf"{OWN}[a-z](?:[ ,]+{OWN}[a-z])*")
_ARTICLE = re.compile(r"\b[Aa] (?!one\b|once\b|eu|ewe|oui)[aeio][a-z]+|\b[Aa]n [bcdfgjklmnpqrtvwxyz][a-z]+")
_PAIRS = (("(", ")"), ("“", "”"), ("«", "»"))
_LITTLE = frozenset(
    re.findall(r"\w+", "the and for you your with that this more less what when then from into are not our all one")
)
_WORD_ENDINGS = ("s", "es", "ed", "d", "ing", "ly", "er", "'s", "n't", "y", "ful", "less", "ness")
_EDGE = "^"


def own_word(number: int) -> str:
    """Stands for the campaign's own words number 0, 1, ...: a capitalised name, known to every rule."""
    return f"{OWN}{chr(ord('a') + number % 26)}"


def words_of(text: str) -> list[str]:
    """The words, in small letters, hashtags left out."""
    return [word.lower() for word in _WORD.findall(_HASHTAG.sub(" ", text))]


def starts_badly(text: str) -> bool:
    """Neither a capital, a digit, a letter without case, nor an opening mark stands first."""
    first = text[:1]
    return not (first in _OPENERS or first.isdigit() or (first.isalpha() and not first.islower()))


def ends_badly(text: str) -> bool:
    """The text ends with a comma, a dash or the like."""
    last = text[-1:]
    return not (last.isalnum() or last in _ENDINGS or unicodedata.category(last) in {"Mn", "Mc", "So"})


def cut_off(text: str) -> bool:
    """The last word cannot end a sentence: `Made for the`."""
    return _DANGLING.search(_HASHTAG.sub("", text).strip().lower().replace("\u2019", "'")) is not None


def unbalanced(text: str) -> bool:
    """Quotes or brackets that open and do not close."""
    return text.count('"') % 2 == 1 or any(text.count(left) != text.count(right) for left, right in _PAIRS)


def bad_marks(text: str) -> bool:
    """Doubled or colliding punctuation, a space before a mark, none after one, doubled or outer spaces."""
    return _BAD_MARKS.search(text) is not None


def small_start(text: str) -> bool:
    """A sentence inside the text starts with a small letter."""
    return any(match.group(1).islower() for match in _SMALL_START.finditer(text))


def wrong_article(text: str) -> bool:
    """`a apple`, `an banana`."""
    return _ARTICLE.search(text) is not None


def shouting(text: str) -> bool:
    """Most of the text is in capitals."""
    letters = [letter for letter in re.sub(rf"{OWN}[a-z]", "", text) if letter.isalpha()]
    capitals = sum(letter.isupper() for letter in letters)
    return len(letters) >= 6 and capitals > 0.6 * len(letters)


def repeats(text: str) -> bool:
    """A word twice in a row, three words in a row that come again, a sentence of nothing but the campaign's own words
    that does (`Trail Runner 3. Trail Runner 3. Run far.`), or one content word three times within twelve."""
    if _TWICE.search(text):
        return True
    names = [sentence for sentence in _SENTENCE_END.split(text) if _NAMES.fullmatch(sentence)]
    if len(set(names)) < len(names):
        return True
    words = words_of(text)
    trigrams = list(zip(words, words[1:], words[2:], strict=False))
    if len(set(trigrams)) < len(trigrams):
        return True
    content = [word if len(word) > 2 and word not in _LITTLE else "" for word in words]
    for start in range(max(1, len(content) - 11)):
        counts = Counter(word for word in content[start : start + 12] if word)
        if counts and max(counts.values()) >= 3:
            return True
    return False


def too_short(text: str) -> bool:
    """Fewer than two words or eight characters."""
    return len(text) < 8 or len(words_of(text)) + len(_HASHTAG.findall(text)) < 2


@cache
def _vocabulary() -> tuple[frozenset[str], frozenset[str]]:
    """(words, letter trigrams with the words' edges) of the shipped phrase banks."""
    parts = [line for lines in phrases.patterns().values() for line in lines]
    banks = (*phrases.topics(), *phrases.categories())
    parts += [phrase for bank in banks for kind in bank.phrases.values() for phrase in kind]
    parts += [name for bank in banks for name in bank.names]
    parts += [phrase for kind in phrases.generic().values() for phrase in kind]
    words = frozenset(word for part in parts for word in words_of(part))
    return words, frozenset(trigram for word in words for trigram in _trigrams(word))


def _trigrams(word: str) -> list[str]:
    padded = f"{_EDGE}{word}{_EDGE}"
    return [padded[at : at + 3] for at in range(len(padded) - 2)]


def looks_known(word: str) -> bool:
    """A word of the phrase banks, one of their stems with another ending, or one spelt like them (English only)."""
    known, trigrams = _vocabulary()
    bare = word.lower().replace("\u2019", "'")
    if bare in known or bare.startswith(OWN.lower()) or bare.isdigit() or not bare.isascii():
        return True
    if any(bare.endswith(ending) and bare[: -len(ending)] in known for ending in _WORD_ENDINGS):
        return True
    if "-" in bare:
        return all(looks_known(part) for part in bare.split("-"))
    if len(bare) > 18 or not re.search(r"[aeiouy]", bare) or re.search(r"[bcdfghjklmnpqrstvwxz]{5}|(.)\1\1", bare):
        return False
    mine = _trigrams(bare)
    return sum(trigram in trigrams for trigram in mine) >= 0.8 * len(mine)


def strange_words(text: str) -> bool:
    """More than a fifth of the words, and at least one, do not look known."""
    words = words_of(text)
    strange = sum(not looks_known(word) for word in words)
    return strange > max(0.2 * len(words), 0.9)


WELL_FORMED: tuple[tuple[str, Callable[[str], bool]], ...] = (
    ("start", starts_badly),
    ("end", ends_badly),
    ("quotes", unbalanced),
    ("marks", bad_marks),
    ("small start", small_start),
    ("capitals", shouting),
    ("repetition", repeats),
)
"""(name, rule), for languages with spaces between words, in the order in which they are asked."""

ENGLISH: tuple[tuple[str, Callable[[str], bool]], ...] = (
    ("cut off", cut_off),
    ("article", wrong_article),
    ("gerund", gerund_due),
    ("agreement", disagrees),
)
"""(name, rule), for English alone: `an` is a preposition in German, and `a` one in Spanish."""
