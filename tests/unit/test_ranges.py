"""Settings out of their ranges are refused where they are set, with the field, its value, what was expected and the
fix."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest

from optimizer.errors import ConfigError
from optimizer.learning.bait import BaitConfig
from optimizer.learning.config import LearnerConfig
from optimizer.learning.critic import CriticConfig
from optimizer.learning.favourites import FavouritesConfig
from optimizer.learning.recipe import PretrainConfig
from optimizer.learning.sentinel import SentinelConfig
from optimizer.learning.update import UpdateConfig
from optimizer.maths.sentinel import Limits
from optimizer.ranges import Range, whole

CONFIGS = (
    LearnerConfig,
    CriticConfig,
    UpdateConfig,
    FavouritesConfig,
    SentinelConfig,
    BaitConfig,
    Limits,
    PretrainConfig,
)
NUMBERS = [(config, one.name, one.type) for config in CONFIGS for one in fields(config) if one.type in ("int", "float")]


@pytest.mark.parametrize(("config", "name", "kind"), NUMBERS, ids=lambda value: getattr(value, "__name__", str(value)))
def test_every_number_has_a_range(config: Any, name: str, kind: str) -> None:
    refused = [-1, math.nan, "3", None, True]
    for value in [*refused, 2.5, math.inf] if kind == "int" else refused:
        with pytest.raises(ConfigError, match=rf"^{config.__name__}\.{name}: got {value!r}, expected a .*; set it in"):
            config(**{name: value})


@pytest.mark.parametrize("config", CONFIGS)
def test_what_is_there_by_itself_is_in_its_range(config: Any) -> None:
    assert replace(config()) == config()


@pytest.mark.parametrize(
    ("config", "given"),
    [
        (LearnerConfig, {"kl_aim": 1.01}),
        (LearnerConfig, {"kl_budget": 0.0}),
        (LearnerConfig, {"kl_budget": math.inf}),
        (LearnerConfig, {"min_outcomes": 0}),
        (LearnerConfig, {"few_outcomes": 0}),
        (LearnerConfig, {"staleness": 0}),
        (LearnerConfig, {"pools_per_increment": 0}),
        (CriticConfig, {"heads": 0}),
        (CriticConfig, {"target_every": 0}),
        (CriticConfig, {"first_rate": 0.0}),
        (CriticConfig, {"first_rate": 1.0}),
        (CriticConfig, {"kept_at_drift": 0.0}),
        (CriticConfig, {"staleness_days": math.inf}),
        (CriticConfig, {"age_classes": 1}),
        (UpdateConfig, {"compare_every": 0}),
        (UpdateConfig, {"ratio_floor": 1.5}),
        (UpdateConfig, {"ratio_ceiling": 0.0}),
        (UpdateConfig, {"clip": 0.0}),
        (FavouritesConfig, {"least": 0}),
        (FavouritesConfig, {"effective": 0.0}),
        (SentinelConfig, {"patience": 0}),
        (SentinelConfig, {"samples": 1}),
        (BaitConfig, {"arrived": 0.0}),
        (BaitConfig, {"arrived": 1.1}),
        (Limits, {"duplicates": 1.1}),
        (Limits, {"shortest": 2.0}),
        (Limits, {"shortest": 1.0, "longest": 0.5}),
        (PretrainConfig, {"width": 33, "heads": 2}),
        (PretrainConfig, {"warmup": 1.5}),
        (PretrainConfig, {"vocab_size": 256}),
    ],
    ids=str,
)
def test_what_would_fail_later_or_never_is_refused(config: Any, given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=rf"{config.__name__}\.{next(iter(given))}: got .*, expected .*; "):
        config(**given)


def test_what_the_bench_takes_out_of_learning_can_be_set() -> None:
    """bench/ablations.py."""
    assert replace(UpdateConfig(), residual_cap=math.inf, ratio_ceiling=math.inf, clip=math.inf).passes == 1
    assert replace(UpdateConfig(), residual_cap=0.0, learning_rate=0.0).passes == 1
    assert replace(CriticConfig(), spread=0.0, target_every=1).heads == 24
    assert replace(FavouritesConfig(), steps=0).steps == 0
    assert LearnerConfig(kl_budget=1e9).kl_budget == 1e9
    assert Limits(kl_step=math.inf, longest=math.inf, entropy=0.0).shortest == 0.5


def test_all_that_is_wrong_is_told_at_once() -> None:
    with pytest.raises(ConfigError) as refused:
        UpdateConfig(passes=0, clip=-1.0)
    assert str(refused.value) == (
        "UpdateConfig.passes: got 0, expected a whole number of at least 1; set it in that range, or leave it out: it "
        "is then 1; UpdateConfig.clip: got -1.0, expected a number over 0, or infinity; set it in that range, or leave "
        "it out: it is then 1.0"
    )


@pytest.mark.parametrize(
    ("allowed", "inside", "outside", "said"),
    [
        (Range(0.0, 1.0), [0, 0.5, 1, np.float32(1)], [-0.1, 1.1], "a number of at least 0 and at most 1"),
        (Range(0.0, 1.0, over=True, under=True), [0.5], [0, 1, "0.5"], "a number over 0 and under 1"),
        (Range(0.0, endless=True), [0, math.inf], [-math.inf, math.nan], "a number of at least 0, or infinity"),
        (whole(2), [2, 10**30, np.int64(3)], [1, 2.0, math.inf, True], "a whole number of at least 2"),
    ],
    ids=str,
)
def test_what_is_in_a_range(allowed: Range, inside: list[object], outside: list[object], said: str) -> None:
    assert [value for value in inside if not allowed.holds(value)] == []
    assert [value for value in outside if allowed.holds(value)] == []
    assert str(allowed) == said
