"""The critic as serving sees it: the same numbers as the heads', the same bytes back, nothing damaged let in."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load, save
from scipy.special import expit, logit

from optimizer.errors import StoreError
from optimizer.learning.critic import Critic, CriticConfig
from optimizer.learning.features import PRIOR_SCALE, context_features, context_names, encoded
from optimizer.learning.heads import prior_draws
from optimizer.learning.view import CONTEXTS_KEPT, CriticView
from optimizer.types import Campaign, RewardWeights
from tests.learning_rig import START_MS, campaign, candidate, outcome

# The guard has tests of its own (test_guard.py, test_guard_trust.py): without it a score is the click heads' own.
CONFIG = CriticConfig(heads=6, steps=8, spread=1.0, guard=False)
TEXTS = ("Run light with Trail Runner 3", "Walk dry and warm", "Rest")
CONTEXT = {"segment": "all", "device": "mobile"}
PAID = RewardWeights(click=1.0, conversion=4.0)


CLICKS = RewardWeights(click=1.0)


def taught(made: Campaign, reward: RewardWeights = CLICKS, config: CriticConfig = CONFIG) -> Critic:
    critic = Critic(config)
    for at in range(120):
        text = candidate(TEXTS[at % 2])
        click = at % 2 == 0
        shown = outcome(
            f"d{at}",
            click=click,
            conversions=int(click and at % 4 == 0),
            closed=True,
            as_of=START_MS + 10**7,
            variant_id=text.variant_id,
            context=CONTEXT if at % 3 else {"segment": "all"},
            reward=reward,
        )
        critic.add(shown, made, text.slots)
    for _ in range(3):
        critic.fit()
    return critic


def by_hand(critic: Critic, made: Campaign, text: str, context: dict[str, str]) -> np.ndarray:
    """Click probability of a text by each head, feature by feature from the heads themselves. float64[H]."""
    heads, columns = critic._outputs["click"], critic._rows.columns
    shown = candidate(text)
    parts, features = encoded(made, "all", shown.variant_id, shown.slots)
    sets = (features, context_features(context_names(context), parts))
    total = np.full(CONFIG.heads, critic._offset)
    for features in sets:
        for name, family in zip(features.ids, features.families, strict=True):
            column = columns.get(int(name))
            if column is not None:
                total += heads.weights()[column]
            else:
                total += (prior_draws(np.array([name]), CONFIG.heads, heads.salt) * heads.scale[family])[0]
    return np.asarray(expit(total))


@pytest.mark.parametrize("context", [{}, {"device": "mobile"}, {"device": "toaster"}], ids=str)
def test_its_scores_are_the_heads_own_predictions(context: dict[str, str]) -> None:
    made = campaign()
    critic = taught(made)
    view = critic.view()
    scores = view.score(view.encode(made, "all", [candidate(text) for text in TEXTS]), context)
    assert scores.shape == (CONFIG.heads, len(TEXTS))
    assert scores.dtype == np.float64
    for at, text in enumerate(TEXTS):
        np.testing.assert_allclose(scores[:, at], by_hand(critic, made, text, context), rtol=1e-4)
    assert scores[:, 0].mean() > scores[:, 1].mean() + 0.2


def test_what_nobody_has_met_is_its_prior_in_every_text_that_has_it() -> None:
    made = campaign()
    critic = taught(made)
    critic.config = replace(CONFIG, spread=1.0)
    texts = ["Zebras never met before", f"{TEXTS[0]} zebras", "Zebras", TEXTS[1]]
    scores = critic.view().score(critic.view().encode(made, "all", [candidate(text) for text in texts]), {})
    for at, text in enumerate(texts):
        np.testing.assert_allclose(scores[:, at], by_hand(critic, made, text, {}), rtol=1e-4)


def test_the_spread_draws_the_heads_towards_their_mean_in_log_odds() -> None:
    made = campaign()
    texts = [candidate(text) for text in (*TEXTS, "Never met before")]
    far, near = (
        logit(view.score(view.encode(made, "all", texts), {}))
        for view in (taught(made, config=replace(CONFIG, spread=spread)).view() for spread in (1.0, 0.5))
    )
    np.testing.assert_allclose(near - near.mean(axis=0), 0.5 * (far - far.mean(axis=0)), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(near.mean(axis=0), far.mean(axis=0), rtol=1e-3, atol=1e-4)


def test_it_survives_its_bytes() -> None:
    made = campaign(reward=PAID)
    view = taught(made, PAID).view()
    back = CriticView.from_bytes(view.to_bytes(), "v")
    assert back.version == view.version
    assert back.to_bytes() == view.to_bytes()
    texts = [candidate(text) for text in TEXTS]
    for context in ({}, CONTEXT):
        np.testing.assert_array_equal(
            back.score(back.encode(made, "all", texts), context), view.score(view.encode(made, "all", texts), context)
        )


def test_two_critics_of_one_history_are_one_version() -> None:
    made = campaign()
    one, same = taught(made), taught(made)
    assert one.view().to_bytes() == same.view().to_bytes()
    same.fit()
    assert one.view().version != same.view().version


def test_before_any_data_every_mean_is_near_the_first_rate_and_the_heads_disagree() -> None:
    made = campaign()
    view = Critic(CONFIG).view()
    scores = view.score(view.encode(made, "all", [candidate(text) for text in TEXTS]), {})
    assert np.isfinite(scores).all()
    assert (scores.std(axis=0) > 0).all()
    logits = np.log(scores / (1 - scores)).mean(axis=0)
    np.testing.assert_allclose(1 / (1 + np.exp(-logits)), CONFIG.first_rate, rtol=1e-3)


def test_paid_conversions_raise_the_value_of_texts_that_convert() -> None:
    clicks, paid = campaign(), campaign(reward=PAID)
    texts = [candidate(text) for text in TEXTS]
    plain, rich = taught(clicks).view(), taught(paid, PAID).view()
    only = plain.score(plain.encode(clicks, "all", texts), {}).mean(axis=0)
    more = rich.score(rich.encode(paid, "all", texts), {}).mean(axis=0)
    # Half of the first text's clicks convert, at 4 each: its value is near p (1 + 2).
    assert more[0] == pytest.approx(only[0] * 3.0, rel=0.25)


def test_the_memory_of_contexts_is_bounded() -> None:
    made = campaign()
    view = taught(made).view()
    features = view.encode(made, "all", [candidate(TEXTS[0])])
    for at in range(CONTEXTS_KEPT + 20):
        view.score(features, {"n": f"v{at}"})
    assert len(features.by_context) == CONTEXTS_KEPT


def spoiled(name: str, change: object) -> bytes:
    tensors = load(taught(campaign()).view().to_bytes())
    if change is None:
        del tensors[name]
    else:
        tensors[name] = change(tensors[name])  # type: ignore[operator]
    return save(tensors)


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("click.weights", None, "missing"),
        ("ids", None, "missing"),
        ("click.prior", None, "missing"),
        ("click.prior", lambda x: x[:1], "prior"),
        ("click.prior", lambda x: x * np.nan, "NaN"),
        ("click.weights", lambda x: x[:-1], "shape"),
        ("click.weights", lambda x: x[:, 0], "shape"),
        ("click.weights", lambda x: x.astype(np.float64), "float64"),
        ("click.weights", lambda x: x * np.float32(np.inf), "NaN"),
        ("click.scale", lambda x: x * np.float32(np.nan), "NaN"),
        ("click.scale", lambda x: x[:-1], "scale"),
        ("ids", lambda x: x[::-1].copy(), "ascending"),
        ("ids", lambda x: x.astype(np.float32), "ids"),
    ],
)
def test_a_damaged_critic_is_refused_with_its_name(name: str, change: object, reason: str) -> None:
    with pytest.raises(StoreError, match=reason) as refused:
        CriticView.from_bytes(spoiled(name, change), "000007-abc")
    assert str(refused.value).startswith("000007-abc")


@pytest.mark.parametrize("content", [b"", b"\x80\x04N.", b"{}" * 40], ids=["empty", "pickle", "no header"])
def test_bytes_that_are_no_safetensors_are_refused(content: bytes) -> None:
    with pytest.raises(StoreError, match="not a safetensors file"):
        CriticView.from_bytes(content, "000007-abc")


def test_there_is_a_scale_for_each_family() -> None:
    assert load(Critic(CONFIG).view().to_bytes())["click.scale"].shape == PRIOR_SCALE.shape
