"""Who may play in a comparison, and the settings of those that have any. What was tried: docs/decisions.md."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Literal

POOL, SMALL = 50, 20
"""Texts of a place in a fixed pool, and in the smaller one, which is its beginning."""


@dataclass(frozen=True)
class VowpalConfig:
    """`explore`: the exploration's options. `texts`: what a text is described by. `interactions`: pairs and triples of
    the namespaces S (campaign, segment and both), C (the context's other keys), I (the text itself), W (its words) and
    N (pairs of neighbouring words)."""

    explore: str
    cb_type: str = "mtr"
    texts: str = "IWN"
    interactions: tuple[str, ...] = ("SI", "SW")
    learning_rate: float = 0.5
    power_t: float = 0.5

    def arguments(self, seed: int) -> str:
        """Vowpal Wabbit's command line."""
        pairs = " ".join(f"--interactions {pair}" for pair in self.interactions)
        return (
            f"--cb_explore_adf {self.explore} --cb_type {self.cb_type} {pairs} --learning_rate {self.learning_rate} "
            f"--power_t {self.power_t} -b 20 --random_seed {seed} --quiet"
        )


@dataclass(frozen=True)
class GrpoConfig:
    """`group`: completions of one prompt that are compared. `beta`: TRL's weight of the divergence, per token."""

    learning_rate: float
    group: int = 4
    beta: float = 0.0
    scale_rewards: str = "group"
    loss_type: str = "dapo"


@dataclass(frozen=True)
class Setting:
    """One name of the table. `size`: texts of a place in the fixed pool that it plays, 0 for who has none. `extra`:
    the package that has to be installed for it."""

    kind: Literal["adloop", "control", "uniform", "thompson", "ucb", "best", "vowpal", "reinforce", "grpo"]
    size: int = 0
    extra: str = ""
    vowpal: VowpalConfig | None = None


EXPLORATIONS = {
    "squarecb": VowpalConfig("--squarecb"),
    "epsilon": VowpalConfig("--epsilon 0.05"),
    "softmax": VowpalConfig("--softmax --lambda 20"),
    "bag": VowpalConfig("--bag 5"),
}
TWINS = EXPLORATIONS | {
    "squarecb": replace(EXPLORATIONS["squarecb"], explore="--squarecb --gamma_scale 100", power_t=0.25)
}
"""What their twins start from, before the context is crossed: with it other strengths are best."""
CONTEXT_WITH_TEXT = ("CI", "CW")
"""What else a twin crosses. In a world whose context does not matter to the choice it is so much more to learn."""
REINFORCE_LEARNING_RATE = 3e-4
GRPO = GrpoConfig(learning_rate=1e-3)


def _vowpal() -> dict[str, Setting]:
    """squarecb works with mtr alone, the others with mtr and dr. Twins (`_ctx`) only of those that have been the best
    or near it, or a comparison would take twice as long: mtr with the larger pool, squarecb with both."""
    plain = {
        f"vw_{name}_{cb_type}_{size}": Setting("vowpal", size, "vowpalwabbit", replace(config, cb_type=cb_type))
        for name, config in EXPLORATIONS.items()
        for cb_type in ("mtr", "dr")
        if (name, cb_type) != ("squarecb", "dr")
        for size in (SMALL, POOL)
    }
    sizes = {name: (SMALL, POOL) if name == "squarecb" else (POOL,) for name in TWINS}
    return plain | {
        f"vw_{name}_mtr_{size}_ctx": Setting("vowpal", size, "vowpalwabbit", crossing_context(config))
        for name, config in TWINS.items()
        for size in sizes[name]
    }


def crossing_context(config: VowpalConfig) -> VowpalConfig:
    """The same with the context crossed with each text and its words: what is best may hang on the device, say."""
    return replace(config, interactions=config.interactions + CONTEXT_WITH_TEXT)


SETTINGS: dict[str, Setting] = {
    "uniform": Setting("uniform", SMALL),
    "control": Setting("control"),
    "thompson": Setting("thompson", SMALL),
    "thompson_50": Setting("thompson", POOL),
    "ucb": Setting("ucb", SMALL),
    "ucb_50": Setting("ucb", POOL),
    "best_of_50": Setting("best", POOL),
    **_vowpal(),
    "reinforce": Setting("reinforce"),
    "trl_grpo": Setting("grpo", extra="trl"),
    "adloop": Setting("adloop"),
}
NAMES = tuple(SETTINGS)


def lacking(name: str) -> str | None:
    """Why that contender can't play here; None where it can."""
    extra = SETTINGS[name].extra
    if extra and find_spec(extra) is None:
        return f"the package {extra} is not installed: run make setup, or pip install -e '.[peers]' in a checkout"
    return None
