"""Views over the log: bad records, bad versions, bounded memory, stages, pause."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from optimizer.control import HALT_FILE, PAUSE_FILE
from optimizer.errors import StoreError
from optimizer.stream.log import Append, Record
from optimizer.types import Campaign, Decision, Outcome, PolicyRecord, Pool, to_json
from serving.problems import Problem
from serving.stats import CampaignTally, Ledger
from serving.views import POOLS_KEPT
from tests.serving_rig import TENANT, Rig, make_outcome, make_policy, make_pool, make_rig


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = make_rig(tmp_path)
    yield rig
    rig.close()


class Board:
    def __init__(self) -> None:
        self.told: list[tuple[str, Any]] = []

    def on_campaign(self, campaign: Campaign) -> None:
        self.told.append(("campaign", campaign.campaign_id))

    def on_campaign_deleted(self, tenant: str, campaign_id: str) -> None:
        self.told.append(("deleted", (tenant, campaign_id)))

    def on_pool(self, pool: Pool) -> None:
        self.told.append(("pool", pool.pool_id))

    def on_policy(self, record: PolicyRecord) -> None:
        self.told.append(("policy", record.version))

    def on_outcome(self, previous: Outcome | None, new: Outcome) -> None:
        before = None if previous is None else (previous.revision, previous.reward, previous.components.click)
        self.told.append(("outcome", (before, new.revision)))


def decision_of(rig: Rig) -> Decision:
    return msgspec.json.decode(rig.records("decisions")[-1], type=Decision)


def test_the_board_hears_of_every_change_once(tmp_path: Path) -> None:
    board = Board()
    rig = make_rig(tmp_path, board=board)
    rig.add_pool(rig.put(holdback=0.0), ["Run light"])
    rig.append("policies", "v1", make_policy("v1"))
    rig.generate()
    decision = decision_of(rig)
    for outcome in (make_outcome(decision), make_outcome(decision), make_outcome(decision, revision=2, click=1)):
        rig.append("outcomes", decision.decision_id, outcome)
    rig.service.delete_campaign(TENANT, "c1")
    assert board.told == [
        ("campaign", "c1"),
        ("pool", "p1"),
        ("policy", "v1"),
        ("outcome", (None, 1)),
        ("outcome", ((1, 0.0, 0), 2)),
        ("deleted", (TENANT, "c1")),
    ]
    rig.close()


def test_a_restart_rebuilds_the_same_views(tmp_path: Path) -> None:
    rig = make_rig(tmp_path)
    rig.add_pool(rig.put(holdback=0.0), ["Run light", "Run far"])
    rig.append("policies", "v1", make_policy("v1", kl=0.5))
    rig.generate()
    rig.append("outcomes", "d", make_outcome(decision_of(rig), click=1))
    before = (rig.service.list_campaigns(TENANT), rig.service.stats(TENANT), rig.parts.operator.policies())
    rig.close()
    again = make_rig(tmp_path, seed=1)
    again.views.refresh()
    assert again.views.caught_up()
    assert (
        again.service.list_campaigns(TENANT),
        again.service.stats(TENANT),
        again.parts.operator.policies(),
    ) == before
    assert again.generate().variants[0].source == "pool"
    again.close()


def test_a_record_that_cannot_be_read_is_counted_and_skipped(rig: Rig) -> None:
    rig.put()
    for topic in ("campaigns", "candidates", "policies", "outcomes"):
        deep = b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
        rig.log.append([Append(topic, "x", bad) for bad in (b"{nonsense", b'{"schema": 1}', b"\xff", deep)])
    rig.views.refresh()
    assert rig.views.bad_records == 16
    assert rig.generate().variants


def test_only_the_newest_pools_are_held(rig: Rig) -> None:
    campaign = rig.put(holdback=0.0)
    for index in range(3 * POOLS_KEPT):
        rig.add_pool(campaign, [f"Text {index}"], pool_id=f"p{index}")
    assert len(rig.views._pools[(TENANT, "c1", "all")]) == POOLS_KEPT
    assert rig.generate().variants[0].text == f"Text {3 * POOLS_KEPT - 1}"


def test_pools_of_a_deleted_campaign_are_let_go(tmp_path: Path) -> None:
    rig = make_rig(tmp_path)
    for name in ("c1", "c2"):
        rig.add_pool(rig.put(name, holdback=0.0), ["Run light"], pool_id=f"p-{name}")
    rig.service.delete_campaign(TENANT, "c1")
    assert list(rig.views._pools) == [(TENANT, "c2", "all")]
    campaign = rig.put("c1", holdback=0.0)
    assert rig.generate("c1").variants[0].source == "control"
    rig.add_pool(campaign, ["Run far"], pool_id="p-again")
    assert rig.generate("c1").variants[0].text == "Run far"
    rig.service.delete_campaign(TENANT, "c1")
    rig.close()
    # Whoever reads the log anew meets the pools after the deletion.
    again = make_rig(tmp_path)
    for _ in range(2):
        again.views.refresh()
    assert list(again.views._pools) == [(TENANT, "c2", "all")]
    assert again.generate("c2").variants[0].source == "pool"
    again.close()


def test_a_pool_that_is_read_before_its_campaign_is_kept(rig: Rig) -> None:
    """Topics are read one after the other: a campaign, and a pool for it, may come in between."""
    read = rig.views._tables[0][0]
    campaign = rig.put("c1", holdback=0.0)
    rig.service.delete_campaign(TENANT, "c1")
    old = make_pool(campaign, ["Run light"], pool_id="p1")
    rig.append("candidates", "p1", old)  # written while the campaign was being deleted
    poll, late = read.poll, [make_pool(campaign, ["Run far"], pool_id="p2")]

    def polled(count: int) -> list[Record]:
        records = poll(count)
        if not records and late:
            rig.log.append([Append("campaigns", f"{TENANT}/c1", to_json(campaign))])
            rig.log.append([Append("candidates", "p2", to_json(late.pop()))])
        return records

    read.poll = polled  # type: ignore[method-assign, assignment]
    rig.views.refresh()
    rig.views.refresh()
    assert [held.head.pool_id for held in rig.views._pools[(TENANT, "c1", "all")]] == ["p2"]
    assert rig.generate("c1").variants[0].text == "Run far"


def test_a_bad_version_keeps_the_old_critic_and_counts(tmp_path: Path) -> None:
    def load(record: PolicyRecord) -> Any:
        if record.version == "v2":
            raise StoreError("policy v2: critic.safetensors is missing; the version is refused")
        return SimpleNamespace(version=f"critic-of-{record.version}")

    rig = make_rig(tmp_path, load_critic=load)
    for version in ("v1", "v2"):
        rig.append("policies", version, make_policy(version))
    rig.views.refresh()
    critic = rig.views.critic()
    assert critic is not None
    assert critic.version == "critic-of-v1"
    assert rig.views.refused_versions == 1
    rig.append("policies", "v3", make_policy("v3"))
    critic = rig.views.critic()
    assert critic is not None
    assert critic.version == "critic-of-v3"
    rig.close()


def test_the_ledger_forgets_the_oldest_and_says_so(rig: Rig) -> None:
    rig.put()
    ledger = Ledger(max_decisions=2)
    found = []
    for _ in range(3):
        rig.generate()
        found.append(decision_of(rig))
        ledger.apply(make_outcome(found[-1]))
    assert len(ledger) == 2
    assert ledger.apply(make_outcome(found[0], revision=2, click=1)) is None
    assert ledger.apply(make_outcome(found[2], revision=2, click=1)) is not None
    control = ledger.campaigns[(TENANT, "c1")].control
    assert (ledger.forgotten, control.impressions, control.clicks) == (1, 3, 1)


def test_a_campaigns_lowest_versions_are_told_as_one_and_no_sum_changes_by_it(rig: Rig) -> None:
    rig.put()
    rig.generate()
    drawn = decision_of(rig)
    ledger = Ledger()
    ledger.campaigns[(TENANT, "c1")] = tally = CampaignTally(most=20)
    shown: list[Decision] = []
    for number in range(100):
        # Every third is a late one, of a version long ago.
        version = f"{number // 2 if number % 3 == 0 else number:06d}-aaaaaaaaaaaa"
        shown.append(msgspec.structs.replace(drawn, decision_id=f"d{number}", source="pool", policy_version=version))
        ledger.apply(make_outcome(shown[-1]))
        assert len(tally.policies) <= 21
        assert sum(side.impressions for side in tally.policies.values()) == tally.learned().n == number + 1
    for decision in shown:
        ledger.apply(make_outcome(decision, revision=2, click=1))
    for decision in shown[::2]:
        ledger.apply(make_outcome(decision, revision=3))
    told = {version: (side.impressions, side.clicks) for version, side in tally.policies.items()}
    counted: dict[str, list[int]] = {}
    for at, decision in enumerate(shown):
        version = decision.policy_version
        sums = counted.setdefault(version if version in told else "earlier", [0, 0])
        sums[0] += 1
        sums[1] += at % 2
    assert told == {version: tuple(sums) for version, sums in counted.items()}
    assert "000098-aaaaaaaaaaaa" in told
    assert "000000-aaaaaaaaaaaa" not in told


def test_streaming_sums_equal_the_batch_sums_at_every_prefix(rig: Rig) -> None:
    rig.put()
    ledger = Ledger()
    last: dict[str, float] = {}
    for index in range(40):
        if index % 3 == 0:
            rig.generate()
        decision = decision_of(rig)
        reward = (index * 7 % 5) / 10
        ledger.apply(make_outcome(decision, revision=index + 1, reward=reward))
        last[decision.decision_id] = reward
        moments = ledger.campaigns[(TENANT, "c1")].control.moments()
        assert moments.n == len(last)
        assert moments.total == pytest.approx(sum(last.values()), abs=1e-12)
        assert moments.squares == pytest.approx(sum(r * r for r in last.values()), abs=1e-12)
        assert moments.rewarded == sum(r != 0 for r in last.values())


# -- what an operator does --------------------------------------------------------------------------------------------


def versions(rig: Rig) -> dict[str, tuple[str, bool]]:
    return {record["version"]: (record["stage"], record["serving"]) for record in rig.parts.operator.policies()}


@pytest.fixture
def lineage(rig: Rig) -> Rig:
    """v1 <- v2 <- v3, live one after the other, and a candidate v4."""
    for version, parent in (("v1", None), ("v2", "v1"), ("v3", "v2")):
        rig.append("policies", version, make_policy(version, parent=parent, kl=0.5))
    rig.append("policies", "v4", make_policy("v4", "candidate", "v3"))
    return rig


def test_promote(lineage: Rig) -> None:
    record = lineage.parts.operator.promote("v4")
    assert (record.stage, record.evidence) == ("live", {"by": "operator"})
    assert versions(lineage)["v4"] == ("live", True)
    assert versions(lineage)["v3"] == ("live", False)


def test_rollback_goes_to_the_nearest_parent_that_was_not_rolled_back(lineage: Rig) -> None:
    operator = lineage.parts.operator
    assert operator.rollback("v2").version == "v3"  # v3 was live and stays so
    assert versions(lineage)["v2"] == ("rolled_back", False)
    live = operator.rollback("v3")
    assert (live.version, live.evidence) == ("v1", {"kl": 0.5, "by": "operator"})
    assert versions(lineage)["v1"] == ("live", True)
    stored = lineage.records("policies")[-2:]
    assert b'"rolled_back"' in stored[0]
    assert b'"live"' in stored[1]


@pytest.mark.parametrize(
    ("act", "version", "status"),
    [
        ("promote", "v9", 404),
        ("promote", "v0", 409),
        ("rollback", "v9", 404),
    ],
)
def test_what_an_operator_cannot_do(lineage: Rig, act: str, version: str, status: int) -> None:
    lineage.append("policies", "v0", make_policy("v0", "rolled_back"))
    before = lineage.records("policies")
    with pytest.raises(Problem) as refusal:
        getattr(lineage.parts.operator, act)(version)
    assert refusal.value.status == status
    assert lineage.records("policies") == before


def test_what_is_done_already_is_done_and_writes_nothing(lineage: Rig) -> None:
    operator = lineage.parts.operator
    live = operator.promote("v4")
    assert operator.rollback("v2") == live
    before = lineage.records("policies")
    for _ in range(2):
        assert operator.promote("v4") == live
        assert operator.rollback("v2") == live
    assert lineage.records("policies") == before


def test_rollback_ends_at_the_first_version_where_those_between_are_forgotten(rig: Rig) -> None:
    stages = rig.views._stages
    stages._kept, stages._tidy_at = 5, 6
    names = [f"{number:06d}-aaaaaaaaaaaa" for number in range(20)]
    for parent, name in zip([None, *names], names, strict=False):
        rig.append("policies", name, make_policy(name, parent=parent))
    operator = rig.parts.operator
    operator._damage = lambda version: None if version == names[0] else "pruned"
    assert names[5] not in versions(rig)
    with pytest.raises(Problem) as refusal:
        operator.promote(names[5])
    assert refusal.value.status == 404
    assert operator.rollback(names[19]).version == names[0]
    assert versions(rig)[names[0]] == ("live", True)
    with pytest.raises(Problem) as refusal:
        operator.rollback(names[0])
    assert refusal.value.status == 409


def test_a_rolled_back_version_where_nothing_is_live_is_a_conflict(rig: Rig) -> None:
    rig.append("policies", "v0", make_policy("v0", "rolled_back"))
    with pytest.raises(Problem) as refusal:
        rig.parts.operator.rollback("v0")
    assert refusal.value.status == 409


def test_the_reference_cannot_be_rolled_back(rig: Rig) -> None:
    rig.append("policies", "v1", make_policy("v1"))
    with pytest.raises(Problem) as refusal:
        rig.parts.operator.rollback("v1")
    assert refusal.value.status == 409


def test_a_version_without_files_never_goes_live(lineage: Rig) -> None:
    operator = lineage.parts.operator
    operator._damage = lambda version: None if version in ("v1", "v3") else f"policy {version}: not in the store"
    with pytest.raises(Problem):
        operator.promote("v4")
    operator._damage = lambda version: None if version == "v1" else f"policy {version}: not in the store"
    with pytest.raises(Problem):  # also where it is live already: what serves it does not have it
        operator.promote("v3")
    assert operator.rollback("v3").version == "v1"


@pytest.mark.parametrize(("act", "version"), [("promote", "v4"), ("promote", "v3"), ("rollback", "v3")])
def test_files_are_checked_while_others_use_the_views(lineage: Rig, act: str, version: str) -> None:
    """Reading and hashing a large model takes seconds."""
    operator, free = lineage.parts.operator, list[bool]()

    def asked() -> None:
        free.append(lineage.views.lock.acquire(timeout=0.5))
        if free[-1]:
            lineage.views.lock.release()

    def damage(_version: str) -> None:
        other = threading.Thread(target=asked)
        other.start()
        other.join()

    operator._damage = damage
    getattr(operator, act)(version)
    assert free == [True]


def test_a_critic_is_loaded_while_others_use_the_views(tmp_path: Path) -> None:
    held: list[bool] = []
    rig = make_rig(tmp_path, load_critic=lambda _record: held.append(rig.views.lock._is_owned()))  # type: ignore[attr-defined]
    rig.append("policies", "v1", make_policy("v1"))
    rig.append("policies", "v2", make_policy("v2", "candidate", "v1"))
    assert rig.parts.operator.promote("v2").stage == "live"
    assert held == [False, False]
    rig.close()


def test_a_critic_that_was_loaded_too_slowly_takes_no_newer_ones_place(tmp_path: Path) -> None:
    """While v1's is loaded, v2 goes live and its critic is taken."""

    def load(record: PolicyRecord) -> Any:
        if record.version == "v1":
            slow.append("policies", "v2", make_policy("v2"))
            other = threading.Thread(target=slow.views.refresh)
            other.start()
            other.join()
        return SimpleNamespace(version=f"critic-of-{record.version}")

    slow = make_rig(tmp_path, load_critic=load)
    slow.append("policies", "v1", make_policy("v1"))
    slow.views.refresh()
    critic = slow.views.critic()
    assert critic is not None
    assert critic.version == "critic-of-v2"
    slow.close()


