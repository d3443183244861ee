"""What the tests of the guard share: texts, bait among them, and a critic that is told of clicks on them."""

from __future__ import annotations

from optimizer.learning.critic import Critic, CriticConfig
from optimizer.types import Campaign, Candidate
from tests.learning_rig import START_MS, candidate, outcome

CONFIG = CriticConfig(heads=8, steps=12, spread=1.0)
HONEST, BAIT, POOR = "Run light with Trail Runner 3", "Win a prize today", "Rest warm"
TEXTS = [candidate(text) for text in (HONEST, BAIT, POOR)]
WORDS = ("light", "warm", "bold", "calm", "fresh", "quick", "soft", "bright", "steady", "wild", "clean", "kind")
POOL = [candidate(f"{one} days, {other} roads") for one in WORDS for other in WORDS[:4] if one != other]
DONE = START_MS + 10**7


def tell(critic: Critic, made: Campaign, name: str, text: Candidate, click: bool, sold: bool, **fields: object) -> None:
    """A decision on a text, with what came of it; all windows over, where `fields` do not say otherwise."""
    defaults: dict[str, object] = {"closed": True, "as_of": DONE, "reward": made.reward, "pool_id": "p"}
    told = {"variant_id": text.variant_id, **defaults, **fields}
    assert critic.add(outcome(name, click=click, conversions=int(sold), **told), made, text.slots)  # type: ignore[arg-type]
