"""A user's own texts as a training corpus: read, cleaned, without duplicates, in the form that the tiny model learns
from.

Formats: `.txt`, one text a line (slot `headline`); `.csv` with a header and `.jsonl` with an object a line, whose
columns are the prompt's fields (content_type, product, brand, category, audience, segment, price, facts) and the slots
(every other column). Names of product and brand and the price become placeholders, so that the model can write for
other products."""

from __future__ import annotations

import csv
import json
import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from optimizer.errors import BadInput, FieldError
from optimizer.learning.prompt import Prompt, summarise
from optimizer.learning.recipe import Line
from optimizer.types import ContentType, Slot

FIELDS = ("content_type", "product", "brand", "category", "audience", "segment", "price", "facts")
LEAST_TEXTS = 200
LONGEST_TEXT = 1_000
CONTENT_TYPES = ContentType.__args__  # type: ignore[attr-defined]


@dataclass(frozen=True)
class OwnCorpus:
    """`lines` to train on; how many rows were read, and how many of them were empty, too long or there already."""

    lines: list[Line]
    read: int
    empty: int
    long: int
    duplicates: int

    def summary(self) -> str:
        return (
            f"{len(self.lines)} texts from {self.read} rows ({self.duplicates} duplicates, {self.empty} empty, "
            f"{self.long} longer than {LONGEST_TEXT} characters left out)"
        )


def clean(text: str) -> str:
    """Compatibility forms folded, control and invisible characters out, white space to single spaces."""
    folded = unicodedata.normalize("NFKC", text)
    visible = "".join(" " if unicodedata.category(c) in ("Cc", "Zl", "Zp") else c for c in folded)
    visible = "".join(c for c in visible if unicodedata.category(c) not in ("Cf", "Cs", "Co", "Cn"))
    return " ".join(visible.split())


def read_own_corpus(path: Path) -> OwnCorpus:
    """Raises BadInput that names the file, the row and the column for what can't be read, or for fewer than 200
    texts."""
    lines: list[Line] = []
    seen: set[tuple[str, ...]] = set()
    read = empty = long = duplicates = 0
    for number, row in _rows(path):
        read += 1
        about = {name: clean(row.get(name, "")) for name in FIELDS}
        slots = {name: clean(text) for name, text in row.items() if name not in FIELDS and clean(text)}
        if about["content_type"] and about["content_type"] not in CONTENT_TYPES:
            _refuse(
                path,
                number,
                "content_type",
                repr(about["content_type"]),
                f"one of {', '.join(CONTENT_TYPES)}",
                "correct the row",
            )
        slots = {name: _general(text, about) for name, text in slots.items()}
        key = tuple(text.casefold() for text in slots.values())
        if not slots:
            empty += 1
        elif any(len(text) > LONGEST_TEXT for text in slots.values()):
            long += 1
        elif key in seen:
            duplicates += 1
        else:
            seen.add(key)
            lines.append((Prompt(_describe(about), tuple(Slot(name) for name in slots)), slots))
    if len(lines) < LEAST_TEXTS:
        fix = "give more texts; the generated corpus is used where no --corpus is named"
        _refuse(path, read, "rows", f"{len(lines)} distinct texts", f"at least {LEAST_TEXTS}", fix)
    return OwnCorpus(lines, read, empty, long, duplicates)


def _describe(about: Mapping[str, str]) -> str:
    return summarise(
        about["content_type"] or "ad",  # type: ignore[arg-type]
        about["brand"],
        about["category"],
        about["segment"] or "all",
        about["price"],
        (about["facts"],) if about["facts"] else (),
    )


def _general(text: str, about: Mapping[str, str]) -> str:
    for field in ("product", "brand", "price"):
        if about[field]:
            text = re.sub(re.escape(about[field]), f"[{field}]", text, flags=re.IGNORECASE)
    return text


def _rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """(row, columns): rows count from 1, the header of a .csv included."""
    try:
        content = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        _refuse(
            path,
            1,
            "encoding",
            f"byte {error.object[error.start]:#x} at {error.start}",
            "UTF-8",
            "save the file as UTF-8",
        )
    if path.suffix == ".csv":
        reader = csv.DictReader(content.splitlines())
        for number, row in enumerate(reader, start=2):
            if None in row or None in row.values():
                _refuse(
                    path,
                    number,
                    "columns",
                    "another number of columns than the header",
                    "one value a column",
                    "correct the row",
                )
            yield number, row
    elif path.suffix == ".jsonl":
        for number, line in enumerate(content.splitlines(), start=1):
            if line.strip():
                yield number, _object(path, number, line)
    elif path.suffix == ".txt":
        for number, line in enumerate(content.splitlines(), start=1):
            yield number, {"headline": line}
    else:
        _refuse(path, 0, "suffix", path.suffix or "none", ".txt, .csv or .jsonl", "rename or convert the file")


def _object(path: Path, number: int, line: str) -> dict[str, str]:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        _refuse(path, number, "line", f"no JSON ({error.msg})", "one object a line", "correct the row")
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        _refuse(path, number, "line", "something else", "an object of strings", "correct the row")
    return value


def _refuse(path: Path, row: int, column: str, got: str, expected: str, fix: str) -> NoReturn:
    raise BadInput(FieldError(f"{path.name}, row {row}, {column}", got, expected, fix))