def test_a_learner_that_publishes_faster_than_files_are_read_keeps_no_promotion_off(lineage: Rig) -> None:
    operator, published = lineage.parts.operator, iter(range(1000))

    def damage(_version: str) -> None:
        version = f"w{next(published)}"
        lineage.append("policies", version, make_policy(version, "live", "v3"))

    operator._damage = damage
    assert operator.promote("v4").version == "v4"
    assert versions(lineage)["v4"] == ("live", True)
    assert next(published) == 1


def test_many_resume_at_once(lineage: Rig) -> None:
    """A double click, or a client's second try."""
    operator, errors = lineage.parts.operator, list[Exception]()
    start = threading.Barrier(4)

    def resume() -> None:
        for _ in range(25):
            (operator._data / HALT_FILE).write_text("bait: clicks are up\n")
            start.wait()
            try:
                operator.resume()
            except Problem as problem:
                errors.append(problem)

    threads = [threading.Thread(target=resume) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_what_changes_while_files_are_checked_is_looked_at_again(lineage: Rig) -> None:
    operator = lineage.parts.operator
    changes = [make_policy("v2", "rolled_back", "v1")]

    def damage(_version: str) -> None:
        for record in changes:
            lineage.log.append([Append("policies", record.version, to_json(record))])
        changes.clear()

    operator._damage = damage
    assert operator.rollback("v3").version == "v1"  # v2, the parent that was whole, has been taken out meanwhile
    changes[:] = [make_policy("v4", "rolled_back", "v3")]
    with pytest.raises(Problem) as refusal:
        operator.promote("v4")
    assert refusal.value.status == 409
    assert [(version, stage) for version, (stage, _) in versions(lineage).items()] == [
        ("v2", "rolled_back"),
        ("v3", "rolled_back"),
        ("v1", "live"),
        ("v4", "rolled_back"),
    ]


def test_pause_and_resume_are_a_file(rig: Rig) -> None:
    client = rig.client()
    for _ in range(2):
        assert client.post("/v1/learner/pause").json() == {"paused": True}
        assert (rig.data / PAUSE_FILE).exists()
    for _ in range(2):
        assert client.post("/v1/learner/resume").json() == {"paused": False}
        assert not rig.parts.operator.paused()


def test_policies_over_http(lineage: Rig) -> None:
    client = lineage.client()
    listed = client.get("/v1/policies").json()["policies"]
    assert [(p["version"], p["stage"], p["parent"]) for p in listed][-1] == ("v4", "candidate", "v3")
    assert client.post("/v1/policies/v4/promote").json()["stage"] == "live"
    assert client.post("/v1/policies/v4/promote").json()["stage"] == "live"
    for _ in range(2):
        again = client.post("/v1/policies/v4/rollback")
        assert (again.status_code, again.json()["version"]) == (200, "v3")
