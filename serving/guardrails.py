"""The text gate: what may be shown. Nothing reaches a reader that does not pass it, whatever the campaign's text says.

`Gate.check` gives None or the first reason that applies, of the closed list `Refusal`:

| reason | the text ... |
|---|---|
| slots | lacks a slot, has one too many, or leaves one empty |
| too_long | is longer than its slot, in code points |
| characters | holds a control, bidirectional, zero-width, private-use or replacement character, or a lone surrogate |
| placeholder | still holds `[product]`, `[brand]`, `[price]` or `[fact]`, or another bracket |
| markup | holds HTML, template syntax, Markdown, or a `javascript:` address |
| link | holds a web address |
| contact | holds an e-mail address, a telephone number or a handle |
| injection | echoes an instruction to, or the voice of, a language model |
| banned | holds a term that the campaign bans, plainly or in disguise |
| offensive | holds profanity, a slur, or a sexual, violent, self-harm or drug term |
| claim | claims something that the campaign does not state itself |
| against | speaks against the product or brand that it is written for, or takes back a fact |
| malformed | breaks a rule of `serving/wellformed.py`, or does not fit around the campaign's own words |
| unknown_words | has too many words that look like no English word |

Rules about words (offensive, claim, malformed, unknown_words) leave the campaign's own words alone: a brand may be
called what it is. Offensive, claim, against and unknown_words know English only. A text that equals a control
is not the gate's matter.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Literal

from optimizer.types import Campaign, Slot
from serving.claims import unstated_claim
from serving.disguise import hidden_term, readings
from serving.ownwords import OwnWords, own_words, speaks_against
from serving.text import bad_character, banned_term
from serving.wellformed import ENGLISH, WELL_FORMED, strange_words, too_short

Refusal = Literal[
    "slots",
    "too_long",
    "characters",
    "placeholder",
    "markup",
    "link",
    "contact",
    "injection",
    "banned",
    "offensive",
    "claim",
    "against",
    "malformed",
    "unknown_words",
]

SHORT_SLOTS = frozenset({"cta", "button", "label", "tag", "hashtag", "badge"})
"""Slots where a single word is enough."""
_UNSPACED = frozenset({"ja", "zh", "th", "lo", "km", "my"})
_LINE_BREAK = "\n"

_PLACEHOLDER = re.compile(r"\[(?:product|brand|price|fact)s?\]", re.IGNORECASE)
_BRACKET = re.compile(r"[\[\]]")
_ACTIVE = re.compile(
    r"<\s*[a-z!/?%]|\{\{|\}\}|\{%|%\}|\$\{|#\{|<%|%>|(?:javascript|vbscript|data|file)\s*:\s*\S|&(?:#\w+|[a-z]{2,8});|on\w+\s*=",
    re.IGNORECASE,
)
_MARKUP = re.compile(r"[{}<>|\\`~^_=]|\*|\]\(|^#{1,6} |^[-+] ")
_LINK = re.compile(
    r"\b(?:https?|ftp)\b\s*:|://|\bwww\.|\b[\w-]{2,}\.(?:com|net|org|io|co|app|dev|shop|store|info|biz|xyz|me|ai|de|fr|nl|eu|uk)\b",
    re.IGNORECASE,
)
_CONTACT = re.compile(r"\S@\S|(?<!\w)@\w{2,}|(?:\+|\b)\d(?:[\s().\-/]{0,2}\d){6,}")
_INJECTION = re.compile(
    r"\b(?:ignore|disregard|forget|override) (?:all |any |the |my |your )*"
    r"(?:previous|prior|above|earlier|preceding|system)\b"
    r"|\bas an? (?:ai|artificial intelligence|language model|assistant)\b"
    r"|\blanguage model\b|\bsystem (?:prompt|message)\b"
    r"|\b(?:i am|i'm|you are) (?:an? )?(?:ai|chatgpt|gpt|claude|assistant|chatbot)\b"
    r"|\bi (?:cannot|can't) (?:assist|comply|help with)\b|\bmy (?:instructions|training data)\b"
    r"|^(?:system|user|assistant|human|ai|prompt|headline|slot|output|answer|instruction)\s*:"
    r"|\bhere (?:is|are) (?:a|an|some|the|your) (?:headline|ad copy|ad|tagline|slogan)"
    r"|\bdeveloper mode\b|\bjailbreak"
)


@dataclass(frozen=True)
class Subject:
    """One slot's text under examination. `masked` has stand-ins for the campaign's own words; `misfit` says that these
    do not fit where they stand."""

    campaign: Campaign
    slot: Slot
    text: str
    masked: str
    stated: str
    misfit: bool = False

    @property
    def english(self) -> bool:
        return self.campaign.primary_language == "en"


Rule = Callable[[Subject], "Refusal | None"]


def length(subject: Subject) -> Refusal | None:
    """Longer than its slot."""
    return "too_long" if len(subject.text) > subject.slot.max_chars else None


def characters(subject: Subject) -> Refusal | None:
    """Characters that a reader cannot see, or that replace a lost one."""
    bad = bad_character(subject.text, also=_LINE_BREAK) is not None or "\ufffd" in subject.text
    return "characters" if bad else None


def placeholder(subject: Subject) -> Refusal | None:
    """Placeholders that nothing filled, and other square brackets."""
    left = _PLACEHOLDER.search(subject.text) or _BRACKET.search(subject.masked)
    return "placeholder" if left else None


def markup(subject: Subject) -> Refusal | None:
    """What a browser or a template engine might act on is refused even where the campaign's own words hold it."""
    return "markup" if _ACTIVE.search(subject.text) or _MARKUP.search(subject.masked) else None


