"""The worlds as Gymnasium environments (Towers et al. 2024, arXiv 2407.17032): `adloop/Phrases-v0` and so on.

Importing this module registers them; `gymnasium.make("simulators.worlds.environments:adloop/Phrases-v0")` does both.
Needs the package gymnasium (the `gym` extra). An arrival is a step: the action is the text to show, one string a slot,
the reward what the campaign pays for all that the person does, told at once however late it comes.
"""

from __future__ import annotations

import string
from collections.abc import Mapping
from typing import Any, SupportsFloat

import gymnasium
from gymnasium import spaces

from simulators.worlds import WORLDS, load_world
from simulators.worlds.market import MAX_CHARS, Events
from simulators.worlds.people import DEVICES, POSITIONS

CHARSET = (
    string.ascii_letters + string.digits + string.punctuation + " \u2018\u2019\u201c\u201d\u2013\u2014\u2026\u20ac"
)
"""What the action space samples from; the world takes any text."""
HOURS = 24
STEPS = 20_480
Observation = dict[str, Any]


class WorldEnv(gymnasium.Env[Observation, dict[str, Any]]):
    """One of our worlds, by its short name. An episode is `impressions` arrivals; there is no end before it.

    Observation: `campaign` and `segment` as places in `campaign_ids` and in that campaign's segments, `device`,
    `position` and `hour`. `info` has the same in words (`campaign_id`, `context`), and after a step the `events` as
    (type, ms after the impression, value) and the expected reward `true_rate` of what was shown, for reports."""

    metadata = {"render_modes": []}  # noqa: RUF012 - Gymnasium declares it so

    def __init__(self, world: str, impressions: int = STEPS) -> None:
        if impressions < 1:
            raise ValueError(f"impressions: got {impressions}, expected 1 or more")
        self.name, self.impressions = world, impressions
        self.campaigns = load_world(world, 0, impressions).campaigns()
        self.campaign_ids = list(self.campaigns)
        segments = max(len(body["segments"]) for body in self.campaigns.values())
        self._kinds = {"device": list(DEVICES), "position": list(POSITIONS)}
        self.observation_space = spaces.Dict(
            {
                "campaign": spaces.Discrete(len(self.campaign_ids)),
                "segment": spaces.Discrete(segments),
                "hour": spaces.Discrete(HOURS),
                **{key: spaces.Discrete(len(kinds)) for key, kinds in self._kinds.items()},
            }
        )
        text = spaces.Text(min_length=1, max_length=MAX_CHARS, charset=CHARSET)
        self.action_space = spaces.Dict({"headline": text})

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """A world of that seed begins anew; without one, of the next seed that the first one leads to."""
        super().reset(seed=seed)
        own = int(self.np_random.integers(2**31)) if seed is None else seed
        self._world = load_world(self.name, own, self.impressions)
        self._steps = 0
        return self._arrive(), self._info()

    def step(self, action: dict[str, Any]) -> tuple[Observation, SupportsFloat, bool, bool, dict[str, Any]]:
        """Show the text to who has just arrived."""
        true_rate = getattr(self._world, "true_rate", self._world.click_rate)
        expected = true_rate(self._campaign_id, self._context, action)
        events = self._world.respond(self._campaign_id, self._context, action)
        reward = earned(self.campaigns[self._campaign_id].get("reward", {}), events)
        self._steps += 1
        observation = self._arrive()
        told = {**self._info(), "events": events, "true_rate": expected}
        return observation, reward, False, self._steps >= self.impressions, told

    def _arrive(self) -> Observation:
        self._campaign_id, self._context = self._world.arrive()
        segments = self.campaigns[self._campaign_id]["segments"]
        return {
            "campaign": self.campaign_ids.index(self._campaign_id),
            "segment": segments.index(self._context["segment"]),
            "hour": self._context["hour"],
            **{key: kinds.index(self._context[key]) for key, kinds in self._kinds.items()},
        }

    def _info(self) -> dict[str, Any]:
        return {"campaign_id": self._campaign_id, "context": dict(self._context)}


def earned(weights: Mapping[str, float], events: Events) -> float:
    """What a campaign's reward weights (docs/api.md, Requests) make of one person's events, all of which count."""
    paid = {"click": 1.0, "conversion": 0.0, "value": 0.0, **weights}
    conversions = [value for kind, _, value in events if kind == "conversion"]
    clicked = any(kind == "click" for kind, _, _ in events)
    return paid["click"] * clicked + paid["conversion"] * len(conversions) + paid["value"] * sum(conversions)


def environment_id(world: str) -> str:
    """`phrases` -> `adloop/Phrases-v0`."""
    return f"adloop/{world.capitalize()}-v0"


for _name in WORLDS:
    if environment_id(_name) not in gymnasium.registry:
        gymnasium.register(environment_id(_name), f"{__name__}:WorldEnv", kwargs={"world": _name})
