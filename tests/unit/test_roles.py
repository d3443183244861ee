"""What serving needs of the language model: the prompt's length at PUT, and samples for one request alone."""

from __future__ import annotations

import json
import re
import shutil
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from optimizer.clock import ManualClock
from optimizer.learning import policy
from optimizer.learning.corpus import generate_corpus
from optimizer.stream.open import open_log
from optimizer.types import Campaign, Product, Slot
from serving import roles
from serving.problems import Problem
from serving.roles import LearningOnce, PromptGuard, Writer, make_generator


def campaign(facts: tuple[str, ...] = ()) -> Campaign:
    return Campaign(campaign_id="c1", product=Product(name="Run", facts=facts), controls=({"headline": "Run"},))


LONG = ("every step is light and dry and warm " * 12,)  # 444 bytes: too long to be sure about


def test_line_13_a_prompt_longer_than_the_model_takes_is_refused(tmp_path: Path, tiny_model_folder: Path) -> None:
    """The model folder holds 128 positions, half of them for the prompt."""
    guard = PromptGuard(tmp_path, expected=True, model=str(tiny_model_folder))
    assert guard(campaign()) is None
    error = guard(campaign(LONG))
    assert error is not None
    assert (error.field, error.expected) == ("product", "at most 64 tokens for this model")


def test_the_model_that_a_data_folder_was_begun_with_counts(tmp_path: Path, tiny_model_folder: Path) -> None:
    (tmp_path / "base.json").write_text(json.dumps({"model": str(tiny_model_folder), "digest": "x"}))
    assert PromptGuard(tmp_path, expected=False)(campaign(LONG)) is not None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"model": 3, "digest": "x"}', b"\xff", b"[" * 100_000])
@pytest.mark.parametrize("expected", [True, False])
def test_a_damaged_choice_of_model_is_a_503_that_names_the_file(tmp_path: Path, content: bytes, expected: bool) -> None:
    (tmp_path / "base.json").write_bytes(content)
    guard = PromptGuard(tmp_path, expected)
    with pytest.raises(Problem, match=r"base\.json: can't be read") as refusal:
        guard(campaign(LONG))
    assert refusal.value.status == 503
    assert [error.field for error in refusal.value.errors] == ["base.json"]
    assert guard(campaign()) is None  # what is short enough needs no model to tell


@pytest.mark.parametrize(
    ("file", "content"),
    [
        *(("config.json", content) for content in (b"", b"[]", b'{"n_positions": "x"}', b'{"n_positions": -5}')),
        ("config.json", b'{"max_position_embeddings": 1e999}'),
        ("config.json", b"[" * 100_000),
        ("tokenizer.json", b""),
        ("tokenizer.json", b"[]"),
    ],
)
def test_a_damaged_model_is_a_503_too(tmp_path: Path, tiny_model_folder: Path, file: str, content: bytes) -> None:
    folder = Path(shutil.copytree(tiny_model_folder, tmp_path / "my-model"))
    (folder / file).write_bytes(content)
    with pytest.raises(Problem, match="my-model") as refusal:
        PromptGuard(tmp_path, expected=True, model=str(folder))(campaign(LONG))
    assert refusal.value.status == 503


def test_while_the_model_is_made_only_sure_prompts_pass(tmp_path: Path) -> None:
    guard = PromptGuard(tmp_path, expected=True)
    assert guard(campaign()) is None
    with pytest.raises(Problem) as refusal:
        guard(campaign(LONG))
    assert refusal.value.status == 503


@pytest.mark.parametrize("expected", [True, False])
def test_what_is_too_long_in_any_case_needs_no_model_to_be_refused(tmp_path: Path, expected: bool) -> None:
    guard = PromptGuard(tmp_path, expected)
    error = guard(campaign(("words and words " * 25,) * 50))
    assert error is not None
    assert (error.field, error.expected) == ("product", "at most 256 tokens for the tiny model")
    if not expected:
        assert guard(campaign(LONG)) is None  # it may be, or not: the learner's model decides
    # A model of a hub may take it.
    assert PromptGuard(tmp_path, expected=False, model="some/model")(campaign(("words and words " * 25,) * 50)) is None
    (tmp_path / "base.json").write_text(json.dumps({"model": "some/model", "digest": "x"}))
    assert PromptGuard(tmp_path, expected=False)(campaign(("words and words " * 25,) * 50)) is None