def link(subject: Subject) -> Refusal | None:
    """Web addresses."""
    return "link" if _LINK.search(subject.masked) else None


def contact(subject: Subject) -> Refusal | None:
    """E-mail addresses, telephone numbers, handles."""
    return "contact" if _CONTACT.search(subject.masked) else None


def injection(subject: Subject) -> Refusal | None:
    """Also where the campaign's own words hold it: an instruction hidden in a fact is never repeated to a reader."""
    return "injection" if any(_INJECTION.search(way) for way in readings(subject.text)) else None


def banned(subject: Subject) -> Refusal | None:
    """The campaign's banned terms, also in disguise."""
    terms = subject.campaign.rules.banned
    hit = terms and (banned_term(terms, subject.text) or hidden_term(terms, subject.text))
    return "banned" if hit else None


def offensive(subject: Subject) -> Refusal | None:
    """The shipped list of words that no ad shows."""
    return "offensive" if hidden_term(offensive_terms(), subject.masked) else None


def claim(subject: Subject) -> Refusal | None:
    """Claims that the campaign does not state."""
    return "claim" if subject.english and unstated_claim(subject.masked, subject.stated) is not None else None


def against(subject: Subject) -> Refusal | None:
    """An ad that argues against what it advertises: `Say no to Trail Runner 3`, `Not waterproof at all`."""
    return "against" if subject.english and speaks_against(subject.masked) else None


def malformed(subject: Subject) -> Refusal | None:
    """The rules of written language."""
    if subject.campaign.primary_language in _UNSPACED:
        return None
    short = subject.slot.name.lower() in SHORT_SLOTS or subject.slot.max_chars < 16
    # The length is the real text's: a short name counts as what it is.
    if not short and too_short(subject.masked if len(subject.text) >= 8 else subject.text):
        return "malformed"
    rules = WELL_FORMED + ENGLISH if subject.english else WELL_FORMED
    return "malformed" if subject.misfit or any(breaks(subject.masked) for _, breaks in rules) else None


def unknown_words(subject: Subject) -> Refusal | None:
    """Letters that make no words."""
    return "unknown_words" if subject.english and strange_words(subject.masked) else None


RULES: tuple[Rule, ...] = (
    length,
    characters,
    placeholder,
    markup,
    contact,
    link,
    injection,
    banned,
    offensive,
    claim,
    against,
    malformed,
    unknown_words,
)
"""Every rule about one text, in the order in which they are asked."""


@cache
def offensive_terms() -> tuple[str, ...]:
    """The shipped list, `serving/offensive.txt`."""
    text = resources.files("serving").joinpath("offensive.txt").read_text(encoding="utf-8")
    return tuple(line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#"))


class Gate:
    """The rules, with what they need to know of a campaign kept between calls. Safe to share between threads."""

    def __init__(self, rules: tuple[Rule, ...] = RULES, remembered: int = 1_000) -> None:
        self._rules = rules
        self._remembered = remembered
        self._own: dict[tuple[str, str], OwnWords] = {}

    def check(self, campaign: Campaign, slots: Mapping[str, str]) -> Refusal | None:
        """None for a text that may be shown, else the first reason that applies.

        Args:
          campaign: whose slots, language, banned terms and stated words decide.
          slots: slot name -> text, placeholders filled.
        """
        if set(slots) != {slot.name for slot in campaign.slots} or not all(text.strip() for text in slots.values()):
            return "slots"
        own = self._known(campaign)
        for slot in campaign.slots:
            text = slots[slot.name]
            subject = Subject(campaign, slot, text, own.mask(text), own.stated, own.misfit(text))
            for rule in self._rules:
                if (reason := rule(subject)) is not None:
                    return reason
        return None

    def _known(self, campaign: Campaign) -> OwnWords:
        key = (campaign.tenant, campaign.campaign_id)
        known = self._own.get(key)
        if known is None or known.campaign is not campaign:
            if len(self._own) >= self._remembered:
                self._own.clear()
            known = self._own[key] = own_words(campaign)
        return known
