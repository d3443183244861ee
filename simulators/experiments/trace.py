"""One run of a variant in a world, with what the experiments ask about it impression by impression."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from simulators.compare import play
from simulators.experiments.measures import Bools, Floats
from simulators.progress import Report
from simulators.workers import one_thread

if TYPE_CHECKING:
    from optimizer.types import Scalar
    from simulators.experiments.variants import Player
    from simulators.guest import Guest
    from simulators.loop import Reaction
    from simulators.places import Places, Slots


@dataclass(frozen=True)
class Trial:
    """One variant (of `variants.VARIANTS`) in one world. `increment`: impressions between increments."""

    variant: str
    world: str
    seed: int
    impressions: int
    increment: int
    model: str | None


@dataclass(frozen=True)
class Trace:
    """What happened, all arrays [N]. `click_rates`, `rewards`: true, of what was shown; `frozen`: the true reward of
    the control texts on the same arrivals; `best`: the oracle's click rate there, over devices and hours; `earned`:
    realised rewards, late ones included; `control`: whether the text came from the controls. `halted_at`: impressions
    until the sentinel halted learning, with `halted` why; None where it did not."""

    trial: Trial
    campaigns: tuple[str, ...]
    click_rates: Floats
    rewards: Floats
    frozen: Floats
    best: Floats
    earned: Floats
    control: Bools
    valid_share: float
    kl: float
    halted_at: int | None
    halted: str
    seconds: float


@dataclass
class _Watched:
    """A player under observation. What it notes of the world it asks without changing it."""

    player: Player
    world: Guest
    places: Places
    paid: Callable[[str, Sequence[Reaction]], float]
    campaigns: list[str] = field(default_factory=list)
    frozen: list[float] = field(default_factory=list)
    best: list[float] = field(default_factory=list)
    earned: list[float] = field(default_factory=list)
    control: list[bool] = field(default_factory=list)
    halted_at: int | None = None
    halted: str = ""

    def __post_init__(self) -> None:
        self._best_rate = self.world.best_rate

    def serve(self, campaign_id: str, context: Mapping[str, Scalar]) -> Slots:
        _, segment = self.places.of(campaign_id, context)
        own = self.places.campaigns[campaign_id].controls
        self.campaigns.append(campaign_id)
        self.frozen.append(sum(self.world.true_rate(campaign_id, dict(context), dict(one)) for one in own) / len(own))
        told = self._best_rate
        self.best.append(float("nan") if told is None else told(campaign_id, segment))
        slots = self.player.serve(campaign_id, context)
        self.control.append(self.player.control)
        return slots

    def feed(self, reactions: Sequence[Reaction]) -> None:
        self.earned.append(self.paid(self.campaigns[-1], reactions))
        self.player.feed(reactions)

    def advance(self, elapsed_ms: int) -> None:
        self.player.advance(elapsed_ms)

    def increment(self) -> None:
        self.player.increment()
        if self.halted_at is None and self.player.halted:
            self.halted_at, self.halted = len(self.campaigns), self.player.halted

    def kl(self) -> float:
        return self.player.kl()

    def close(self) -> None:
        self.player.close()


def run_trial(trial: Trial, folder: Path, report: Report) -> Trace:
    """Play one trial in an empty folder."""
    # Imported here: they bring torch.
    from simulators.experiments.variants import player
    from simulators.guest import guest
    from simulators.places import Places

    one_thread()
    world = guest(trial.world, trial.seed, trial.impressions)
    bodies = world.campaigns()
    paid = world.payout().of
    begun = time.perf_counter()
    variant = player(trial.variant, bodies, folder / "data", trial.seed, trial.model)
    with closing(_Watched(variant, world, Places(bodies), paid)) as own:
        shown = play(own, world, trial.impressions, trial.increment, report)
        return Trace(
            trial=trial,
            campaigns=tuple(own.campaigns),
            click_rates=shown.click_rates,
            rewards=shown.rewards,
            frozen=np.array(own.frozen),
            best=np.array(own.best),
            earned=np.array(own.earned),
            control=np.array(own.control, dtype=bool),
            valid_share=float(shown.valid.mean()),
            kl=own.kl(),
            halted_at=own.halted_at,
            halted=own.halted,
            seconds=round(time.perf_counter() - begun, 1),
        )
