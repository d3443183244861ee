"""Texts as batches for a language model: each distinct prompt is read once, texts of like length together. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Rows(NamedTuple):
    """B texts in tokens, after U distinct prompts: `prefixes` U lists, each but for its last token; `of` B numbers of
    prefixes; `ids` B lists, which begin with their prefix's last token; `sampled` B lists, which of those tokens were
    sampled."""

    prefixes: list[list[int]]
    of: list[int]
    ids: list[list[int]]
    sampled: list[list[bool]]


class Batch(NamedTuple):
    """Some n of the texts, right-padded to T positions: `ids` and `positions` int[n, T]; `mask` int[n, P + T] with
    their prefixes' P; `prefix_of` int[n]. `chosen` bool[n, T] marks the positions whose next token was sampled;
    `targets` and `row` int[positions chosen] name that token and which of all B texts it is of."""

    prefix_of: Tensor
    ids: Tensor
    mask: Tensor
    positions: Tensor
    chosen: Tensor
    targets: Tensor
    row: Tensor


def like_lengths(rows: Rows, which: NDArray[np.bool_], at_once: int) -> list[NDArray[np.intp]]:
    """The texts marked by `which` bool[B] in batches of at most `at_once`, those of like length together: numbers of
    texts, int[n] each. What is padded is read for nothing."""
    some = np.flatnonzero(which)
    order = some[np.argsort([len(rows.ids[at]) for at in some], kind="stable")]
    return np.array_split(order, -(-len(order) // at_once)) if len(order) else []


def which_compared(sizes: Sequence[int], every: int, least: int, turn: int = 0) -> list[NDArray[np.bool_]]:
    """bool[size] for each group of texts, which of them are compared with the reference: one in `every`, at least one
    of a group, but all where all groups together have fewer than `every` times `least`. Which ones changes from group
    to group and from turn to turn."""
    if every < 1:
        raise ValueError(f"every: got {every}, expected 1 or more")
    step = every if sum(sizes) >= every * least else 1
    found = [np.equal((np.arange(size) + group + turn) % step, 0) for group, size in enumerate(sizes)]
    return [some if some.any() else np.ones_like(some) for some in found]


def left_padded(rows: Sequence[Sequence[int]], padding: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Token lists as int[n, T] that end together, and where there are tokens, int[n, T]."""
    width = max(len(row) for row in rows)
    # One tensor from lists that are padded: a tensor a row takes many times as long.
    ids = [[padding] * (width - len(row)) + list(row) for row in rows]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    return (
        torch.tensor(ids, dtype=torch.long, device=device),
        torch.tensor(mask, dtype=torch.long, device=device),
    )


def batch_of(rows: Rows, part: NDArray[np.intp], prefix_mask: Tensor, padding: int) -> Batch:
    """The texts `part` int[n], whose prefixes stand left-padded under `prefix_mask` int[U, P]."""
    device = prefix_mask.device
    own, sampled = [rows.ids[at] for at in part], [rows.sampled[at] for at in part]
    width = max(len(row) for row in own)
    ids = torch.tensor([row + [padding] * (width - len(row)) for row in own], device=device)
    chosen = torch.tensor([row + [False] * (width - len(row)) for row in sampled], device=device)[:, 1:]
    length = torch.tensor([len(row) for row in own], device=device)
    real = (torch.arange(width, device=device) < length[:, None]).long()
    prefix_of = torch.tensor([rows.of[at] for at in part], device=device)
    mask = prefix_mask[prefix_of]
    return Batch(
        prefix_of,
        ids[:, :-1],
        torch.cat([mask, real[:, :-1]], dim=1),
        mask.sum(1)[:, None] + torch.arange(width - 1, device=device),
        chosen,
        ids[:, 1:][chosen],
        torch.tensor(part, device=device)[chosen.nonzero()[:, 0]],
    )
