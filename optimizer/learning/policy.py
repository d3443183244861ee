"""The language-model policy pi_theta(a | x): sampling with exact log-probabilities, and their differentiable
recomputation.

Works with any Hugging Face causal language model. The tiny model trains whole; a larger one trains LoRA adapters (Hu et
al. 2021, arXiv 2106.09685) through peft. The reference model is the same network with its first weights (or its
adapters off)."""

from __future__ import annotations

import base64
import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import DynamicCache

from optimizer.learning.batches import Batch, Rows, batch_of, left_padded, like_lengths
from optimizer.learning.prompt import Prompt
from optimizer.learning.tokenizer import TextCodec
from optimizer.maths.decoding import draw_tokens
from optimizer.maths.positions import drawn_log_probs, reference_log_probs, score_positions
from optimizer.types import Decode, Slot

MAX_SLOT_TOKENS = 96
LEAST_SLOT_TOKENS = 8
# Larger batches leave the processor's cache and take longer a text.
ROWS_AT_ONCE = 256
# Texts that are read in one batch on a processor, which gains nothing by more; a GPU does.
READ_AT_ONCE = 64

# A text's beginning in tokens, slot by slot: all but the last slot's are whole, and the last's may be empty.
Start = tuple[tuple[int, ...], ...]


# Log-probabilities of the reference, or of what stands for it: float32[P, V] of each batch's P sampled positions.
Anchor = tuple[Tensor, ...]


class Sample(NamedTuple):
    """One sampled text. `token_ids` and `log_probs` hold one tuple a slot, sampled tokens only; `finished` is False
    where a slot ran into its token limit; `embedding` is base64 of float16[d], the mean hidden state of the sampled
    tokens."""

    slots: dict[str, str]
    token_ids: tuple[tuple[int, ...], ...]
    log_probs: tuple[tuple[float, ...], ...]
    finished: bool
    embedding: str


class Scored(NamedTuple):
    """What `LanguagePolicy.score` gives for a batch of B sequences: `log_prob` [B] under the decoding distribution,
    `kl` [B] to the reference summed over the sampled positions, `entropy` [B] mean per token; the first two are
    differentiable. `anchor`: what the reference said, for scoring the same sequences again."""

    log_prob: Tensor
    kl: Tensor
    entropy: Tensor
    anchor: Anchor


class Cancelled(Exception):
    """The caller of a long sampling no longer wants it."""


