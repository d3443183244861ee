"""The generated ad-copy corpus: what the tiny model learns to write from.

A grammar over hand-written phrase banks (`optimizer/learning/phrases`): a row picks a product, a topic and a tone; a
sentence is a pattern of that tone, filled with phrases of the row's category and topic. Texts keep `[product]`,
`[brand]`, `[price]` and `[fact]` as placeholders, each only in rows that have such a word, and claim nothing that a
product might not keep.

What conditions what, on purpose: a known category brings its own phrases; an unknown or empty one only phrases that
suit anything; audience and segment bring nothing: what a segment likes is for the bandit to find out.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

from optimizer.learning import phrases
from optimizer.learning.phrases import Bank
from optimizer.types import ContentType

TONES = ("playful", "urgent", "warm", "plain", "bold", "witty", "poetic", "expert")
CATEGORY_SHARE = 0.55  # of the phrases of a row with a known category; the others come from its topic
_FROM_CATEGORY = frozenset({"do", "thing", "line", "ask", "tag"})
_FIELD = re.compile(r"\{(my|our|their)?(thing|[a-z]+?)(ing)?[23]?\}")
_SENTENCE_START = re.compile(r"(?:^|(?<=[.!?] ))[a-z]")
_CONTENT_WORD = re.compile(r"[a-z]{3,}")
_LITTLE = frozenset(
    re.findall(
        r"\w+",
        "the and for you get one let not out all who how say our now can its are but yes was your with that more less "
        "what when then have like need from this than here they them their will into",
    )
)
_TWICE = re.compile(r"\b(\w+) \1\b")
_VOWELS = frozenset("aeiou")
# Verbs of more than one syllable do not double their last letter (wander, wandering), these of one do (run, running).
_DOUBLING = re.compile(r"[^aeiou]*[aeiou][^aeiouwxy]")
_PERSONS = {
    "my": (("yourself", "myself"), ("your", "my")),
    "our": (("yourself", "ourselves"), ("your", "our")),
    "their": (("yourself", "themselves"), ("your", "their")),
}


@dataclass(frozen=True)
class CorpusRow:
    """One training example. Empty strings and tuples mean that the row has no such field.

    `slots` maps slot names to texts in writing order; their placeholders are filled after generation."""

    content_type: ContentType
    category: str
    product: str
    brand: str
    price: str
    audience: str
    segment: str
    facts: tuple[str, ...]
    language: str
    slots: dict[str, str]


@dataclass(frozen=True)
class _Voice:
    """What one row's sentences are made of."""

    rng: random.Random
    tone: str
    topic: Bank
    category: Bank | None
    extras: tuple[str, ...]  # of "brand", "price", "fact": the placeholders that this row may use

    def phrase(self, kind: str) -> str:
        """A phrase of the row's category or topic."""
        bank = self.topic
        if self.category is not None and kind in _FROM_CATEGORY and self.rng.random() < CATEGORY_SHARE:
            bank = self.category
        return self.rng.choice(bank.phrases[kind])


def gerund(verb_phrase: str) -> str:
    """`take the long way` -> `taking the long way`. The phrase starts with its verb."""
    verb, space, rest = verb_phrase.partition(" ")
    if verb.endswith("ie"):
        stem = verb[:-2] + "y"
    elif verb.endswith("e") and len(verb) > 2 and verb[-2] not in "eo":
        stem = verb[:-1]
    elif _DOUBLING.fullmatch(verb) and verb[0] not in _VOWELS:
        stem = verb + verb[-1]
    else:
        stem = verb
    return f"{stem}ing{space}{rest}"


def in_person(verb_phrase: str, person: str) -> str:
    """`trust your hands` -> `trust my hands` (person my, our or their)."""
    for word, other in _PERSONS[person]:
        verb_phrase = re.sub(rf"\b{word}\b", other, verb_phrase)
    return verb_phrase


def capitalised(text: str) -> str:
    """Every sentence starts with a capital."""
    return _SENTENCE_START.sub(lambda match: match.group().upper(), text)


def generate_corpus(seed: int, n: int) -> Iterator[CorpusRow]:
    """`n` rows, the same for the same seed; fewer rows are a prefix of more."""
    rng = random.Random(seed)
    for _ in range(n):
        yield _row(rng)


