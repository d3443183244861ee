"""What a finished log says, against what it ought to say."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any, NamedTuple

import msgspec

from optimizer.stream.dump import records
from optimizer.stream.log import EventLog
from tests.faults.traffic import Json
from tests.stream_rig import content


class Verdict(NamedTuple):
    """Figures of a finished log; all but the first two have to be 0.

    `lost` and `doubled` are events that count by the oracle and not in the last revision, and the other way round;
    `two_contents` are (decision_id, revision) with more than one, `holes` revisions that do not follow their last,
    `empty` revisions that say what the one before had said, `reopened` open ones after a closed one.
    """

    outcomes: int
    revisions: int
    differing: int
    lost: int
    doubled: int
    two_contents: int
    holes: int
    empty: int
    reopened: int

    def right(self) -> bool:
        """Whether the log is as it should be."""
        return not any(self[2:])


def judge(log: EventLog, expected: dict[str, Json]) -> Verdict:
    """Read all outcomes of the log and compare the last ones with `expected`, the oracle's."""
    revisions: dict[str, dict[int, bytes]] = {}
    two_contents: set[tuple[str, int]] = set()
    for record in records(log, "outcomes"):
        value = record.value or b""
        outcome = msgspec.json.decode(value)
        place = outcome["decision_id"], outcome["revision"]
        if revisions.setdefault(place[0], {}).setdefault(place[1], value) != value:
            two_contents.add(place)
    count: Counter[str] = Counter()
    for decision_id in revisions.keys() | expected.keys():
        said = [outcome for _, outcome in sorted(_decoded(revisions.get(decision_id, {})))]
        count["holes"] += [outcome["revision"] for outcome in said] != list(range(1, len(said) + 1))
        for before, after in pairwise(said):
            count["empty"] += content(before) == content(after) and before["state"] == after["state"]
            count["reopened"] += (before["state"], after["state"]) == ("closed", "open")
        last = content(said[-1]) if said else None
        wanted = expected.get(decision_id)
        count["differing"] += last != wanted
        got, due = (Counter[str]() if one is None else Counter(one["events"]) for one in (last, wanted))
        count["lost"] += (due - got).total()
        count["doubled"] += (got - due).total()
    return Verdict(
        outcomes=len(revisions),
        revisions=sum(map(len, revisions.values())),
        differing=count["differing"],
        lost=count["lost"],
        doubled=count["doubled"],
        two_contents=len(two_contents),
        holes=count["holes"],
        empty=count["empty"],
        reopened=count["reopened"],
    )


def _decoded(revisions: dict[int, bytes]) -> list[tuple[int, dict[str, Any]]]:
    return [(number, msgspec.json.decode(value)) for number, value in revisions.items()]
