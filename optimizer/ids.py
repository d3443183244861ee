"""Ids and hashes that several roles must compute alike: variants, campaign text, versions' numbers, new random ids."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping

import msgspec
import numpy as np

from optimizer.types import Campaign

HASH_CHARS = 32
_NUMBERED = re.compile(r"(\d{1,18})-")


def _digest(value: object) -> str:
    """Hex of SHA-256 over canonical JSON (sorted keys, no spaces), cut to 128 bits."""
    return hashlib.sha256(msgspec.json.encode(value, order="sorted")).hexdigest()[:HASH_CHARS]


def variant_id(campaign_id: str, slots: Mapping[str, str]) -> str:
    """The same campaign and the same text, slot by slot, are the same variant (docs/api.md, Requests)."""
    return _digest([campaign_id, dict(slots)])


def campaign_hash(campaign: Campaign) -> str:
    """Names what a text is written for: a pool made for another hash is not shown (`Pool.campaign_hash`).

    Only what a writer reads takes part. Controls, rules, holdback, reward and attribution may change without making
    the texts stale: serving checks the rules and the controls again at each change of the campaign.
    """
    read = [campaign.product, campaign.audience, campaign.content_type, campaign.language, campaign.slots]
    return _digest(msgspec.to_builtins(read))


def version_number(version: str) -> int | None:
    """The number that the policy store put before the version's hash (000012-ab12...); None where there is none."""
    told = _NUMBERED.match(version)
    return int(told.group(1)) if told else None


def version_order(version: str) -> int:
    """The version's number, to sort by: -1 where there is none."""
    number = version_number(version)
    return -1 if number is None else number


def new_id(rng: np.random.Generator) -> str:
    """A fresh 128-bit id as 32 hexadecimal digits."""
    return rng.bytes(16).hex()
