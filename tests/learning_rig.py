"""What the tests of learning share: very small models, records, and the loop of generator and learner by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from optimizer.clock import ManualClock
from optimizer.ids import variant_id
from optimizer.learning.base import BaseModel, load_policy, settle_base
from optimizer.learning.config import LearnerConfig
from optimizer.learning.critic import CriticConfig
from optimizer.learning.learner import Learner
from optimizer.learning.pretrain import pretrain
from optimizer.learning.prompt import Prompt, summarise
from optimizer.learning.recipe import Line, PretrainConfig
from optimizer.learning.tokenizer import train_tokenizer
from optimizer.learning.update import UpdateConfig
from optimizer.store import PolicyStore
from optimizer.stream.log import Append
from optimizer.stream.open import open_log
from optimizer.types import (
    Attribution,
    Campaign,
    Candidate,
    Components,
    Decision,
    Decode,
    Outcome,
    Pool,
    Product,
    RewardWeights,
    Scalar,
    Slot,
    to_json,
)
from serving.generator import Generator, GeneratorConfig

START_MS = 1_700_000_000_000
TINY = PretrainConfig(
    layers=1, width=32, heads=2, vocab_size=400, positions=128, rows=1500, batch_rows=32, epochs=4.0, learning_rate=1e-2
)
WORDS = ("light", "dry", "fast", "warm", "calm", "bright")
VERBS = ("Run", "Walk", "Climb", "Rest")


def lines(count: int = TINY.rows) -> list[Line]:
    """A stand-in corpus: short sentences of two dozen words, in one or two slots."""
    rng = np.random.default_rng(1)
    made: list[Line] = []
    for at in range(count):
        first, second = (WORDS[index] for index in rng.choice(len(WORDS), 2, replace=False))
        verb = VERBS[int(rng.integers(len(VERBS)))]
        slots = {"headline": f"{verb} {first} and {second} with [product]"}
        if at % 3 == 0:
            slots["body"] = f"[product] keeps you {second}."
        segment = ("all", "young")[at % 2]
        made.append((Prompt(summarise("ad", segment=segment), tuple(Slot(name) for name in slots)), slots))
    return made


def tiny_folder(folder: Path) -> Path:
    """A GPT-2 of one layer, trained for a second on `lines`."""
    return pretrain(TINY, lines(), folder, lambda *_: None)


def llama_folder(folder: Path) -> Path:
    """A Llama of two layers with random weights and a tokenizer of its own: another architecture, no position table."""
    tokenizer = train_tokenizer((prompt.text + "\n".join(slots.values()) for prompt, slots in lines(400)), 320)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def settle(data: Path, folder: Path) -> BaseModel:
    """The base model of a new data folder, from a model folder."""
    data.mkdir(parents=True, exist_ok=True)
    return settle_base(data, str(folder), lambda *_: None)


def campaign(campaign_id: str = "c1", **fields: object) -> Campaign:
    """A campaign with one slot of 60 characters; `fields` override."""
    given: dict[str, object] = {
        "product": Product(name="Trail Runner 3"),
        "controls": ({"headline": "Trail Runner 3: light"},),
        "slots": (Slot("headline", 60),),
        "holdback": 0.0,
        **fields,
    }
    return Campaign(campaign_id=campaign_id, **given)  # type: ignore[arg-type]


def decision(name: str, **fields: object) -> Decision:
    """A decision that drew candidate 0 of two with probability one half."""
    given: dict[str, object] = {
        "request_id": f"r-{name}",
        "position": 0,
        "tenant": "default",
        "campaign_id": "c1",
        "context": {"segment": "all"},
        "pool_id": "p1",
        "candidate": 0,
        "variant_id": "v0",
        "propensity": 0.5,
        "probabilities": [0.5, 0.5],
        "source": "pool",
        "policy_version": "v",
        "critic_version": "",
        "ts": START_MS,
        "reward": RewardWeights(click=1.0),
        "attribution": Attribution(),
        **fields,
    }
    return Decision(decision_id=name, **given)  # type: ignore[arg-type]


def outcome(
    name: str,
    revision: int = 1,
    *,
    click: bool = False,
    conversions: int = 0,
    value: float = 0.0,
    rating: float | None = None,
    closed: bool = False,
    as_of: int = START_MS,
    click_ts: int | None = None,
    impression_ts: int = START_MS,
    **fields: object,
) -> Outcome:
    """A revision whose reward is that of its components under the decision's weights."""
    drawn = decision(name, **fields)
    weights = drawn.reward
    return Outcome(
        decision_id=name,
        revision=revision,
        state="closed" if closed else "open",
        as_of=as_of,
        impression_ts=impression_ts,
        click_ts=(click_ts if click_ts is not None else impression_ts) if click else None,
        components=Components(click=int(click), conversion=conversions, value=value, rating=rating),
        reward=weights.click * click
        + weights.conversion * conversions
        + weights.value * value
        + weights.rating * (rating or 0.0),
        events=[],
        decision=drawn,
    )


