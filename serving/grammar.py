"""Slips of English grammar that any reader sees at once and that a small language model makes. Pure patterns: each was
seen in sampled texts, or is one of the common confusions; what needs a parser is left alone."""

from __future__ import annotations

import re

_GERUND_DUE = re.compile(
    r"\b(?:love|joy|art|thrill|pride|point|habit|feeling|instead|tired) of "
    r"(?:be|become|bring|choose|do|find|follow|get|give|go|hold|invite|keep|leave|let|make|meet|pass|pour|put|raise|say"
    r"|see|send|set|settle|share|stand|start|take|tell|treat|try|wake|wear)\b",
    re.IGNORECASE,
)
_NO_VERBS = r"always|sometimes|perhaps|was\b|pass\b|miss\b|guess\b|press\b|dress\b|focus\b|discuss\b"
_DISAGREES = re.compile(
    rf"\b(?:people|those|we|they) who (?!{_NO_VERBS})[a-z]+s\b|\b(?:people|those) who [^.!?]*\byour\b"
    r"|\b(?:she|he) (?:are|were|have)\b|\b(?:i|we|they) (?:is|has|does)\b|\bi are\b|\b(?:you|we|they) was\b"
    r"|\ban? (?:hours|minutes|days|weeks|months|years|things|people|friends)\b"
    r"|\b(?:could|should|would) of been\b|\b(?:dont|cant|wont|isnt|arent|didnt|doesnt)\b"
    r"|\byour (?:the|a|an|welcome)\b|\btheir (?:is|are)\b|\bits (?:your|time|a|the|my|our)\b|\bwhat's like\b",
    re.IGNORECASE,
)


def gerund_due(text: str) -> bool:
    """`The art of pass it down`, where `passing` is due."""
    return _GERUND_DUE.search(text) is not None


def disagrees(text: str) -> bool:
    """Words that do not go together: `people who loves`, `their is`, `an hours`."""
    return _DISAGREES.search(text.replace("\u2019", "'")) is not None