def test_no_word_that_the_tiny_model_learns_is_as_long_as_the_bound_takes_for_a_token() -> None:
    """Its tokens end where words do."""
    words = {word for row in generate_corpus(1, 3_000) for word in re.findall(r"\w+", str(row))}
    assert 10 < max(len(word.encode()) for word in words) < roles.TOO_LONG_PROMPT_BYTES // roles.SURE_PROMPT_BYTES


def test_slots_too_many_to_be_sure_about_wait_too(tmp_path: Path) -> None:
    slots = tuple(Slot(f"slot-{i:02d}-of-sixteen") for i in range(16))
    wide = msgspec.structs.replace(campaign(), slots=slots, controls=({slot.name: "Run" for slot in slots},))
    with pytest.raises(Problem) as refusal:
        PromptGuard(tmp_path, expected=True)(wide)
    assert refusal.value.status == 503
    narrow = msgspec.structs.replace(wide, slots=slots[:6])
    assert PromptGuard(tmp_path, expected=True)(narrow) is None


def test_the_room_of_a_slot_is_the_models_own() -> None:
    assert roles.LEAST_SLOT_TOKENS == policy.LEAST_SLOT_TOKENS


def test_where_no_model_will_ever_be_every_prompt_passes(tmp_path: Path) -> None:
    assert PromptGuard(tmp_path, expected=False)(campaign(LONG)) is None


class SlowGenerator:
    """Steps and samples that last until they are let go."""

    def __init__(self) -> None:
        self.in_step, self.go_on = threading.Event(), threading.Event()
        self.closed = 0

    def step(self) -> bool:
        self.in_step.set()
        assert self.go_on.wait(60)
        return True

    def fresh(self, _campaign: Campaign, _segment: str, _cancelled: Callable[[], bool]) -> Any:
        return SimpleNamespace(pool_id="fresh.1")

    def close(self) -> None:
        self.closed += 1


def started() -> tuple[Writer, SlowGenerator, threading.Thread]:
    writer, generator = Writer(), SlowGenerator()
    writer.role(lambda: generator)  # type: ignore[arg-type, return-value]
    thread = threading.Thread(target=writer.step)
    thread.start()
    assert generator.in_step.wait(60)
    return writer, generator, thread


def test_a_fresh_sample_waits_for_the_step_and_goes_before_the_next() -> None:
    writer, generator, thread = started()
    found: list[Any] = []
    asking = threading.Thread(target=lambda: found.append(writer.fresh(campaign(), "all", lambda: False)))
    asking.start()
    while not writer._asking:
        threading.Event().wait(0.001)
    assert writer.step() is False  # a request waits: the generator does not begin anew
    generator.go_on.set()
    asking.join(60)
    thread.join(60)
    assert found[0].pool_id == "fresh.1"


def test_a_client_that_leaves_while_it_waits_is_not_waited_for() -> None:
    writer, generator, thread = started()
    assert writer.fresh(campaign(), "all", lambda: True) is None
    generator.go_on.set()
    thread.join(60)


def test_the_writer_closes_its_generator_once_nobody_samples_with_it() -> None:
    writer, generator, thread = started()
    closing = threading.Thread(target=writer.close)
    closing.start()
    while writer._generator is not None:
        threading.Event().wait(0.001)
    assert generator.closed == 0
    generator.go_on.set()
    closing.join(60)
    thread.join(60)
    assert generator.closed == 1
    writer.close()
    assert generator.closed == 1
    assert writer.step() is False
    assert writer.fresh(campaign(), "all", lambda: False) is None


def test_without_a_generator_there_is_no_sample() -> None:
    assert Writer().fresh(campaign(), "all", lambda: False) is None


def test_each_life_of_the_generator_has_random_numbers_of_its_own(tmp_path: Path, tiny_model_folder: Path) -> None:
    """Pools' ids come from them: those of an earlier life may not come again."""
    clock, opened = ManualClock(), LearningOnce(tmp_path, str(tiny_model_folder))
    with closing(open_log(f"sqlite:///{tmp_path}/log.db", clock)) as log:
        draws = []
        for _ in range(2):
            with closing(make_generator(log, opened, clock, PromptGuard(tmp_path, expected=False))) as generator:
                draws.append(generator._rng.integers(2**62))
    assert draws[0] != draws[1]