class LanguagePolicy:
    """A causal language model as a policy over slot texts. Not thread-safe."""

    def __init__(
        self,
        model: nn.Module,
        codec: TextCodec,
        reference: nn.Module | None,
        device: torch.device,
        version: str = "",
        brief: bool = False,
    ) -> None:
        """`reference` None means: the adapters of `model` switched off. `brief`: the model was trained on brief
        prompts."""
        self._brief = brief
        self.model = model
        self.codec = codec
        self.device = device
        self.version = version
        self._reference = reference
        # Any: what Hugging Face's and peft's wrappers forward at run time, torch's types do not say.
        config: Any = model.config
        self._config = config
        self.vocab_size = int(config.vocab_size)
        positions: Any = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", 1024)
        self.positions = int(positions)
        self._ends = codec.line_enders(self.vocab_size).to(device)
        self._barred = codec.forbidden(self.vocab_size).to(device)

    @property
    def max_prompt_tokens(self) -> int:
        """Half of the model's context: the other half is for what it writes."""
        return min(self.positions // 2, 1024)

    def trainable(self) -> dict[str, Tensor]:
        """The parameters that learning moves, by name: what a policy version consists of."""
        return {name: value for name, value in self.model.named_parameters() if value.requires_grad}

    @torch.no_grad()
    def put(self, tensors: Mapping[str, Tensor]) -> None:
        """Overwrite the trainable parameters; names and shapes must be those of `trainable()`."""
        for name, value in self.trainable().items():
            value.copy_(tensors[name])

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """The tokens of the prompt's first line, in the form that this model was trained on; the slots come after."""
        return self.codec.encode(self._line(prompt))

    def _line(self, prompt: Prompt) -> str:
        return (self._brief and prompt.brief) or prompt.text

    def slot_tokens(self, prompt: Prompt) -> list[int]:
        """The most tokens that each slot may take: about a token per two characters, within what the context leaves."""
        heads = sum(len(self.codec.encode(f"{slot.name}:")) for slot in prompt.slots)
        room = (self.positions - self.max_prompt_tokens - heads) // len(prompt.slots)
        if room < LEAST_SLOT_TOKENS:
            raise ValueError(f"{len(prompt.slots)} slots leave {room} tokens each in a context of {self.positions}")
        return [min(slot.max_chars // 2 + 8, MAX_SLOT_TOKENS, room) for slot in prompt.slots]

    def fits(self, prompt: Prompt) -> bool:
        """Whether the prompt, its slots' names and some text for each slot have room in the model's context."""
        return fits_in(self.codec, prompt, self.max_prompt_tokens)

    @torch.inference_mode()
    def sample(
        self,
        prompts: Sequence[Prompt],
        n: int,
        decode: Decode,
        generator: torch.Generator,
        cancelled: Callable[[], bool] = lambda: False,
        starts: Sequence[Sequence[Start]] | None = None,
    ) -> list[list[Sample]]:
        """n samples for each prompt, all of which have the same slots: they are written side by side. Raises ValueError
        where they have not, Cancelled as soon as `cancelled()` is true.

        `starts`: of each prompt n beginnings to go on from; `log_probs` and `embedding` are then of the tokens drawn
        here alone."""
        other = next((prompt for prompt in prompts if prompt.slots != prompts[0].slots), None)
        if other is not None:
            raise ValueError(
                f"prompts: got slots {_described(prompts[0].slots)} and {_described(other.slots)}, expected the same "
                "for all prompts of a call; sample those with other slots in a call of their own"
            )
        self.model.eval()
        at_once = max(1, ROWS_AT_ONCE // n)
        samples: list[list[Sample]] = []
        for first in range(0, len(prompts), at_once):
            some = slice(first, first + at_once)
            begun = None if starts is None else [start for own in starts[some] for start in own]
            samples += self._sample_together(prompts[some], n, decode, generator, cancelled, begun)
        return samples

    def _sample_together(
        self,
        prompts: Sequence[Prompt],
        n: int,
        decode: Decode,
        generator: torch.Generator,
        cancelled: Callable[[], bool],
        starts: Sequence[Start] | None,
    ) -> list[list[Sample]]:
        limits = self.slot_tokens(prompts[0])
        read = [self.prompt_ids(prompt) for prompt in prompts]
        rows = [read[at // n] for at in range(n * len(prompts))]
        ids: list[list[list[int]]] = [[] for _ in rows]
        log_probs: list[list[list[float]]] = [[] for _ in rows]
        sums = torch.zeros(len(rows), self._width(), device=self.device)
        for slot, (described, limit) in enumerate(zip(prompts[0].slots, limits, strict=True)):
            head = self.codec.encode(f"{described.name}:")
            given = [_given(start, slot) for start in starts] if starts is not None else [NOTHING_GIVEN] * len(rows)
            rows = [row + head for row in rows]
            open_ = [at for at, (_, whole) in enumerate(given) if not whole]
            drawn: dict[int, tuple[list[int], list[float]]] = {}
            if open_:
                begun = [given[at][0] for at in open_]
                left = [max(1, limit - len(tokens)) for tokens in begun]
                written = self._write_line([rows[at] for at in open_], begun, left, decode, generator, cancelled)
                sums.index_add_(0, torch.tensor(open_, device=self.device), written.hidden)
                drawn = dict(zip(open_, zip(written.tokens, written.log_probs, strict=True), strict=True))
            for at, (tokens, _) in enumerate(given):
                more, logs = drawn.get(at, ([], []))
                ids[at].append([*tokens, *more])
                log_probs[at].append(logs)
                rows[at] = rows[at] + ids[at][-1]
        samples = [self._sample(prompts[at // n], ids[at], log_probs[at], sums[at]) for at in range(len(rows))]
        return [samples[start : start + n] for start in range(0, len(samples), n)]

    def _sample(self, prompt: Prompt, ids: list[list[int]], log_probs: list[list[float]], hidden: Tensor) -> Sample:
        slots = {
            slot.name: self.codec.decode(tokens).split("\n", 1)[0].strip()
            for slot, tokens in zip(prompt.slots, ids, strict=True)
        }
        count = sum(len(logs) for logs in log_probs)
        vector = (hidden / max(count, 1)).float().cpu().numpy().astype("<f2")
        return Sample(
            slots=slots,
            token_ids=tuple(tuple(tokens) for tokens in ids),
            log_probs=tuple(tuple(logs) for logs in log_probs),
            finished=all(bool(self._ends[tokens[-1]]) for tokens in ids),
            embedding=base64.b64encode(vector.tobytes()).decode(),
        )

    def _write_line(
        self,
        rows: list[list[int]],
        begun: Sequence[Sequence[int]],
        limits: Sequence[int],
        decode: Decode,
        generator: torch.Generator,
        cancelled: Callable[[], bool],
    ) -> _Line:
        """Sample one line for every row, which goes on from what is `begun` of it, until each has ended or has its
        limit of further tokens. Rows that are equal are read once."""
        count = len(rows)
        own: dict[tuple[int, ...], int] = {}
        of = [own.setdefault(tuple(row), len(own)) for row in rows]
        ids, mask = left_padded(list(own), self.codec.end_id, self.device)
        cache = DynamicCache(config=self._config)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        if ids.shape[1] > 1:
            self._body(ids[:, :-1], mask[:, :-1], positions[:, :-1], cache)
        if len(own) < count:
            cache.batch_select_indices(torch.tensor(of, device=self.device))
        # The last token before the first one drawn is fed with the first sampling step, so that every step has the
        # same shape.
        ids, own_mask = left_padded(
            [[row[-1], *tokens] for row, tokens in zip(rows, begun, strict=True)], self.codec.end_id, self.device
        )
        mask = torch.cat([mask[torch.tensor(of, device=self.device), :-1], own_mask], dim=1)
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        if ids.shape[1] > 1:
            self._body(ids[:, :-1], mask[:, :-1], positions[:, :-1], cache)
        token, position = ids[:, -1:], positions[:, -1:]
        hidden_sum = torch.zeros(count, self._width(), device=self.device)
        tokens_out: list[list[int]] = [[] for _ in rows]
        logs_out: list[list[float]] = [[] for _ in rows]
        # Which of the rows each row of the batch is: those that have ended leave it, in groups, since leaving costs.
        which = torch.arange(count, device=self.device)
        open_ = torch.ones(count, dtype=torch.bool, device=self.device)
        most = torch.tensor(limits, device=self.device)
        for step in range(1, max(limits) + 1):
            if cancelled():
                raise Cancelled
            hidden = self._body(token, mask, position, cache)[:, -1]
            token, logs = draw_tokens(self._head(hidden), decode, self._barred, generator)
            hidden_sum.index_add_(0, which, hidden.float() * open_[:, None])
            drawn = zip(which.tolist(), token[:, 0].tolist(), logs.tolist(), open_.tolist(), strict=True)
            for at, drawn_id, log, still in drawn:
                if still:
                    tokens_out[at].append(drawn_id)
                    logs_out[at].append(log)
            open_ = open_ & ~self._ends[token[:, 0]] & (step < most[which])
            left = int(open_.sum())
            if not left:
                break
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            position = position + open_[:, None]  # a row that has ended stays inside of the model's context
            if left < 0.75 * len(open_):
                kept = open_.nonzero()[:, 0]
                cache.batch_select_indices(kept)
                which, mask, position, token, open_ = which[kept], mask[kept], position[kept], token[kept], open_[kept]
        return _Line(tokens_out, logs_out, hidden_sum)

    def _base(self, model: Any) -> Any:
        return model.get_base_model() if hasattr(model, "get_base_model") else model

    def _width(self) -> int:
        return int(self._config.hidden_size)

    def _body(
        self, ids: Tensor, mask: Tensor, positions: Tensor, cache: DynamicCache | None, reference: bool = False
    ) -> Tensor:
        """Last hidden states [B, T, d]."""
        network = self._base(self._reference if reference and self._reference is not None else self.model)
        output = network.base_model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=cache is not None,
        )
        return output.last_hidden_state  # type: ignore[no-any-return]

    def _head(self, hidden: Tensor, reference: bool = False) -> Tensor:
        network = self._base(self._reference if reference and self._reference is not None else self.model)
        return network.get_output_embeddings()(hidden)  # type: ignore[no-any-return]

    def _as_reference(self) -> AbstractContextManager[None]:
        model: Any = self.model
        if self._reference is None and hasattr(model, "disable_adapter"):
            return model.disable_adapter()  # type: ignore[no-any-return]
        return nullcontext()

    def score(
        self,
        prompts: Sequence[Prompt],
        token_ids: Sequence[Sequence[Sequence[int]]],
        decode: Decode,
        anchor: Anchor = (),
        compared: NDArray[np.bool_] | None = None,
    ) -> Scored:
        """Log-probability, KL to the reference and entropy of B sequences under the present weights.

        KL is the exact per-position divergence over the vocabulary, summed over the sampled positions: a lower-variance
        estimate of the sequence KL than the log-ratio (Rao-Blackwellised; Amini et al. 2025, arXiv 2504.10637). Its
        gradient leaves out the effect of the policy on which prefixes are reached. `compared`: bool[B], the sequences
        that the reference reads as well, None all of them; `kl` is 0 for the others. `anchor`: what `Scored.anchor`
        gave for the same sequences, compared alike, before, since the reference does not move."""
        rows = self._rows(prompts, token_ids)
        which = np.ones(len(prompts), bool) if compared is None else compared
        beside, alone = (like_lengths(rows, some, self._at_once) for some in (which, ~which))
        own = self._read(rows, reference=False)
        if beside and not anchor:
            with torch.no_grad(), self._as_reference():
                theirs = self._read(rows, reference=True)
                anchor = tuple(
                    reference_log_probs(
                        self._logits(self._batch(rows, part, theirs), theirs), decode.temperature, self._barred
                    )
                    for part in beside
                )
        total = torch.zeros(3, len(prompts), device=self.device)
        length = torch.zeros(len(prompts), device=self.device)
        for part, known in zip([*beside, *alone], [*anchor, *[None] * len(alone)], strict=True):
            batch = self._batch(rows, part, own)
            # Divergence and entropy are those of the whole distribution: truncated ones need not overlap.
            found = score_positions(self._logits(batch, own), known, batch.targets, decode, self._barred)
            total = total.index_add(1, batch.row, torch.stack(found))
            length.index_add_(0, batch.row, torch.ones_like(found.entropy))
        return Scored(total[0], total[1], total[2].detach() / length.clamp(min=1), anchor)

    def anchor(self, prompts: Sequence[Prompt], token_ids: Sequence[Sequence[Sequence[int]]]) -> Anchor:
        """An anchor for `score` that stands for the present weights instead of the reference's: the divergence is then
        that of later weights from these. The whole distribution, temperature 1; no gradient."""
        with torch.no_grad():
            rows = self._rows(prompts, token_ids)
            own = self._read(rows, reference=False)
            parts = like_lengths(rows, np.ones(len(prompts), bool), self._at_once)
            batches = (self._batch(rows, part, own) for part in parts)
            return tuple(reference_log_probs(self._logits(batch, own), 1.0, self._barred) for batch in batches)

    @torch.no_grad()
    def surprise(
        self, prompts: Sequence[Prompt], token_ids: Sequence[Sequence[Sequence[int]]], decode: Decode
    ) -> list[float]:
        """How unlikely the least likely token of each text is under the reference: B values of -log p, in nats."""
        if not prompts:
            return []
        worst = torch.zeros(len(prompts), device=self.device)
        rows = self._rows(prompts, token_ids)
        with self._as_reference():
            theirs = self._read(rows, reference=True)
            for part in like_lengths(rows, np.ones(len(prompts), bool), self._at_once):
                batch = self._batch(rows, part, theirs)
                logits = self._logits(batch, theirs)
                picked = -drawn_log_probs(logits, batch.targets, decode.temperature, self._barred)
                worst.scatter_reduce_(0, batch.row, picked, "amax")
        return worst.tolist()

    @property
    def _at_once(self) -> int:
        return READ_AT_ONCE if self.device.type == "cpu" else ROWS_AT_ONCE

    def _rows(self, prompts: Sequence[Prompt], token_ids: Sequence[Sequence[Sequence[int]]]) -> Rows:
        known: dict[tuple[str, str], int] = {}
        prefixes: list[list[int]] = []
        of, ids, sampled = [], [], []
        for prompt, tokens in zip(prompts, token_ids, strict=True):
            key = (self._line(prompt), prompt.slots[0].name)
            if key not in known:
                known[key] = len(prefixes)
                prefixes.append(self.prompt_ids(prompt) + self.codec.encode(f"{prompt.slots[0].name}:"))
            of.append(known[key])
            row, drawn = [prefixes[of[-1]][-1]], [False]
            for at, slot_tokens in enumerate(tokens):
                head = self.codec.encode(f"{prompt.slots[at].name}:") if at else []
                row += head + list(slot_tokens)
                drawn += [False] * len(head) + [True] * len(slot_tokens)
            ids.append(row)
            sampled.append(drawn)
        return Rows([prefix[:-1] for prefix in prefixes], of, ids, sampled)

    def _read(self, rows: Rows, reference: bool) -> _Read:
        """Read each prompt once."""
        cache = DynamicCache(config=self._config)
        ids, mask = left_padded(rows.prefixes, self.codec.end_id, self.device)
        self._body(ids, mask, (mask.cumsum(1) - 1).clamp(min=0), cache, reference)
        return _Read(cache, mask, reference)

    def _batch(self, rows: Rows, part: NDArray[np.intp], read: _Read) -> Batch:
        return batch_of(rows, part, read.mask, self.codec.end_id)

    def _logits(self, batch: Batch, read: _Read) -> Tensor:
        """Logits [sampled positions, V] of texts after the prompts that have been read."""
        # Layers take on what follows by new tensors, so that copies of them leave the prompts as they are.
        cache = copy.copy(read.cache)
        cache.layers = [copy.copy(layer) for layer in read.cache.layers]
        cache.batch_select_indices(batch.prefix_of)
        hidden = self._body(batch.ids, batch.mask, batch.positions, cache, read.reference)
        return self._head(hidden[batch.chosen], read.reference)


class _Read(NamedTuple):
    """U prompts as a model has read them: `mask` int[U, P]."""

    cache: DynamicCache
    mask: Tensor
    reference: bool


NOTHING_GIVEN: tuple[tuple[int, ...], bool] = ((), False)


def _given(start: Start, slot: int) -> tuple[tuple[int, ...], bool]:
    """What a beginning holds of a slot; whether that is all of the slot."""
    return (start[slot] if slot < len(start) else (), slot < len(start) - 1)


class _Line(NamedTuple):
    tokens: list[list[int]]
    log_probs: list[list[float]]
    hidden: Tensor


def _described(slots: Sequence[Slot]) -> str:
    return ", ".join(f"{slot.name} ({slot.max_chars})" for slot in slots)


def fits_in(codec: TextCodec, prompt: Prompt, limit: int) -> bool:
    """Whether a prompt fits in `limit` tokens, and its slots' names with 8 tokens of text each in as many again."""
    slots = sum(len(codec.encode(f"{slot.name}:")) + LEAST_SLOT_TOKENS for slot in prompt.slots)
    return len(codec.encode(prompt.text)) <= limit and slots <= limit
