"""The language-model policy: what is logged recomputes, what is sampled has the probability that is logged."""

from __future__ import annotations

import base64
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from optimizer.learning import base as base_module
from optimizer.learning import policy as policy_module
from optimizer.learning.base import load_policy
from optimizer.learning.batches import Batch
from optimizer.learning.policy import Cancelled, LanguagePolicy, Sample
from optimizer.learning.prompt import Prompt, build_prompt, summarise
from optimizer.maths.decoding import decoding_log_probs
from optimizer.types import Decode, Product, Slot
from tests.learning_rig import campaign, settle

DECODES = [
    Decode(),
    Decode(temperature=0.7),
    Decode(temperature=1.3, top_k=12),
    Decode(temperature=0.9, top_p=0.8),
    Decode(temperature=1.1, top_k=30, top_p=0.9),
]
ONE = (Slot("headline", 40),)
TWO = (Slot("headline", 40), Slot("body", 30))


@pytest.fixture(scope="module")
def tiny(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> LanguagePolicy:
    return load_policy(settle(tmp_path_factory.mktemp("data"), tiny_model_folder))


@pytest.fixture(scope="module")
def llama(llama_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> LanguagePolicy:
    return load_policy(settle(tmp_path_factory.mktemp("data"), llama_model_folder))


@pytest.fixture(scope="module")
def lora(llama_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> LanguagePolicy:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base_module, "WHOLE_PARAMETERS", 0)
        return load_policy(settle(tmp_path_factory.mktemp("data"), llama_model_folder))


def prompts(slots: tuple[Slot, ...]) -> list[Prompt]:
    long = campaign(slots=slots, product=Product(name="Thing 7", brand="Acme"), audience="people who walk to work")
    return [build_prompt(campaign(slots=slots), "all"), build_prompt(long, "young")]


def draw(
    policy: LanguagePolicy, slots: tuple[Slot, ...], decode: Decode, seed: int = 5, n: int = 6
) -> list[list[Sample]]:
    return policy.sample(prompts(slots), n, decode, torch.Generator().manual_seed(seed))


def shake(policy: LanguagePolicy, seed: int, size: float = 0.05) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in policy.trainable().values():
            value.add_(torch.randn(value.shape, generator=generator) * size)


def positions_of(
    policy: LanguagePolicy, asked: list[Prompt], token_ids: list[tuple[tuple[int, ...], ...]]
) -> tuple[Batch, torch.Tensor]:
    """All texts as one batch, with the logits of its sampled positions."""
    rows = policy._rows(asked, token_ids)
    read = policy._read(rows, reference=False)
    batch = policy._batch(rows, np.arange(len(asked)), read)
    return batch, policy._logits(batch, read)


@pytest.mark.parametrize("decode", DECODES, ids=str)
@pytest.mark.parametrize("slots", [ONE, TWO], ids=["one slot", "two slots"])
@pytest.mark.parametrize("kind", ["tiny", "llama", "lora"])
def test_log_probs_recompute_to_1e_4(
    kind: str, slots: tuple[Slot, ...], decode: Decode, request: pytest.FixtureRequest
) -> None:
    policy: LanguagePolicy = request.getfixturevalue(kind)
    drawn = draw(policy, slots, decode)
    asked = [prompt for prompt, texts in zip(prompts(slots), drawn, strict=True) for _ in texts]
    flat = [sample for texts in drawn for sample in texts]
    logged = np.array([sum(map(sum, sample.log_probs)) for sample in flat])
    with torch.no_grad():
        scored = policy.score(asked, [sample.token_ids for sample in flat], decode)
    np.testing.assert_allclose(scored.log_prob.double().numpy(), logged, atol=1e-4)
    assert all(len(ids) == len(logs) for s in flat for ids, logs in zip(s.token_ids, s.log_probs, strict=True))
    # And a second time from the cached reference, in another order and batch.
    with torch.no_grad():
        again = policy.score(asked[::-1][:5], [sample.token_ids for sample in flat[::-1][:5]], decode)
    np.testing.assert_allclose(again.log_prob.double().numpy(), logged[::-1][:5], atol=1e-4)


def test_score_agrees_with_one_forward_pass_by_hand(tiny: LanguagePolicy) -> None:
    decode = Decode(temperature=0.8)
    prompt = prompts(TWO)[1]
    sample = draw(tiny, TWO, decode)[1][0]
    ids, wanted = tiny.prompt_ids(prompt), []
    for slot, tokens in zip(TWO, sample.token_ids, strict=True):
        ids += tiny.codec.encode(f"{slot.name}:")
        for token in tokens:
            wanted.append((len(ids) - 1, token))
            ids.append(token)
    with torch.no_grad():
        logits = tiny.model(input_ids=torch.tensor([ids])).logits[0]
        logs = decoding_log_probs(logits, Decode(0.8, 0, 1.0), tiny.codec.forbidden(tiny.vocab_size))
        scored = tiny.score([prompt], [sample.token_ids], decode)
    by_hand = sum(float(logs[position, token]) for position, token in wanted)
    assert float(scored.log_prob[0]) == pytest.approx(by_hand, abs=1e-4)


def test_kl_is_zero_at_the_reference_and_the_exact_divergence_away_from_it(
    tiny_model_folder: Path, tmp_path: Path
) -> None:
    policy = load_policy(settle(tmp_path, tiny_model_folder))
    decode = Decode()
    prompt = prompts(ONE)[0]
    sample = draw(policy, ONE, decode)[0][0]
    assert abs(float(policy.score([prompt], [sample.token_ids], decode).kl[0].detach())) < 1e-5
    first = policy.model(input_ids=torch.tensor([[1, 2, 3]])).logits.detach().clone()
    shake(policy, 3)
    assert not torch.equal(first, policy.model(input_ids=torch.tensor([[1, 2, 3]])).logits)
    reference = load_policy(settle(tmp_path, tiny_model_folder))
    ids = policy.prompt_ids(prompt) + policy.codec.encode("headline:")
    start = len(ids)
    ids += list(sample.token_ids[0])
    barred = policy.codec.forbidden(policy.vocab_size)
    with torch.no_grad():
        p, q = (
            decoding_log_probs(
                model(input_ids=torch.tensor([ids])).logits[0, start - 1 : -1], Decode(1.0, 0, 1.0), barred
            )
            for model in (policy.model, reference.model)
        )
        scored = policy.score([prompt], [sample.token_ids], decode)
    by_hand = torch.nn.functional.kl_div(q, p, reduction="none", log_target=True).nan_to_num(0.0).sum()
    assert float(scored.kl[0]) == pytest.approx(float(by_hand), rel=1e-4)
    assert float(scored.kl[0]) > 0.01


def test_adapters_switched_off_are_the_reference(llama_model_folder: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base_module, "WHOLE_PARAMETERS", 0)
        policy = load_policy(settle(tmp_path, llama_model_folder))
    assert policy.trainable()
    assert all("lora_" in name for name in policy.trainable())
    sample = draw(policy, ONE, Decode())[0][0]
    ask = (prompts(ONE)[:1], [sample.token_ids], Decode())
    before = policy.score(*ask)
    assert abs(float(before.kl[0].detach())) < 1e-5
    shake(policy, 4, 0.3)
    after = policy.score(*ask)
    assert float(after.kl[0].detach()) > 1e-3
    torch.testing.assert_close(after.anchor, before.anchor, rtol=0, atol=1e-5)


def test_sampling_frequencies_match_the_probabilities(llama: LanguagePolicy) -> None:
    # First tokens of 4,000 samples against the exact distribution, rare ones pooled: chi-square, false alarm 1e-3.
    decode = Decode(temperature=0.6, top_k=40)
    prompt = Prompt("ad | x\n", (Slot("headline", 2),))
    n = 4_000
    drawn = llama.sample([prompt], n, decode, torch.Generator().manual_seed(11))[0]
    first = np.bincount([sample.token_ids[0][0] for sample in drawn], minlength=llama.vocab_size)
    ids = llama.prompt_ids(prompt) + llama.codec.encode("headline:")
    with torch.no_grad():
        logits = llama.model(input_ids=torch.tensor([ids])).logits[0, -1]
        exact = (
            decoding_log_probs(logits, Decode(0.6, 40, 1.0), llama.codec.forbidden(llama.vocab_size))
            .exp()
            .double()
            .numpy()
        )
    assert np.count_nonzero(exact) == 40
    assert first[exact == 0].sum() == 0
    common = exact * n >= 5
    observed = np.append(first[common], first[~common].sum())
    expected = np.append(exact[common], exact[~common].sum()) * n
    keep = expected > 0
    assert stats.chisquare(observed[keep], expected[keep] * n / expected[keep].sum()).pvalue > 1e-3


def test_the_same_generator_draws_the_same_and_another_does_not(tiny: LanguagePolicy) -> None:
    assert draw(tiny, TWO, Decode(), seed=9) == draw(tiny, TWO, Decode(), seed=9)
    assert draw(tiny, TWO, Decode(), seed=9) != draw(tiny, TWO, Decode(), seed=10)


def test_a_trained_model_writes_its_slots_and_ends_them(tiny: LanguagePolicy) -> None:
    samples = [sample for texts in draw(tiny, TWO, Decode(temperature=0.7), n=16) for sample in texts]
    done = [sample for sample in samples if sample.finished]
    assert len(done) >= len(samples) // 2
    ends = tiny.codec.line_enders(tiny.vocab_size)
    for sample in done:
        assert list(sample.slots) == ["headline", "body"]
        assert all("\n" not in text and text == text.strip() for text in sample.slots.values())
        assert all(bool(ends[tokens[-1]]) and not any(ends[list(tokens[:-1])]) for tokens in sample.token_ids)
    embedding = np.frombuffer(base64.b64decode(samples[0].embedding), dtype="<f2")
    assert embedding.shape == (32,)
    assert np.isfinite(embedding).all()


@pytest.mark.parametrize("slots", [TWO, (Slot("headline", 41),), (Slot("title", 40),)])
def test_prompts_with_unequal_slots_are_refused(tiny: LanguagePolicy, slots: tuple[Slot, ...]) -> None:
    mixed = [*prompts(ONE), *prompts(slots)]
    with pytest.raises(ValueError, match=r"got slots headline \(40\) and .*in a call of their own"):
        tiny.sample(mixed, 1, Decode(), torch.Generator().manual_seed(0))


def test_cancelled_stops_sampling_at_the_next_token(tiny: LanguagePolicy) -> None:
    asked = 0

    def gone() -> bool:
        nonlocal asked
        asked += 1
        return asked > 3

    with pytest.raises(Cancelled):
        tiny.sample(prompts(ONE), 4, Decode(), torch.Generator().manual_seed(0), gone)
    assert asked == 4


def test_special_tokens_in_campaign_text_are_spelled_out(tiny: LanguagePolicy) -> None:
    hostile = campaign(product=Product(name="<|end|>", category="a <|end|> b"))
    ids = tiny.prompt_ids(build_prompt(hostile, "all"))
    assert tiny.codec.end_id not in ids
    assert "<|end|>" in tiny.codec.decode(ids)


def test_what_is_never_sampled_has_no_probability(llama: LanguagePolicy) -> None:
    barred = llama.codec.forbidden(llama.vocab_size)
    logs = decoding_log_probs(torch.zeros(llama.vocab_size), Decode(1.0, 0, 1.0), barred)
    assert torch.isinf(logs[barred]).all()
    assert float(logs.exp().sum()) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("many", [2, 6, 10])
def test_many_slots_with_long_names_fit_the_context(tiny: LanguagePolicy, many: int) -> None:
    slots = tuple(Slot(f"slot-with-a-long-name-{at}", 200) for at in range(many))
    prompt = Prompt("ad | " + "word " * 8 + "\n", slots)
    if not tiny.fits(prompt):
        with pytest.raises(ValueError, match="context"):
            tiny.sample([prompt], 1, Decode(), torch.Generator().manual_seed(0))
        return
    sample = tiny.sample([prompt], 2, Decode(temperature=2.0), torch.Generator().manual_seed(0))[0][0]
    assert len(sample.slots) == many


@pytest.mark.parametrize("slots", [ONE, TWO], ids=["one slot", "two slots"])
@pytest.mark.parametrize("name", ["tiny", "llama"])
def test_a_text_goes_on_from_its_beginning_with_the_probabilities_of_the_rest(
    name: str, slots: tuple[Slot, ...], request: pytest.FixtureRequest
) -> None:
    policy: LanguagePolicy = request.getfixturevalue(name)
    prompt, decode = prompts(slots)[0], Decode()
    whole = draw(policy, slots, decode, n=2)[0]
    starts = [text.token_ids[: at + 1] for text in whole for at in range(len(slots))]
    starts = [(*start[:-1], start[-1][:-1]) for start in starts]  # what is still missing: a token at least
    drawn = policy.sample([prompt], len(starts), decode, torch.Generator().manual_seed(5), starts=[starts])[0]
    with torch.no_grad():
        scored = policy.score([prompt] * len(drawn), [text.token_ids for text in drawn], decode).log_prob
    for start, text, of_all in zip(starts, drawn, scored.tolist(), strict=True):
        for at, tokens in enumerate(start):
            assert text.token_ids[at][: len(tokens)] == tokens
            if at < len(start) - 1:
                assert (text.token_ids[at], text.log_probs[at]) == (tokens, ())
            else:
                assert len(text.log_probs[at]) == len(text.token_ids[at]) - len(tokens) > 0
        # The logged probabilities are those of the tokens that were drawn, after those that were given.
        with torch.no_grad():
            packed, logits = positions_of(policy, [prompt], [text.token_ids])
            each = torch.log_softmax(logits.masked_fill(policy._barred, float("-inf")), -1)
            logged = each.gather(1, packed.targets[:, None])[:, 0]
        given, expected, begin = sum(text.log_probs, ()), [], 0
        for tokens, logs in zip(text.token_ids, text.log_probs, strict=True):
            expected += logged[begin + len(tokens) - len(logs) : begin + len(tokens)].tolist()
            begin += len(tokens)
        np.testing.assert_allclose(given, expected, atol=1e-4)
        assert of_all <= sum(given) + 1e-3


@pytest.mark.parametrize("name", ["tiny", "llama"])
def test_prompts_of_unequal_length_do_not_disturb_each_others_texts(name: str, request: pytest.FixtureRequest) -> None:
    policy: LanguagePolicy = request.getfixturevalue(name)
    slots, decode = (Slot("headline"),), Decode()
    short, long = (Prompt(summarise("ad", segment=segment), slots) for segment in ("all", "people who run far"))
    assert len(policy.prompt_ids(short)) < len(policy.prompt_ids(long))
    words = [text.token_ids[0] for text in policy.sample([short], 2, decode, torch.Generator().manual_seed(2))[0]]
    starts = [[(words[0][:1],), ((),)], [((),), (words[1][:-1],)]]
    drawn = policy.sample([short, long], 2, decode, torch.Generator().manual_seed(3), starts=starts)
    for prompt, texts, begun in zip((short, long), drawn, starts, strict=True):
        with torch.no_grad():
            packed, logits = positions_of(policy, [prompt] * 2, [text.token_ids for text in texts])
        each = torch.log_softmax(logits.masked_fill(policy._barred, float("-inf")), -1)
        logged = each.gather(1, packed.targets[:, None])[:, 0]
        for at, (text, start) in enumerate(zip(texts, begun, strict=True)):
            own = logged[packed.row == at].tolist()[len(start[0]) :]
            assert text.token_ids[0][: len(start[0])] == start[0]
            np.testing.assert_allclose(text.log_probs[0], own, atol=1e-4)


@pytest.mark.parametrize("kind", ["tiny", "llama", "lora"])
def test_texts_in_many_batches_are_read_as_each_is_alone(
    kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values and gradient; some compared with the reference, some not; also with what the reference said before."""
    policy: LanguagePolicy = request.getfixturevalue(kind)
    before = {name: value.detach().clone() for name, value in policy.trainable().items()}
    request.addfinalizer(lambda: policy.put(before))
    shake(policy, 3, 0.02)
    decode = Decode(0.8, 50)
    drawn = draw(policy, TWO, decode, n=7)
    asked = [prompt for prompt, texts in zip(prompts(TWO), drawn, strict=True) for _ in texts]
    tokens = [text.token_ids for texts in drawn for text in texts]
    mixed = np.random.default_rng(1).permutation(len(tokens))
    asked, tokens = [asked[at] for at in mixed], [tokens[at] for at in mixed]
    compared = np.arange(len(tokens)) % 3 != 1
    by_log, by_kl = torch.rand(2, len(tokens), generator=torch.Generator().manual_seed(1))

    def gradient(log_prob: torch.Tensor, kl: torch.Tensor) -> list[torch.Tensor]:
        return list(torch.autograd.grad((by_log * log_prob + by_kl * kl).sum(), list(policy.trainable().values())))

    alone = [policy.score([prompt], [ids], decode) for prompt, ids in zip(asked, tokens, strict=True)]
    log_prob, entropy = torch.cat([one.log_prob for one in alone]), torch.cat([one.entropy for one in alone])
    kl = torch.cat([one.kl for one in alone]) * torch.tensor(compared)
    wanted = gradient(log_prob, kl)
    surprise = [policy.surprise([prompt], [ids], decode)[0] for prompt, ids in zip(asked, tokens, strict=True)]
    monkeypatch.setattr(policy_module, "READ_AT_ONCE", 3)
    first = policy.score(asked, tokens, decode, compared=compared)
    assert len(first.anchor) == 3
    for found in (first, policy.score(asked, tokens, decode, first.anchor, compared)):
        torch.testing.assert_close(found.log_prob, log_prob, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found.kl, kl, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(found.entropy, entropy, rtol=1e-4, atol=1e-4)
        for mine, theirs in zip(gradient(found.log_prob, found.kl), wanted, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4 * max(1.0, float(theirs.abs().max())))
    assert float(kl.detach().abs().max()) > 0.01
    assert policy.surprise(asked, tokens, decode) == pytest.approx(surprise, abs=1e-4)
    same = policy.score(asked, tokens, Decode(), policy.anchor(asked, tokens))
    assert float(same.kl.detach().abs().max()) < 1e-4
    with pytest.raises(ValueError, match="zip"):
        policy.score(asked, tokens, decode, first.anchor[:-1], compared)


def test_no_text_grows_over_its_slots_limit_beside_a_shorter_beginning(tiny: LanguagePolicy) -> None:
    prompt = prompts(ONE)[0]
    limit = tiny.slot_tokens(prompt)[0]
    words = [token for token in range(len(tiny._ends)) if not tiny._ends[token] and not bool(tiny._barred[token])]
    starts = [((words[7],) * given,) for given in (1, limit - 2, 3, limit - 1)] * 8
    decode = Decode(temperature=3.0)
    drawn = tiny.sample([prompt], len(starts), decode, torch.Generator().manual_seed(1), starts=[starts])[0]
    lengths = [len(text.token_ids[0]) for text in drawn]
    assert max(lengths) == limit
    assert not any(text.finished for text in drawn if not tiny._ends[text.token_ids[0][-1]])
