"""Which version the policies topic makes live (bad-inputs 42): forward by itself, back by an operator alone."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from optimizer.errors import StoreError
from optimizer.stream.log import Append
from optimizer.stream.views import PolicyStages, live_policy, policy_table
from optimizer.types import PolicyRecord, Stage, to_json
from tests.serving_rig import Rig, make_policy, make_rig

OLD, MIDDLE, NEW = "000001-aaaaaaaaaaaa", "000002-bbbbbbbbbbbb", "000003-cccccccccccc"


def stages(*records: tuple[str, Stage, str]) -> PolicyStages:
    made = PolicyStages()
    for version, stage, by in records:
        made.take(make_policy(version, stage, by=by))
    return made


def live(made: PolicyStages) -> str | None:
    record = made.live()
    return None if record is None else record.version


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = make_rig(tmp_path)
    yield rig
    rig.close()


@pytest.mark.parametrize("by", ["learner", "", "somebody"])
def test_line_42_an_older_version_published_again_changes_nothing(by: str) -> None:
    made = stages((OLD, "live", "learner"), (NEW, "live", "learner"))
    why = made.take(make_policy(OLD, "live", by=by))
    assert why is not None
    for part in ("policies", OLD, "got stage live", "expected an operator's record", f"/v1/policies/{OLD}/promote"):
        assert part in why
    assert live(made) == NEW


def test_line_42_nor_does_one_that_was_never_seen_but_has_an_older_number() -> None:
    """A compacted topic may have lost the version's first record."""
    made = stages((OLD, "live", "learner"), (NEW, "live", "learner"))
    assert made.take(make_policy(MIDDLE, by="learner")) is not None
    assert live(made) == NEW


def test_line_42_an_operator_may_go_back_and_the_learner_goes_on_from_there() -> None:
    made = stages((OLD, "live", "learner"), (MIDDLE, "live", "learner"), (OLD, "live", "operator"))
    assert live(made) == OLD
    assert made.take(make_policy(MIDDLE, by="learner")) is not None
    assert live(made) == OLD
    assert made.take(make_policy(NEW, by="learner")) is None
    assert live(made) == NEW


def test_a_version_that_was_rolled_back_stays_so() -> None:
    made = stages((OLD, "live", "learner"), (NEW, "live", "learner"), (NEW, "rolled_back", "operator"))
    assert live(made) == OLD
    for stage in ("live", "candidate", "canary"):
        assert made.take(make_policy(NEW, stage, by="learner")) is not None
    assert live(made) == OLD


def test_a_live_version_does_not_become_a_candidate_by_itself() -> None:
    made = stages((OLD, "live", "learner"), (NEW, "live", "learner"))
    assert made.take(make_policy(NEW, "candidate", by="learner")) is not None
    assert live(made) == NEW


def test_a_candidate_goes_live_and_a_repeat_of_the_live_one_is_no_offence() -> None:
    made = stages((OLD, "live", "learner"), (NEW, "candidate", "learner"), (NEW, "canary", "learner"))
    assert live(made) == OLD
    for _ in range(2):  # an append that was tried again after a lost answer stands twice
        assert made.take(make_policy(NEW, by="learner")) is None
    assert live(made) == NEW


def test_the_table_and_the_views_agree_and_say_it(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    table = policy_table(rig.log)
    for version in (OLD, NEW, OLD):
        rig.append("policies", version, make_policy(version, by="learner"))
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        table.refresh()
    found = live_policy(table)
    assert found is not None
    assert found.version == NEW
    assert [record.getMessage().count(OLD) > 0 for record in caplog.records] == [True]
    shown = rig.views.live()
    assert shown is not None
    assert shown.version == NEW
    assert rig.views.refused_versions == 1
    rig.log.append([Append("policies", NEW, None)])
    table.refresh()
    found = live_policy(table)
    assert found is not None
    assert found.version == OLD


class Critic:
    def __init__(self, version: str) -> None:
        self.version = version


def test_after_a_restart_the_latest_good_version_serves(tmp_path: Path) -> None:
    def load(record: PolicyRecord) -> Critic:
        if record.version in (MIDDLE, NEW):
            raise StoreError(f"policy {record.version}: critic.safetensors is missing; the version is refused")
        return Critic(record.version)

    rig = make_rig(tmp_path, load_critic=load)
    rig.log.append([Append("policies", name, to_json(make_policy(name, by="learner"))) for name in (OLD, MIDDLE, NEW)])
    rig.views.refresh()
    critic = rig.views.critic()
    assert critic is not None
    assert critic.version == OLD
    assert rig.views.refused_versions == 2
    rig.views.refresh()
    assert rig.views.refused_versions == 2  # it is not tried at every look
    rig.close()


def test_old_versions_are_forgotten_but_not_the_first_the_live_one_and_those_that_were_rolled_back() -> None:
    made = PolicyStages(kept=20)
    names = [f"{number:06d}-aaaaaaaaaaaa" for number in range(200)]
    for name in names[:50]:
        assert made.take(make_policy(name, by="learner")) is None
    assert made.take(make_policy(names[48], "rolled_back", by="sentinel")) is None
    for name in names[50:]:
        assert made.take(make_policy(name, "candidate", by="learner")) is None
        assert live(made) == names[49]
    # At most a tenth more than are kept, and the newest of them.
    passing = [name for name in made.rows if name not in (names[0], names[48], names[49])]
    assert 20 <= len(passing) <= 22
    assert passing == names[-len(passing) :]
    assert {names[0], names[48], names[49]} < made.rows.keys()
    # What is forgotten stays refused: its number is older than one that was live.
    why = made.take(make_policy(names[3], by="learner"))
    assert why is not None
    assert "promote" not in why, "a promotion would find no such version"
    assert live(made) == names[49]
