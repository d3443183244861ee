"""What the critic's rows are made of: the features of each (campaign, segment, text, context), as columns of one sparse
matrix that grows as new ones are met and forgets what no row has any more."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from optimizer.learning.features import FeatureSet
from optimizer.learning.traffic import campaign_of

Ints = NDArray[np.int64]


@dataclass
class Rows:
    """Row by row: its `places`, whether decisions there may earn more than the click (`pays_later`), its features.
    `columns`: the column of each feature by id. Not thread-safe."""

    places: list[str] = field(default_factory=list)
    _names: list[str] = field(default_factory=list)
    _owner: list[int] = field(default_factory=list)
    _codes: dict[str, int] = field(default_factory=dict)
    pays_later: list[bool] = field(default_factory=list)
    columns: dict[int, int] = field(default_factory=dict)
    _of_context: list[bool] = field(default_factory=list)
    _new: list[tuple[int, int]] = field(default_factory=list)
    _indices: Ints = field(default_factory=lambda: np.zeros(1024, np.int64))
    _ends: list[int] = field(default_factory=lambda: [0])

    def __len__(self) -> int:
        return len(self.places)

    def append(self, place: str, of_text: FeatureSet, of_context: FeatureSet) -> None:
        """A new row."""
        self.places.append(place)
        self._own(place)
        self.pays_later.append(False)
        sets = (of_text, of_context)
        flags = np.repeat([False, True], [len(features.ids) for features in sets])
        ids = np.concatenate([features.ids for features in sets])
        families = np.concatenate([features.families for features in sets])
        found = np.empty(len(ids), np.int64)
        each = zip(ids.tolist(), families.tolist(), flags.tolist(), strict=True)
        for at, (name, family, context) in enumerate(each):
            column = self.columns.get(name)
            if column is None:
                column = self.columns[name] = len(self.columns)
                self._new.append((name, family))
                self._of_context.append(context)
            found[at] = column
        start, end = self._ends[-1], self._ends[-1] + len(found)
        while end > len(self._indices):
            self._indices = np.concatenate([self._indices, np.zeros_like(self._indices)])
        self._indices[start:end] = found
        self._ends.append(end)

    def _own(self, place: str) -> None:
        name = campaign_of(place)
        code = self._codes.setdefault(name, len(self._codes))
        if code == len(self._names):
            self._names.append(name)
        self._owner.append(code)

    def owners(self) -> list[str]:
        """The campaigns' names (features.py) that rows are of."""
        return self._names

    def owner(self) -> Ints:
        """int[R]: each row's campaign, by its place in `owners`."""
        return np.array(self._owner, np.int64)

    def met(self) -> tuple[NDArray[np.uint64], NDArray[np.uint8]]:
        """(ids, families) of the features that have come since this was asked last, in their columns' order."""
        new, self._new = self._new, []
        return np.array([name for name, _ in new], np.uint64), np.array([family for _, family in new], np.uint8)

    def of_context(self) -> NDArray[np.bool_]:
        """bool[F]: which features are of the context, not of the text."""
        return np.array(self._of_context, bool)

    def matrix(self, rows: NDArray[np.intp]) -> sparse.csr_matrix:
        """csr[len(rows), F] of 0 and 1: the features of these rows."""
        ends = np.array(self._ends, np.int64)
        starts, lengths = ends[rows], ends[rows + 1] - ends[rows]
        indptr = np.concatenate([[0], np.cumsum(lengths)])
        # The places of each row's features, one row after the other.
        places = np.arange(indptr[-1]) + np.repeat(starts - indptr[:-1], lengths)
        data = np.ones(len(places), np.float32)
        return sparse.csr_matrix((data, self._indices[places], indptr), shape=(len(rows), len(self.columns)))

    def keep(self, kept: NDArray[np.bool_]) -> NDArray[np.intp]:
        """Forget the other rows, and the features that none of the `kept`, bool[R], has; `met` first. Returns the old
        columns of the features that stay, ascending."""
        if self._new:
            raise ValueError("there are features that have not been asked for with met()")
        some = self.matrix(np.flatnonzero(kept))
        stay = np.unique(some.indices).astype(np.intp)
        moved = np.full(len(self.columns), -1, np.int64)
        moved[stay] = np.arange(len(stay))
        self.columns = {name: int(moved[at]) for name, at in self.columns.items() if moved[at] >= 0}
        self._of_context = [self._of_context[at] for at in stay]
        self._indices = np.concatenate([moved[some.indices], np.zeros(1024, np.int64)])
        self._ends = some.indptr.astype(np.int64).tolist()
        self.places = [place for place, stays in zip(self.places, kept, strict=True) if stays]
        self._names, self._owner, self._codes = [], [], {}
        for place in self.places:
            self._own(place)
        self.pays_later = [pays for pays, stays in zip(self.pays_later, kept, strict=True) if stays]
        return stay