SMALL_LEARNER = LearnerConfig(
    min_outcomes=16,
    pools_per_increment=2,
    critic=CriticConfig(heads=6, steps=4),
    update=UpdateConfig(learning_rate=2e-3, passes=1),
)
# A model this small finds most of what it writes unlikely.
SMALL_GENERATOR = GeneratorConfig(samples=8, regrown=0, kept=2, most_surprise=1e9, decode=Decode(temperature=1.0))


def accept(_: Campaign, __: Mapping[str, str]) -> str | None:
    """A gate that lets everything pass."""
    return None


@dataclass
class Loop:
    """The log and store of one data folder, with generator and learner; serving and joiner are played by `serve`."""

    data: Path
    base: BaseModel
    url: str
    clock: ManualClock
    gate: Callable[[Campaign, Mapping[str, str]], str | None] = accept

    def __post_init__(self) -> None:
        self.log = open_log(self.url, self.clock)
        self.store = PolicyStore(self.data / "policies")
        self.served = 0
        self._learner: Learner | None = None

    def close(self) -> None:
        """Let go of learner and log."""
        if self._learner is not None:
            self._learner.close()
        self.log.close()

    def put(self, *campaigns: Campaign) -> None:
        self.log.append([Append("campaigns", f"{c.tenant}/{c.campaign_id}", to_json(c)) for c in campaigns])

    def learner(self, config: LearnerConfig = SMALL_LEARNER) -> Learner:
        """A learner of this folder; the one before it is closed, as a restart would."""
        if self._learner is not None:
            self._learner.close()
        self._learner = Learner(self.log, self.store, self.base, self.clock, config, self.data)
        return self._learner

    def generator(self, config: GeneratorConfig = SMALL_GENERATOR, seed: int = 0) -> Generator:
        return Generator(self.log, self.store, self.base, self.clock, self.gate, seed, config)

    def pools(self) -> list[Pool]:
        return read_all(self, "candidates", Pool)

    def serve(
        self,
        pool: Pool,
        count: int,
        rng: np.random.Generator,
        clicks: Callable[[Candidate], float],
        context: Mapping[str, Scalar] | None = None,
    ) -> None:
        """`count` decisions drawn uniformly from a pool's texts, each with its outcome, into the log."""
        offered = [at for at, candidate in enumerate(pool.candidates) if candidate.rejected is None]
        records: list[Append] = []
        for _ in range(count):
            at = int(rng.choice(offered))
            self.served += 1
            shown = pool.candidates[at]
            probabilities = [1.0 / len(offered) if i in offered else 0.0 for i in range(len(pool.candidates))]
            record = outcome(
                f"d{self.served}",
                click=bool(rng.random() < clicks(shown)),
                closed=True,
                as_of=self.clock.now_ms(),
                impression_ts=self.clock.now_ms(),
                pool_id=pool.pool_id,
                campaign_id=pool.campaign_id,
                candidate=at,
                variant_id=shown.variant_id,
                propensity=1.0 / len(offered),
                probabilities=probabilities,
                policy_version=pool.policy_version,
                context={"segment": pool.segment, **(context or {})},
                ts=self.clock.now_ms(),
            )
            records.append(Append("outcomes", record.decision_id, to_json(record)))
            self.clock.advance(100)
        self.log.append(records)


def read_all(loop: Loop, topic: str, kind: type[Pool]) -> list[Pool]:
    """Every record of a topic, decoded, in log order."""
    import msgspec

    from optimizer.stream.log import whole

    reader = loop.log.reader(whole(loop.log, topic))
    found: list[Pool] = []
    while records := reader.poll(500):
        found += [msgspec.json.decode(record.value, type=kind) for record in records if record.value is not None]
    return found


def open_loop(
    data: Path,
    model: Path,
    gate: Callable[[Campaign, Mapping[str, str]], str | None] = accept,
    campaigns: Sequence[Campaign] = (),
) -> Loop:
    """A new data folder around a model folder, with `campaigns` in its log."""
    loop = Loop(data, settle(data, model), f"sqlite:///{data / 'log.db'}?synchronous=off", ManualClock(START_MS), gate)
    loop.put(*campaigns)
    return loop


def likes_short(shown: Candidate) -> float:
    """How likely people click: short texts more."""
    return 0.6 if len(shown.text()) < 30 else 0.1


def play(loop: Loop, learner: Learner, rounds: int, seed: int = 0) -> None:
    """Write pools, show each new one to 30 people, learn; as often as asked."""
    generator = loop.generator(seed=seed)
    rng = np.random.default_rng(seed)
    shown = 0
    for _ in range(rounds):
        while generator.step():
            pass
        pools = loop.pools()
        for pool in pools[shown:]:
            loop.serve(pool, 30, rng, likes_short)
        shown = len(pools)
        while learner.step():
            pass


def tensors(loop: Loop, version: str) -> dict[str, torch.Tensor]:
    """The weights of a version, as the store holds them."""
    return loop.store.policy_tensors(version, load_policy(loop.base).trainable(), loop.base.digest)


def candidate(text: str, campaign_id: str = "c1", **fields: object) -> Candidate:
    """A text of a pool in the slot `headline`."""
    slots = {"headline": text}
    return Candidate(variant_id=variant_id(campaign_id, slots), slots=slots, **fields)  # type: ignore[arg-type]
