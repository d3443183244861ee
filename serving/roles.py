"""The background roles of `--all`, built in their threads, and what serving needs of the language model.

The learning side is imported when a role is made: the server itself is up before torch is loaded.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from optimizer.clock import Clock
from optimizer.errors import ConfigError, FieldError, StoreError
from optimizer.learning.pin import PIN_FILE, read_pin
from optimizer.learning.prompt import build_prompt
from optimizer.store import PolicyStore
from optimizer.stream.log import EventLog
from optimizer.types import Campaign, PolicyRecord, Pool
from serving.guardrails import Gate
from serving.loop import Steps
from serving.problems import Problem, unavailable

if TYPE_CHECKING:
    from optimizer.learning.policy import LanguagePolicy
    from optimizer.learning.run import Learning
    from optimizer.learning.tokenizer import TextCodec
    from optimizer.learning.view import CriticView
    from serving.generator import Generator

logger = logging.getLogger(__name__)

# The tiny model takes 256 tokens of prompt and 256 of slots, and no text has more byte-level BPE tokens than bytes.
SURE_PROMPT_BYTES = 256
# Its longest tokens are words of 17 bytes: what is longer than this does not fit, whatever it says.
TOO_LONG_PROMPT_BYTES = 256 * 32
LEAST_SLOT_TOKENS = 8  # the room for text that a slot must have beside its `name:` (optimizer/learning/policy.py)
FRESH_WAIT_S = 0.05
# transformers is safe for neither of two things in two threads at once: its lazy import, and building a model from
# files (while it does, torch makes tensors without data in every thread).
LOADING = threading.RLock()


def policies_folder(data: Path) -> Path:
    """Where the versions of a data folder stand."""
    return data / "policies"


def load_critic(data: Path) -> Callable[[PolicyRecord], CriticView]:
    """Gives the critic of a policy version out of the data folder's store. Raises StoreError where it is refused."""

    def load(record: PolicyRecord) -> CriticView:
        from optimizer.learning.view import CriticView

        content = PolicyStore(policies_folder(data)).critic_bytes(record.version)
        return CriticView.from_bytes(content, record.version)

    return load


def files_damage(data: Path) -> Callable[[str], str | None]:
    """Says why a version in the data folder's store cannot be used, or None where its files are whole."""

    def damage(version: str) -> str | None:
        try:
            PolicyStore(policies_folder(data)).check(version)
        except StoreError as error:
            return str(error)
        return None

    return damage


class LearningOnce:
    """The data folder's base model and store, opened by the role that asks first; it may train the tiny model."""

    def __init__(self, data: Path, model: str | None) -> None:
        self._data = data
        self._model = model
        self._lock = threading.Lock()
        self._learning: Learning | None = None

    def get(self) -> Learning:
        """Raises ConfigError for a model that cannot be had."""
        with self._lock:
            if self._learning is None:
                with LOADING:
                    from optimizer.learning.run import open_learning

                self._learning = open_learning(self._data, self._model, _Told())
            return self._learning


class _Told:
    """Progress of the training as lines in the server's log, one a stage."""

    def __init__(self) -> None:
        self._stage = ""

    def __call__(self, what: str, done: int, total: int) -> None:
        if what and what.split(",")[0] != self._stage:
            self._stage = what.split(",")[0]
            logger.info("tiny language model: %s", what)


class Writer:
    """The generator as a role, and as the sampler of `fresh` requests. Requests go first: a step waits for them."""

    def __init__(self) -> None:
        self._generator: Generator | None = None
        self._turn = threading.Lock()
        self._asking = 0

    def role(self, make: Callable[[], Generator]) -> Steps:
        """Build the generator (in its thread) and offer it to `fresh`."""
        self._generator = make()
        return self

    def step(self) -> bool:
        """One step of the generator, unless a request is waiting for it."""
        generator = self._generator
        if generator is None or self._asking:
            return False
        with self._turn:
            return generator.step()

    def close(self) -> None:
        """Let go of the generator, once no request samples with it any more."""
        generator, self._generator = self._generator, None
        if generator is not None:
            with self._turn:
                generator.close()

    def fresh(self, campaign: Campaign, segment: str, cancelled: Callable[[], bool]) -> Pool | None:
        """A pool for one request; None while there is no model or no version, where the model has no room for the
        campaign or does not write its language, or when the request was cancelled."""
        self._asking += 1
        try:
            while not self._turn.acquire(timeout=FRESH_WAIT_S):
                if cancelled():
                    return None
            try:
                return self._sample(campaign, segment, cancelled)
            finally:
                self._turn.release()
        finally:
            self._asking -= 1

    def _sample(self, campaign: Campaign, segment: str, cancelled: Callable[[], bool]) -> Pool | None:
        from optimizer.learning.policy import Cancelled

        generator = self._generator
        if generator is None:
            return None
        try:
            return generator.fresh(campaign, segment, cancelled)
        except Cancelled:
            return None


