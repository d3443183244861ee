"""The worlds as Gymnasium environments: Gymnasium's own checker, and that they are the worlds."""

from __future__ import annotations

import gymnasium
import pytest
from gymnasium.utils.env_checker import check_env

from simulators.worlds import WORLDS, load_world
from simulators.worlds.environments import WorldEnv, earned, environment_id


def made(world: str, impressions: int = 40) -> WorldEnv:
    env = gymnasium.make(environment_id(world), impressions=impressions).unwrapped
    assert isinstance(env, WorldEnv)
    return env


@pytest.mark.parametrize("world", ["market", "delay", "fatigue", "cold"])
def test_gymnasium_finds_nothing_wrong(world: str) -> None:
    """With one of each kind: the others differ in tastes alone. A warning is an error in these tests, so the checker's
    advice counts as well."""
    check_env(made(world))


@pytest.mark.parametrize("world", sorted(WORLDS))
def test_each_is_registered_and_keeps_to_its_spaces(world: str) -> None:
    env = made(world)
    observation, _ = env.reset(seed=3)
    for _ in range(20):
        assert observation in env.observation_space
        observation = env.step(env.action_space.sample())[0]


def test_an_episode_is_the_worlds_own_story() -> None:
    env, world = made("market"), load_world("market", 9)
    observation, info = env.reset(seed=9)
    text = {"headline": "Here's to slow mornings."}
    rewards = 0.0
    for step in range(40):
        assert (info["campaign_id"], info["context"]) == world.arrive()
        assert env.campaign_ids[observation["campaign"]] == info["campaign_id"]
        expected = world.click_rate(info["campaign_id"], info["context"], text)
        events = world.respond(info["campaign_id"], info["context"], text)
        weights = env.campaigns[info["campaign_id"]].get("reward", {})
        observation, reward, terminated, truncated, info = env.step(text)
        assert info["events"] == events
        assert info["true_rate"] >= expected
        assert reward == earned(weights, events)
        assert not terminated
        assert truncated == (step == 39)
        rewards += float(reward)
    assert rewards >= 0.0


def test_a_short_episode_is_a_short_run() -> None:
    env = made("drift", impressions=4)
    _, info = env.reset(seed=1)
    truths = []
    for _ in range(4):
        truths.append(env._world.swapped())  # type: ignore[attr-defined]
        control = env.campaigns[info["campaign_id"]]["controls"][0]
        *_, info = env.step(control)
    assert truths == [False, False, True, True]
    assert len(made("cold", impressions=1024).campaign_ids) == 5


def test_what_is_earned_is_what_the_campaign_pays() -> None:
    events = [("click", 10, 0.0), ("conversion", 20, 4.0), ("conversion", 30, 6.0)]
    assert earned({}, []) == 0.0
    assert earned({}, events) == 1.0
    assert earned({"click": 0.5, "conversion": 2.0, "value": 0.1}, events) == pytest.approx(0.5 + 4.0 + 1.0)


def test_an_episode_without_steps_is_refused() -> None:
    with pytest.raises(ValueError, match="impressions"):
        WorldEnv("market", impressions=0)
