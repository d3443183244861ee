"""The policy on a GPU: the same distribution as on the CPU, and bfloat16 for large models. Skipped, and says so, where
torch finds none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from optimizer.learning import base as base_module
from optimizer.learning.base import BaseModel, load_policy
from optimizer.learning.policy import LanguagePolicy, Sample
from optimizer.learning.prompt import Prompt, build_prompt
from optimizer.types import Decode, Slot
from tests.learning_rig import campaign, settle

GPU = "cuda"
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device here")
DECODES = [Decode(), Decode(1.3, 12), Decode(0.9, 0, 0.8), Decode(1.0, 50, 0.95)]
TEXTS = 64


def prompt() -> Prompt:
    return build_prompt(campaign(slots=(Slot("headline", 40), Slot("body", 30))), "all")


def drawn(policy: LanguagePolicy, decode: Decode) -> list[Sample]:
    generator = torch.Generator(device=policy.device).manual_seed(5)
    return policy.sample([prompt()], TEXTS, decode, generator)[0]


def scored(policy: LanguagePolicy, texts: list[Sample], decode: Decode) -> np.ndarray:
    with torch.no_grad():
        found = policy.score([prompt()] * len(texts), [text.token_ids for text in texts], decode)
    return found.log_prob.double().cpu().numpy()


def logged(texts: list[Sample]) -> np.ndarray:
    return np.array([sum(map(sum, text.log_probs)) for text in texts])


def on(place: str, base: BaseModel, monkeypatch: pytest.MonkeyPatch) -> LanguagePolicy:
    monkeypatch.setenv("ADLOOP_DEVICE", place)
    return load_policy(base)


@pytest.mark.parametrize("decode", DECODES, ids=str)
def test_what_is_logged_recomputes_there_and_on_the_cpu(
    decode: Decode, tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = settle(tmp_path, tiny_model_folder)
    policy = on(GPU, base, monkeypatch)
    assert policy.device.type == GPU
    texts = drawn(policy, decode)
    np.testing.assert_allclose(scored(policy, texts, decode), logged(texts), atol=1e-4)
    np.testing.assert_allclose(scored(on("cpu", base, monkeypatch), texts, decode), logged(texts), atol=1e-3)


@pytest.mark.parametrize("decode", DECODES, ids=str)
def test_a_large_model_in_bfloat16_calls_nothing_impossible_that_it_wrote(
    decode: Decode, llama_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base_module, "WHOLE_PARAMETERS", 0)
    policy = on(GPU, settle(tmp_path, llama_model_folder), monkeypatch)
    assert {value.dtype for value in policy.model.parameters()} >= {torch.bfloat16}
    texts = drawn(policy, decode)
    off = scored(policy, texts, decode) - logged(texts)
    assert np.isfinite(off).all()
    # Some tenths of a nat a text at the most: which of two equal tokens the cut keeps is a matter of rounding.
    assert np.abs(off).mean() < 0.1


def test_a_step_moves_the_weights_there(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = on(GPU, settle(tmp_path, tiny_model_folder), monkeypatch)
    decode = Decode()
    texts = drawn(policy, decode)
    optimizer = torch.optim.Adam(list(policy.trainable().values()), lr=1e-3)
    before = scored(policy, texts[:1], decode)
    found = policy.score([prompt()], [texts[0].token_ids], decode)
    (-found.log_prob.sum() + 0.1 * found.kl.sum()).backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    assert scored(policy, texts[:1], decode)[0] > before[0]