class PromptGuard:
    """Refuses a campaign whose prompt is longer than the model takes, at PUT: nothing is ever cut silently.

    While the model is being made (`expected`), what is too long to be sure about is answered with 503. Where another
    process will settle the model, what may be too long passes, but not what is too long for the tiny one in any case.
    """

    def __init__(self, data: Path, expected: bool, model: str | None = None) -> None:
        self._data = data
        self._given = Path(model).expanduser() if model is not None else None
        self._expected = expected
        self._known: tuple[TextCodec, int] | None = None

    def __call__(self, campaign: Campaign) -> FieldError | None:
        """The refused field, or None. Raises Problem 503."""
        prompts = [len(build_prompt(campaign, segment).text.encode()) for segment in campaign.segments]
        slots = sum(len(f"{slot.name}:".encode()) + LEAST_SLOT_TOKENS for slot in campaign.slots)
        short = max(*prompts, slots) <= SURE_PROMPT_BYTES
        if short and self._known is None and (self._given is None or not self._given.is_dir()):
            return None
        known = self._find()
        if known is None:
            if max(prompts) > TOO_LONG_PROMPT_BYTES and self._folder() is None:
                got, fix = f"a prompt of {max(prompts)} bytes", "shorten product, audience or facts"
                return FieldError("product", got, "at most 256 tokens for the tiny model", fix)
            if self._expected:
                raise unavailable("the model is being prepared", "send the campaign again in a minute", "product")
            return None
        with LOADING:
            from optimizer.learning.run import Learning
        return Learning.prompt_limit(*known, campaign)

    def learnt(self, policy: LanguagePolicy) -> None:
        """Take tokenizer and limit from a policy that has been loaded."""
        self._known = (policy.codec, policy.max_prompt_tokens)

    def _find(self) -> tuple[TextCodec, int] | None:
        """Tokenizer and limit of the data folder's base model; None where none has been settled yet."""
        with LOADING:
            folder = self._folder()
            if self._known is None and folder is not None and (folder / "config.json").is_file():
                from optimizer.learning.tokenizer import TextCodec

                try:
                    limit = _prompt_tokens(folder)  # first: what is no configuration upsets the tokenizer's loading
                    self._known = (TextCodec.load(folder), limit)
                except ConfigError as error:
                    raise Problem(503, str(error), [_damaged(folder.name, error)], {"Retry-After": "60"}) from error
            return self._known

    def _folder(self) -> Path | None:
        """Where the model's files stand; None while that is not settled, or it is known by a hub name only."""
        try:
            pin = read_pin(self._data)
        except ConfigError as error:
            raise Problem(503, str(error), [_damaged(PIN_FILE, error)], {"Retry-After": "60"}) from error
        if pin is None:
            return self._given
        return self._data / "base" if pin.model is None else Path(pin.model).expanduser()


def _prompt_tokens(folder: Path) -> int:
    """As LanguagePolicy.max_prompt_tokens, from the model's configuration. Raises ConfigError where it is damaged."""
    try:
        shape = json.loads((folder / "config.json").read_text())
        positions = int(shape.get("max_position_embeddings") or shape.get("n_positions") or 1024)
        if positions < 2:
            raise ValueError(f"{positions} positions")
    except (OSError, ValueError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise ConfigError(f"model: {folder.name}/config.json can't be read ({error}); put it back") from error
    return min(positions // 2, 1024)


def _damaged(name: str, error: ConfigError) -> FieldError:
    return FieldError(name, str(error), "the file as it was written", "put it back, then send the campaign again")


def make_generator(log: EventLog, opened: LearningOnce, clock: Clock, guard: PromptGuard) -> Generator:
    """The generator over the data folder's model, with random numbers of its own: one that began with those of a life
    before would give other pools its ids. Raises ConfigError."""
    learning = opened.get()
    with LOADING:
        from optimizer.learning.run import share_processor
        from serving.generator import Generator

        share_processor()
        seed = int.from_bytes(os.urandom(7), "little")
        generator = Generator(log, learning.store, learning.base, clock, Gate().check, seed)
    guard.learnt(generator.policy)
    return generator


def make_learner(log: EventLog, opened: LearningOnce, clock: Clock) -> Steps:
    """The learner over the data folder's model. Raises ConfigError."""
    learning = opened.get()
    with LOADING:
        from optimizer.learning.run import share_processor

        share_processor()
        return learning.learner(log, clock)
