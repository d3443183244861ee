"""A world as a comparison plays it: what it says is checked for every policy alike and made plain Python, and what it
does wrong is told in a sentence with its name. Worlds are written by others (docs/worlds.md)."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from itertools import islice
from typing import Any, NoReturn

import numpy as np

from optimizer.errors import AdloopError
from optimizer.stream.admission import Refused, check_value
from optimizer.types import Campaign, RewardWeights
from serving.campaigns import campaign_from
from serving.schemas import CampaignIn, CampaignPath, GenerateIn
from serving.service import checked_context
from serving.wire import convert, refuse_overflow, shown
from simulators.loop import TENANT, VALUED, Reaction, within
from simulators.payout import Payout
from simulators.randomness import Randomness
from simulators.worlds import World, blame, load_world, shipped

MEND = "mend the world"
REACTIONS = ("click", *VALUED)
ROUNDING = 1e-6
"""A rate may be a sum of parts, in float32: so much beside 0 and 1 is forgiven."""
CLICKS_ALONE = RewardWeights(click=1.0)
MOST_KEYS = 64
"""Of a context, as a request holds them: every policy gets the same ones, the world all of its own."""


class Guest:
    """A World around another one. Every method raises AdloopError, or BadInput for a campaign or request that serving
    would refuse, where the world raises or what it gives is not what the contract says."""

    def __init__(self, world: World, name: str, randomness: Randomness | None = None) -> None:
        """`name`: what errors call it. `randomness`: the global random generators as it alone knows them; None for a
        world that draws from its own."""
        self.name = name
        self.keys_cut = 0
        """The most keys of a context that no policy was given, because a request holds `MOST_KEYS`."""
        self._world = world
        self._randomness = randomness
        self._arrived = 0
        self._campaigns: dict[str, Campaign] = {}
        self._handed: dict[str, Any] = {}
        self._whole: dict[str, Any] = {}
        interval = plain(world.interval_ms)
        if not _is_number(interval) or interval != int(interval) or interval < 1:
            self._wrong(
                "interval_ms",
                interval,
                "a whole number of milliseconds from 1 (without time between arrivals nobody who waits for a click "
                "would ever hear of one)",
            )
        self.interval_ms = int(interval)
        self._truth: Callable[..., Any] | None = getattr(world, "true_rate", None)
        self._best: Callable[..., Any] | None = getattr(world, "best_rate", None)

    @property
    def pays_for_more(self) -> bool:
        """Whether some campaign's reward is not 1 for a click and nothing besides."""
        return any(campaign.reward != CLICKS_ALONE for campaign in self._campaigns.values())

    def payout(self) -> Payout:
        """What reactions are worth to its campaigns."""
        return Payout(self._campaigns)

    @property
    def tells_reward(self) -> bool:
        """Whether the world has `true_rate`."""
        return self._truth is not None

    @property
    def best_rate(self) -> Callable[[str, str], float] | None:
        """The oracle's click rate for (campaign_id, segment) now, checked; None where the world does not tell it."""
        best = self._best
        if best is None:
            return None
        return lambda campaign_id, segment: self._share("best_rate", self._ask("best_rate", best, campaign_id, segment))

    def campaigns(self) -> dict[str, dict[str, Any]]:
        """The bodies, each of which serving takes."""
        bodies = plain(self._change("campaigns", self._world.campaigns))
        if not isinstance(bodies, dict) or not bodies:
            self._wrong("campaigns", bodies, "a dict of campaign_id -> body with one campaign or more")
        for campaign_id, body in bodies.items():
            with within(f"world {self.name}: campaigns[{campaign_id!r}]"):
                convert({"campaign_id": campaign_id}, CampaignPath)
                refuse_overflow(body)
                self._campaigns[campaign_id] = campaign_from(TENANT, campaign_id, convert(body, CampaignIn))
        return bodies

    def arrive(self) -> tuple[str, dict[str, Any]]:
        """The next request, for a campaign and segment that there is."""
        if not self._campaigns:
            self.campaigns()
        came = plain(self._change("arrive", self._world.arrive))
        self._arrived += 1
        if not isinstance(came, list) or len(came) != 2:
            self._wrong("arrive", came, "(campaign_id, context)")
        campaign_id, context = came
        if not isinstance(campaign_id, str) or campaign_id not in self._campaigns:
            self._wrong("arrive", campaign_id, f"a campaign_id of {', '.join(list(self._campaigns)[:8])}")
        with within(f"world {self.name}: arrive{self._when()}"):
            refuse_overflow({"context": context})
            self._whole = context
            context = self._cut(context)
            request = convert({"campaign_id": campaign_id, "context": context}, GenerateIn)
            checked_context(self._campaigns[campaign_id], request.context)
        self._handed = context
        return campaign_id, dict(context)

    def respond(self, campaign_id: str, context: dict[str, Any], slots: dict[str, str]) -> list[Reaction]:
        """What the person does: events that serving takes."""

        def reactions() -> Any:
            given: Any = self._world.respond(campaign_id, self._own(context), dict(slots))
            # Read here: a generator's body runs as it is read.
            if isinstance(given, Iterable) and not isinstance(given, str | bytes | Mapping | np.generic):
                return list(given)
            return given

        given = plain(self._change("respond", reactions))
        if not isinstance(given, list):
            self._wrong("respond", given, "a list of (event type, ms after the impression, value)")
        return [self._reaction(one) for one in given]

    def click_rate(self, campaign_id: str, context: dict[str, Any], slots: dict[str, str]) -> float:
        """The true click rate now, 0 to 1."""
        told = self._ask("click_rate", self._world.click_rate, campaign_id, self._own(context), dict(slots))
        return self._share("click_rate", told)

    def true_rate(self, campaign_id: str, context: dict[str, Any], slots: dict[str, str]) -> float:
        """The expected reward now; the click rate where the world has no `true_rate`."""
        if self._truth is None:
            return self.click_rate(campaign_id, context, slots)
        told = self._ask("true_rate", self._truth, campaign_id, self._own(context), dict(slots))
        return self._number("true_rate", told)

    def valid(self, campaign_id: str, slots: dict[str, str]) -> bool:
        """Whether the text is well formed."""
        return bool(self._ask("valid", lambda: bool(self._world.valid(campaign_id, dict(slots)))))

    def oracle_rate(self) -> float:
        """Mean click rate of the best texts, 0 to 1."""
        return self._share("oracle_rate", self._change("oracle_rate", self._world.oracle_rate))

    def oracle_reward(self) -> float | None:
        """The like of the expected reward; None where the world does not tell it."""
        told: Callable[[], Any] | None = getattr(self._world, "oracle_reward", None)
        return None if told is None else self._number("oracle_reward", self._change("oracle_reward", told))

    # -- what it is given ----------------------------------------------------------------------------------------------

    def _cut(self, context: Any) -> Any:
        """The context's first `MOST_KEYS` keys, with its segment."""
        if not isinstance(context, dict) or len(context) <= MOST_KEYS:
            return context
        self.keys_cut = max(self.keys_cut, len(context) - MOST_KEYS)
        others = (name for name in context if name != "segment")
        kept = set(islice(others, MOST_KEYS - ("segment" in context))) | {"segment"}
        return {name: value for name, value in context.items() if name in kept}

    def _own(self, context: Mapping[str, Any]) -> dict[str, Any]:
        """A copy for the world, which may do with it what it likes: of all that it said itself of this arrival."""
        return dict(self._whole if context == self._handed else context)

    # -- what it gave --------------------------------------------------------------------------------------------------

    def _change(self, method: str, call: Callable[..., Any], *arguments: object) -> Any:
        """`_ask` of what may change the world's state: it draws on, whoever has drawn in the meantime."""
        with nullcontext() if self._randomness is None else self._randomness.restored():
            return self._ask(method, call, *arguments)

    def _ask(self, method: str, call: Callable[..., Any], *arguments: object) -> Any:
        try:
            return call(*arguments)
        except (Exception, SystemExit) as error:
            what = blame(error, type(self._world).__module__)
            raise AdloopError(f"world {self.name}: {method}{self._when()} raised {what}; {MEND}") from error

    def _reaction(self, given: object) -> Reaction:
        wanted = "(event type, ms after the impression, value)"
        if not isinstance(given, list) or len(given) != 3:
            self._wrong("respond", given, wanted)
        kind, delay, value = given
        if not isinstance(kind, str) or not _is_number(delay) or delay != int(delay) or not _is_number(value):
            self._wrong("respond", given, f"{wanted}: a text, a whole number and a finite number")
        if kind not in REACTIONS:
            self._wrong("respond", given, f"an event type of {', '.join(REACTIONS)} (who plays posts the impression)")
        if kind in VALUED:
            try:
                check_value(kind, float(value))
            except Refused as refused:
                self._wrong("respond", given, str(refused).partition("expected ")[2])
        return kind, int(delay), float(value)

    def _share(self, method: str, value: object) -> float:
        number = self._number(method, value)
        if not -ROUNDING <= number <= 1.0 + ROUNDING:
            self._wrong(method, number, "a rate from 0 to 1")
        return min(max(number, 0.0), 1.0)

    def _number(self, method: str, value: object) -> float:
        number = plain(value)
        if not _is_number(number):
            self._wrong(method, number, "a finite number")
        return float(number)

    def _wrong(self, method: str, got: object, expected: str) -> NoReturn:
        raise AdloopError(f"world {self.name}: {method}{self._when()} gave {shown(got)}, expected {expected}; {MEND}")

    def _when(self) -> str:
        return f" at arrival {self._arrived}" if self._arrived else ""


def guest(name: str, seed: int, impressions: int | None = None) -> Guest:
    """The world of that name (`load_world`), checked. Raises ConfigError.

    The global random generators begin by the seed for a world that others wrote, and go on for it alone: on the same
    seed it meets the same numbers, whoever plays it."""
    if shipped(name):
        return Guest(load_world(name, seed, impressions), name)
    randomness = Randomness(seed)
    with randomness.restored():
        world = load_world(name, seed, impressions)
    return Guest(world, name, randomness)


def plain(value: Any) -> Any:
    """`value` in the types that JSON has: numpy's scalars and arrays as Python's, tuples as lists, subclasses of str,
    int and float as these; whatever else it is stays as it is."""
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, int | float) and type(value) not in (bool, int, float):
        return int(value) if isinstance(value, int) else float(value)
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Mapping):
        return {plain(name): plain(one) for name, one in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return [plain(one) for one in value]
    return value


def _is_number(value: Any) -> bool:
    """Whether it is a number that a double holds; True and False are 1 and 0."""
    if isinstance(value, int):
        return abs(value) <= sys.float_info.max
    return isinstance(value, float) and math.isfinite(value)
