"""A small version of `make test-faults`: joiners killed, a state lost, the broker restarted, on a real broker."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.kafka.broker import Broker
from tests.faults import kills


@pytest.mark.timeout(600)
def test_kills_a_lost_state_and_a_restart_of_the_broker_lose_and_double_nothing(broker: Broker, tmp_path: Path) -> None:
    plan = kills.Plan(impressions=1_000, kills=2, restarts=1, lost_states=1, members=0)
    found = kills.run(plan, broker, tmp_path)
    assert found.verdict.right(), found
    assert found.verdict.outcomes == plan.impressions
    assert (found.kills, found.restarts, found.lost_states, found.died) == (2, 1, 1, 0)
