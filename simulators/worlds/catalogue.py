"""What the simulated markets sell (`market_data/campaigns.json`), and how its own words are masked in a text."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

from simulators.worlds.oracle import ended
from simulators.worlds.taste import DATA


class Item(NamedTuple):
    """One campaign: which goods (of the lexicon), what a sale is worth, and the body of its PUT without segments and
    slots."""

    goods: str
    median_value: float
    body: dict[str, Any]


@cache
def _shipped() -> dict[str, Item]:
    loaded = json.loads((DATA / "campaigns.json").read_text(encoding="utf-8"))
    return {name: Item(**entry) for name, entry in loaded.items()}


def shipped() -> dict[str, Item]:
    """The eight campaigns; a fresh copy each time."""
    return copy.deepcopy(_shipped())


class Masking:
    """A campaign's own words in a text, told as placeholders: a name pleases nobody by its letters."""

    def __init__(self, product: Mapping[str, Any]) -> None:
        self._words = {fact.lower(): "[fact]" for fact in product.get("facts", ())}
        self._product = product
        for field, placeholder in (("price", "[price]"), ("brand", "[brand]"), ("name", "[product]")):
            if product.get(field):
                self._words[product[field].lower()] = placeholder
        longest_first = sorted(self._words, key=len, reverse=True)
        self._pattern = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest_first))})(?!\w)", re.IGNORECASE)

    def masked(self, text: str) -> str:
        """`Meet Dune` -> `Meet [product]`."""
        return self._pattern.sub(lambda match: self._words[match.group().lower()], text)

    def filled(self, masked: str) -> str:
        """`Meet [product]` -> `Meet Dune`."""
        for field, placeholder in (("name", "[product]"), ("brand", "[brand]"), ("price", "[price]")):
            masked = masked.replace(placeholder, self._product.get(field, ""))
        return masked

    def has(self) -> set[str]:
        """The placeholders that a text for this campaign may use."""
        return {"[product]", *(f"[{field}]" for field in ("brand", "price") if self._product.get(field))}


def joined(masked: Sequence[str]) -> str:
    """Several slots read as one text."""
    return " ".join([*(ended(text) for text in masked[:-1]), *masked[-1:]])