@cache
def _known_categories() -> tuple[tuple[str, Bank], ...]:
    return tuple((name, bank) for bank in phrases.categories() for name in bank.names)


@cache
def _fields(pattern: str) -> tuple[tuple[str, str, str, str], ...]:
    """(literal before, person, kind, "ing" or "") for each field of a pattern; the last has an empty kind."""
    parts: list[tuple[str, str, str, str]] = []
    end = 0
    for match in _FIELD.finditer(pattern):
        person, kind, doing = match.group(1) or "", match.group(2), match.group(3) or ""
        parts.append((pattern[end : match.start()], person, kind, doing))
        end = match.end()
    return (*parts, (pattern[end:], "", "", ""))


@cache
def _content_words(text: str) -> frozenset[str]:
    return frozenset(word.rstrip("s") for word in _CONTENT_WORD.findall(text.lower()) if word not in _LITTLE)


def _suits(phrase: str, person: str, doing: str) -> bool:
    """Whether a verb phrase can change its person, or become a gerund, without falling apart."""
    if person and re.search(r"\byou\b", phrase):
        return False
    return not (doing and re.search(r",| and | or | like you", phrase))


def _filled(voice: _Voice, pattern: str) -> str | None:
    """The pattern with phrases in it; None where it would echo: two parts share a content word, or edges meet."""
    parts: list[str] = []
    seen: set[str] = set()
    for literal, person, kind, doing in _fields(pattern):
        parts.append(literal)
        words = _content_words(literal)
        if kind:
            phrase = voice.phrase(kind)
            if (person or doing) and not _suits(phrase, person, doing):
                return None
            words = words | _content_words(phrase)
            if person:
                phrase = in_person(phrase, person)
            parts.append(gerund(phrase) if doing else phrase)
        if seen & words:
            return None
        seen |= words
    text = "".join(parts)
    return None if _TWICE.search(text) else text


def _pattern(voice: _Voice) -> str:
    """A sentence pattern of the row's tone, sometimes one of any tone or one around a brand, price or fact."""
    patterns = phrases.patterns()
    draw = voice.rng.random()
    if voice.extras and draw < 0.2:
        return voice.rng.choice(patterns[voice.rng.choice(voice.extras)])
    return voice.rng.choice(patterns["any" if draw > 0.82 else voice.tone])


_INTRODUCTIONS = (
    "{} [product].",
    "{} Meet [product].",
    "{} Hello, [product].",
    "{} Try [product].",
    "{} That's [product].",
    "{} Take [product].",
    "[product]. {}",
    "[product]. {}",
    "{} Enter [product].",
)


def _sentence(voice: _Voice, longest: int) -> str:
    """One or two sentences of at most `longest` characters, placeholders included, each with its end mark."""
    while True:
        pattern = _pattern(voice)
        text = _filled(voice, pattern)
        if text is None:
            continue
        text = capitalised(text if text[-1] in ".!?" else text + ".")
        if len(text) <= longest:
            return text


def _with_product(voice: _Voice, text: str) -> str:
    """The text, with the product introduced before or after it."""
    return voice.rng.choice(_INTRODUCTIONS).format(text)


def _headline(voice: _Voice, longest: int = 70) -> str:
    """A headline: half of them name the product, a third of the one-sentence ones go without a full stop."""
    text = _sentence(voice, longest)
    if "[product]" not in text and voice.rng.random() < 0.4 and len(text) < longest - 26:
        return _with_product(voice, text)
    if text.endswith(".") and not re.search(r"[.!?] ", text) and voice.rng.random() < 0.35:
        return text[:-1]
    return text


def _paragraph(voice: _Voice, sentences: int, close: float) -> str:
    """Several sentences about one topic, the product named once; with chance `close` a closing remark."""
    said: list[str] = []
    words: set[str] = set()
    while len(said) < sentences:
        text = _sentence(voice, 90)
        fresh = _content_words(text.replace("[product]", ""))
        if fresh & words or ("[product]" in text and any("[product]" in earlier for earlier in said)):
            continue
        words |= fresh
        said.append(text)
    if not any("[product]" in text for text in said):
        said[0] = _with_product(voice, said[0])
    if voice.rng.random() < close:
        remark = voice.rng.choice(phrases.generic()["close"])
        if not words & _content_words(remark):
            said.append(remark)
    return " ".join(said)


