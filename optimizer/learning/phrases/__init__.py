"""Phrase banks for the generated corpus: plain text files that a copywriter can edit, and the reader for them.

A file is `#` comments and sections. A section opens with `== name | other name`; in a bank each following line is
`kind: phrase | phrase | ...` (a kind may come again), in `tones.txt` each following line is one sentence pattern.

Kinds: `do` is a verb phrase in its base form that fits "you ..." and "Time to ..."; `thing`, `feel` and `pain` are noun
phrases that fit "for ..."; `when` is a clause; `line` and `ask` are whole sentences; `adj` fits "you feel ..."; `tag`
is a hashtag without its sign; `cta`, `hello`, `offer`, `close` are parts of longer texts. The kinds of `rows.txt` make
up products: `first` + `last` or `word`, then `model`; `odd` are categories that no bank knows.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from importlib import resources
from typing import NamedTuple

TEXT_KINDS = ("do", "thing", "feel", "adj", "pain", "when", "line", "ask", "tag", "cta", "hello", "offer", "close")
ROW_KINDS = ("first", "last", "word", "model", "audience", "segment", "fact", "odd")
KINDS = frozenset(TEXT_KINDS + ROW_KINDS)


class Bank(NamedTuple):
    """One section: its names (the first is its own) and its phrases by kind."""

    names: tuple[str, ...]
    phrases: dict[str, tuple[str, ...]]


def _sections(filename: str) -> Iterator[tuple[tuple[str, ...], list[tuple[int, str]]]]:
    """(names, [(line number, line)]) of every section of a shipped file."""
    names: tuple[str, ...] | None = None
    lines: list[tuple[int, str]] = []
    text = resources.files(__name__).joinpath(filename).read_text(encoding="utf-8")
    for number, raw in enumerate(text.splitlines(), start=1):
        line = raw.strip()
        if not line or line.startswith("# "):
            continue
        if line.startswith("=="):
            if names is not None:
                yield names, lines
            names, lines = tuple(name.strip() for name in line.strip("= ").split("|")), []
        elif names is None:
            raise ValueError(f"{filename}:{number}: a phrase before the first '== section'")
        else:
            lines.append((number, line))
    if names is not None:
        yield names, lines


@cache
def banks(*filenames: str) -> tuple[Bank, ...]:
    """Every section of the named bank files.

    Raises:
      ValueError: a line without a known kind; the text names file and line.
    """
    found: list[Bank] = []
    for filename in filenames:
        for names, lines in _sections(filename):
            phrases: dict[str, tuple[str, ...]] = {}
            for number, line in lines:
                kind, colon, rest = line.partition(":")
                if not colon or kind not in KINDS:
                    raise ValueError(f"{filename}:{number}: expected 'kind: phrase | ...' with kind of {sorted(KINDS)}")
                phrases[kind] = (*phrases.get(kind, ()), *(phrase.strip() for phrase in rest.split("|")))
            found.append(Bank(names, phrases))
    return tuple(found)


@cache
def patterns() -> dict[str, tuple[str, ...]]:
    """Tone -> sentence patterns, of `tones.txt`; the sections `any`, `brand`, `price` and `fact` are no tones."""
    return {names[0]: tuple(line for _, line in lines) for names, lines in _sections("tones.txt")}


def topics() -> tuple[Bank, ...]:
    """What a line can be about, whatever is advertised."""
    return banks("topics.txt")


def categories() -> tuple[Bank, ...]:
    """Product categories."""
    return banks("categories_a.txt", "categories_b.txt")


def generic() -> dict[str, tuple[str, ...]]:
    """Parts that suit any text."""
    return banks("generic.txt")[0].phrases


def rows() -> dict[str, tuple[str, ...]]:
    """Parts of invented products, audiences, segments, facts, and categories that no bank knows."""
    return banks("rows.txt")[0].phrases
