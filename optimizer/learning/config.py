"""The learner's options."""

from __future__ import annotations

from dataclasses import dataclass, field

from optimizer.learning.critic import CriticConfig
from optimizer.learning.favourites import FavouritesConfig
from optimizer.learning.sentinel import SentinelConfig
from optimizer.learning.update import UpdateConfig
from optimizer.maths.kl import KL_BUDGET
from optimizer.ranges import NOT_NEGATIVE, POSITIVE, SHARE_OVER_0, check_ranges, whole


@dataclass(frozen=True)
class LearnerConfig:
    """`kl_budget` nats per sequence, which no published version exceeds as measured before its last step on the pools
    of that step; `kl_aim`: the share of it that the controller steers for; `entropy_floor`: nats per token under which
    the penalty grows whatever the divergence is, so that the policy does not end in one text; `min_outcomes`: revisions
    that an increment waits for, but where there are `few_outcomes` no longer than `most_wait_ms`;
    `pools_per_increment`: pools in a gradient step; `staleness`: policy versions after which a pool no longer trains
    the policy; `most_waiting`: revisions after which an increment no longer waits for the log's end; `catch_up_fits`:
    most passes of the critic in an increment, where much was read at once; `outcomes_per_poll`: revisions read in a
    step; `train_policy` False teaches the critic alone (replays of fixed texts). `critic`, `update`, `favourites` and
    `sentinel`: the options of the parts. Raises ConfigError for what is out of its range."""

    kl_budget: float = KL_BUDGET
    kl_aim: float = 0.8
    entropy_floor: float = 0.35
    min_outcomes: int = 32
    few_outcomes: int = 8
    most_wait_ms: int = 3_000
    pools_per_increment: int = 4
    staleness: int = 30
    most_waiting: int = 100_000
    catch_up_fits: int = 20
    outcomes_per_poll: int = 4_000
    train_policy: bool = True
    critic: CriticConfig = field(default_factory=CriticConfig)
    update: UpdateConfig = field(default_factory=UpdateConfig)
    favourites: FavouritesConfig = field(default_factory=FavouritesConfig)
    sentinel: SentinelConfig = field(default_factory=SentinelConfig)

    def __post_init__(self) -> None:
        check_ranges(
            self,
            kl_budget=POSITIVE,
            kl_aim=SHARE_OVER_0,
            entropy_floor=NOT_NEGATIVE,
            min_outcomes=whole(1),
            few_outcomes=whole(1),
            most_wait_ms=whole(0),
            pools_per_increment=whole(1),
            staleness=whole(1),
            most_waiting=whole(1),
            catch_up_fits=whole(1),
            outcomes_per_poll=whole(1),
        )