def _cta(voice: _Voice) -> str:
    return voice.rng.choice(phrases.generic()["cta"])


def _post(voice: _Voice) -> str:
    """A social post: a headline, perhaps a second sentence, one or two hashtags."""
    tags = {voice.phrase("tag"), voice.rng.choice([voice.phrase("tag"), voice.rng.choice(phrases.generic()["tag"])])}
    text = _paragraph(voice, voice.rng.choice((1, 1, 2)), 0.1)
    return " ".join([text, *(f"#{tag}" for tag in sorted(tags))])


def _reply(voice: _Voice) -> str:
    generic = phrases.generic()
    parts = [voice.rng.choice(generic["hello"]), _paragraph(voice, 1, 0.0)]
    if voice.rng.random() < 0.7:
        parts.append(voice.rng.choice(generic["offer"]))
    return " ".join(parts)


Shape = tuple[tuple[str, Callable[[_Voice], str]], ...]
_ONE_LINE: Shape = (("headline", _headline),)
_FULL_AD: Shape = (("headline", _headline), ("body", lambda voice: _paragraph(voice, 2, 0.4)), ("cta", _cta))
SHAPES: dict[ContentType, tuple[Shape, ...]] = {
    "ad": (_ONE_LINE, _ONE_LINE, _ONE_LINE, _FULL_AD, (_FULL_AD[0], _FULL_AD[1])),
    "social_post": (_ONE_LINE, (("post", _post),), (("post", _post),)),
    "email": (
        _ONE_LINE,
        (("subject", lambda voice: _headline(voice, 54)), ("preview", lambda voice: _sentence(voice, 90))),
    ),
    "product_description": (_ONE_LINE, (("description", lambda voice: _paragraph(voice, 3, 0.5)),)),
    "blog_post": (_ONE_LINE, (("title", _headline), ("intro", lambda voice: _paragraph(voice, 3, 0.3)))),
    "video_script": (_ONE_LINE, (("hook", _headline), ("line", lambda voice: _paragraph(voice, 2, 0.3)))),
    "chat_reply": (_ONE_LINE, (("reply", _reply),), (("reply", _reply),)),
}
_CONTENT_TYPES: tuple[ContentType, ...] = tuple(SHAPES)
_CONTENT_WEIGHTS = (8, 2, 2, 2, 1, 1, 2)


def _product_name(rng: random.Random) -> str:
    words = phrases.rows()
    if rng.random() < 0.5:
        name = rng.choice(words["first"]) + rng.choice(words["last"])
    else:
        name = " ".join(rng.sample(words["word"], rng.choice((1, 2))))
    return f"{name} {rng.choice(words['model'])}" if rng.random() < 0.5 else name


def _price(rng: random.Random) -> str:
    amount = rng.choice((rng.randint(2, 99), rng.randint(100, 999), rng.randint(1, 60) * 50))
    return rng.choice(
        (f"${amount}", f"€{amount}", f"£{amount}", f"${amount}.99", f"{amount} EUR", f"${amount} a month")
    )


def _row(rng: random.Random) -> CorpusRow:
    words = phrases.rows()
    draw = rng.random()
    category, bank = ("", None) if draw < 0.3 else rng.choice(_known_categories())
    if draw > 0.95:
        category, bank = rng.choice(words["odd"]), None
    brand = rng.choice(words["first"]) + rng.choice(words["last"]) if rng.random() < 0.4 else ""
    price = _price(rng) if rng.random() < 0.4 else ""
    facts = tuple(rng.sample(words["fact"], rng.choice((1, 1, 2, 3)))) if rng.random() < 0.35 else ()
    extras = tuple(name for name, has in (("brand", brand), ("price", price), ("fact", facts)) if has)
    content_type = rng.choices(_CONTENT_TYPES, _CONTENT_WEIGHTS)[0]
    voice = _Voice(rng, rng.choice(TONES), rng.choice(phrases.topics()), bank, extras)
    return CorpusRow(
        content_type=content_type,
        category=category,
        product=_product_name(rng),
        brand=brand,
        price=price,
        audience=rng.choice(words["audience"]) if rng.random() < 0.35 else "",
        segment="all" if rng.random() < 0.5 else rng.choice(words["segment"]),
        facts=facts,
        language="en",
        slots={name: write(voice) for name, write in rng.choice(SHAPES[content_type])},
    )
