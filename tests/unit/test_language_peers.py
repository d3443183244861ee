"""Peers that teach a language model: what they draw with, and which policy TRL's GRPO takes for the old one."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

from optimizer.learning.policy import LanguagePolicy
from optimizer.learning.prompt import build_prompt
from optimizer.types import Decode
from simulators.language_peers import DECODE, LanguageContender, Reinforce, Told, open_policy
from simulators.payout import Payout
from simulators.places import Place, Places
from simulators.settings import GrpoConfig
from simulators.streams import LANGUAGE_STREAM, VOWPAL_STREAM, salted

SHORT, LONG = ("boots", "all"), ("boots", "people who walk in the hills")


@pytest.fixture
def places() -> Places:
    body = {"product": {"name": "Boots"}, "segments": [SHORT[1], LONG[1]], "controls": [{"headline": "Boots"}]}
    return Places({"boots": body})


@pytest.fixture
def policy(tmp_path: Path, tiny_model_folder: Path) -> LanguagePolicy:
    return open_policy(tmp_path / "policy", str(tiny_model_folder))


def told(policy: LanguagePolicy, places: Places, place: Place, rewards: Sequence[float]) -> list[Told]:
    prompt = build_prompt(places.campaigns[place[0]], place[1])
    drawn = policy.sample([prompt], len(rewards), DECODE, torch.Generator().manual_seed(1))[0]
    return [Told(place, prompt, sample, reward) for sample, reward in zip(drawn, rewards, strict=True)]


def test_texts_are_drawn_from_a_stream_that_no_world_begins_with(policy: LanguagePolicy, places: Places) -> None:
    player = LanguageContender(policy, Reinforce(policy, 1e-4), places, Payout(places.campaigns), 3)
    with closing(player):
        assert player._torch.initial_seed() == salted(LANGUAGE_STREAM, 3)
    drawn = {salted(stream, seed) for stream in (LANGUAGE_STREAM, VOWPAL_STREAM) for seed in range(100)}
    assert len(drawn) == 200
    assert not drawn & set(range(1_000_000))


def test_trl_reads_a_text_alike_alone_and_beside_longer_prompts(
    policy: LanguagePolicy, places: Places, tmp_path: Path
) -> None:
    peer = _grpo(policy, tmp_path)
    shown = [*told(policy, places, SHORT, [0.0, 1.0]), *told(policy, places, LONG, [0.0, 1.0])]
    assert len(policy.prompt_ids(shown[0].prompt)) != len(policy.prompt_ids(shown[-1].prompt))
    together = _log_probs(peer, policy, shown)
    for one, values in zip(shown, together, strict=True):
        assert values == pytest.approx(_log_probs(peer, policy, [one])[0], abs=1e-4)
    # And as the policy itself does, but for the tokens that it bars: the same text is as likely to both.
    whole = Decode(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0)
    with torch.no_grad():
        own = policy.score([one.prompt for one in shown], [one.sample.token_ids for one in shown], whole).log_prob
    assert [sum(values) for values in together] == pytest.approx(own.tolist(), abs=0.5)


def test_a_text_that_waited_is_compared_with_the_policy_that_wrote_it(
    policy: LanguagePolicy, places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer = _grpo(policy, tmp_path)
    seen: list[dict[str, Any]] = []
    loss = peer.trainer._compute_loss

    def watched(model: Any, inputs: dict[str, Any]) -> Any:
        seen.append(inputs)
        return loss(model, inputs)

    monkeypatch.setattr(peer.trainer, "_compute_loss", watched)
    waits, comes = told(policy, places, LONG, [0.0, 1.0])
    written = _log_probs(peer, policy, [waits])[0]
    peer.update([*told(policy, places, SHORT, [0.0, 1.0]), waits])
    assert len(seen[0]["advantages"]) == 2
    moved = _log_probs(peer, policy, [waits])[0]
    assert max(abs(one - other) for one, other in zip(written, moved, strict=True)) > 0.05
    fresh = _log_probs(peer, policy, [comes])[0]
    peer.update([comes])
    old, advantages = seen[1]["old_per_token_logps"], seen[1]["advantages"].flatten()
    stale = int(advantages.argmin())
    assert old[stale, : len(written)].tolist() == pytest.approx(written, abs=1e-4)
    assert old[1 - stale, : len(fresh)].tolist() == pytest.approx(fresh, abs=1e-4)


def _grpo(policy: LanguagePolicy, folder: Path) -> Any:
    pytest.importorskip("trl")
    from simulators.trl_peer import Grpo

    return Grpo(policy, GrpoConfig(learning_rate=3e-2, group=2), folder / "trl", 1)


def _log_probs(peer: Any, policy: LanguagePolicy, shown: Sequence[Told]) -> list[list[float]]:
    from simulators.trl_peer import log_probs, rollout

    return log_probs(peer.trainer, rollout(policy, shown))
