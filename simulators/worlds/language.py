"""A market's own ear for language: is this text something a person would write?

It knows a few thousand lines of good copy (`market_data/reference.txt`) and nothing else: which words there are, which
stand next to each other, and which kinds of word do. It shares no code and no list with the optimizer or the gate, so
that a text that merely pleases the gate can still read as nonsense here.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

_TOKEN = re.compile(r"\[\w+\]|[^\W_]+(?:['\u2019\-][^\W_]+)*|[.!?,]")
_TWICE = re.compile(r"(?<![\w'-])(\w+)\s+\1(?![\w'-])")
_HASHTAG = re.compile(r"\s#\w{2,30}")
_KINDS = {
    "article": "a an the",
    "possessive": "my your our their his her its",
    "pronoun": "i you we they he she it me us them",
    "preposition": (
        "of in on at by for from with to into over under between through without until before after like as than"
    ),
    "conjunction": "and or but if when because while nor so",
    "auxiliary": "is are was were be been am do does did has have had will would can could should may might must",
    "contracted": (
        "i'm you're we're they're it's that's what's who's let's can't don't won't isn't you'll they'd there's"
    ),
    "question": "who what where which why how whose",
    "pointer": "this that these those here there",
    "mark": ". ! ? ^ $",
    "comma": ",",
}
_KIND_OF = {word: kind for kind, words in _KINDS.items() for word in words.split()}
_ENDINGS = (("ing", "ing"), ("ly", "adverb"), ("ed", "ed"), ("s", "s"))
_SELDOM_ENDS = frozenset({"article", "possessive", "conjunction", "auxiliary", "contracted", "preposition"})
_NEVER_ENDS = frozenset({"article", "possessive"})
_RARE = 0.004
_NO_EDGE = frozenset(",;:-\u2013\u2014/&+(")


def tokens(text: str) -> list[str]:
    """Words, sentence marks and commas in small letters, hashtags left out."""
    return [token.lower().replace("\u2019", "'") for token in _TOKEN.findall(_HASHTAG.sub("", text))]


def _kind(token: str) -> str:
    if token.startswith("["):
        return "name"
    if token in _KIND_OF:
        return _KIND_OF[token]
    if token[0].isdigit():
        return "number"
    return next((kind for ending, kind in _ENDINGS if token.endswith(ending) and len(token) > len(ending) + 2), "word")


class Language:
    """What good copy looks like, learnt from reference lines. Placeholders such as `[product]` are words to it."""

    def __init__(self, lines: Sequence[str]) -> None:
        self._words: set[str] = set()
        self._pairs: set[tuple[str, str]] = set()
        self._ends: set[tuple[str, str]] = set()
        kinds: Counter[tuple[str, str]] = Counter()
        for line in lines:
            row = ["^", *tokens(line), "$"]
            self._words.update(row)
            self._ends |= {(row[at - 2], row[at - 1]) for at in range(2, len(row)) if row[at] in ".!?$"}
            for pair in pairwise(row):
                self._pairs.add(pair)
                kinds[_kind(pair[0]), _kind(pair[1])] += 1
        before: Counter[str] = Counter()
        for (left, _), count in kinds.items():
            before[left] += count
        self._usual = {pair for pair, count in kinds.items() if count > _RARE * before[pair[0]]}
        self._letters = {trigram for word in self._words for trigram in _trigrams(word)}

    def flaws(self, text: str) -> list[str]:
        """Every way in which the text is ill-formed, named; [] for good copy."""
        row = tokens(text)
        words = [token for token in row if token not in ".!?,"]
        found = [name for name, broken in self._surface(text, words) if broken]
        if words:
            strange = sum(not self._knows(word) for word in words)
            if strange > max(0.25 * len(words), 1.0 if len(words) > 3 else 0.0):
                found.append("strange words")
            if self._oddness(row) > 0:
                found.append("odd order")
        return found

    def _surface(self, text: str, words: list[str]) -> list[tuple[str, bool]]:
        """Rules about letters and marks, and about words that come again."""
        bare = _HASHTAG.sub("", text).strip()
        sentences = [tokens(part.replace(",", "")) for part in re.split(r"[.!?]+", bare) if part.strip()]
        content = Counter(word for word in words if word not in _KIND_OF and len(word) > 2 and word[0] != "[")
        names = Counter(word for word in words if word[0] == "[")
        triples = list(zip(words, words[1:], words[2:], strict=False))
        return [
            ("empty", (len(words) < 2 and not names) or not bare),
            ("start", bool(bare) and (bare[0].islower() or bare[0] in ",.;:!?-)")),
            ("end", bool(bare) and bare[-1] in _NO_EDGE),
            ("cut off", self._cut_off(words) if words and not bare.endswith("?") else False),
            (
                "marks",
                re.search(r"[.,;:!?]{2}|\s[.,;:!?]|  |[,;:](?=[^\W\d])|[a-z][.!?](?=[A-Za-z])", bare) is not None,
            ),
            ("small start", re.search(r"[.!?] [a-z]", bare) is not None),
            ("capitals", sum(map(str.isupper, bare)) > 0.5 * max(6, sum(map(str.isalpha, bare)))),
            ("unbalanced", bare.count("(") != bare.count(")") or bare.count('"') % 2 == 1),
            ("unfilled", re.search(r"[{}<>|\\]", bare) is not None),
            ("twice", _TWICE.search(bare.lower()) is not None),
            ("repetition", len(set(triples)) < len(triples) or max(content.values(), default=0) > 2),
            ("names", max(names.values(), default=0) > 2),
            ("stuffing", _stuffed(sentences, bare)),
        ]

    def _cut_off(self, words: list[str]) -> bool:
        """Ends with a small word as no reference line does: `Made for`, but not `something you're proud of`."""
        kind = _kind(words[-1])
        before = words[-2] if len(words) > 1 else "^"
        return kind in _NEVER_ENDS or (kind in _SELDOM_ENDS and (before, words[-1]) not in self._ends)

    def _knows(self, word: str) -> bool:
        if word in self._words or word[0] == "[" or word[0].isdigit():
            return True
        if "-" in word or "'" in word:
            return all(self._knows(part) for part in re.split(r"[-']", word) if part)
        mine = _trigrams(word)
        likely = sum(trigram in self._letters for trigram in mine) >= 0.75 * len(mine)
        return likely and len(word) <= 16 and re.search(r"[aeiouy]", word) is not None

    def _oddness(self, row: list[str]) -> float:
        """Above 0 where too many neighbours have never been neighbours, above all where not even their kinds have."""
        line = ["^", *row, "$"]
        pairs = list(pairwise(line))
        cost = 0.0
        for left, right in pairs:
            if (left, right) not in self._pairs:
                usual = (_kind(left), _kind(right)) in self._usual
                both_known = left in self._words and right in self._words
                # What follows a comma is freer.
                cost += 1.0 if not usual else 0.5 if both_known and "," not in (left, right) else 0.2
        return cost - max(0.9, 0.27 * len(pairs))


def _stuffed(sentences: list[list[str]], text: str) -> bool:
    """Bare lists: four one-word sentences, five commas, or six words in a row without a small word among them."""
    lone = sum(len(sentence) == 1 for sentence in sentences)
    if lone > 3 or text.count(",") > 4:
        return True
    run = 0
    for sentence in sentences:
        for word in sentence:
            run = 0 if word in _KIND_OF or word[0] == "[" else run + 1
            if run > 6:
                return True
        # A full stop ends a list, but a text of nothing but lone words is one list.
        run = run if len(sentence) == 1 else 0
    return False


def _trigrams(word: str) -> list[str]:
    padded = f"^{word}^"
    return [padded[at : at + 3] for at in range(len(padded) - 2)]
