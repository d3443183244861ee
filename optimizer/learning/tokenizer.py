"""Tokenizers behind one small face: ids in, ids out, and which tokens end a line.

Text from a campaign is always tokenised as plain text: a string that looks like one of the model's special tokens is
spelled out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from optimizer.errors import ConfigError

END = "<|end|>"


def train_tokenizer(texts: Iterator[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer (Sennrich et al. 2016, arXiv 1508.07909) learnt from `texts`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    special = {"eos_token": END, "pad_token": END, "bos_token": END}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)  # type: ignore[no-untyped-call]


def quiet_transformers() -> None:
    """No progress bars and hints from transformers: what they would say is said by our own progress and errors."""
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]


class TextCodec:
    """A Hugging Face fast tokenizer, narrowed to what the policy needs."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise ConfigError(
                "model: its tokenizer has no fast (tokenizers) form; choose a model that ships tokenizer.json"
            )
        self.tokenizer = tokenizer
        self._backend: Tokenizer = Tokenizer.from_str(backend.to_str())
        self._backend.no_padding()
        self._backend.no_truncation()
        self._backend.encode_special_tokens = True
        end = tokenizer.eos_token_id
        if end is None:
            raise ConfigError("model: its tokenizer has no end-of-text token; choose a causal language model with one")
        self.end_id = int(end)

    @classmethod
    def load(cls, folder: Path) -> TextCodec:
        """Raises ConfigError for a folder whose tokenizer can't be loaded without running its code."""
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ConfigError(f"model: no tokenizer can be loaded from {folder.name} ({error})") from error
        return cls(tokenizer)

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text; nothing is added."""
        return list(self._backend.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; special tokens vanish."""
        return str(self._backend.decode(list(ids), skip_special_tokens=True))

    def line_enders(self, vocab_size: int) -> torch.Tensor:
        """bool[vocab_size]: True where the token holds a line break or is the end-of-text token."""
        ends = torch.zeros(vocab_size, dtype=torch.bool)
        for index in range(min(vocab_size, self._backend.get_vocab_size())):
            ends[index] = "\n" in self._backend.decode([index], skip_special_tokens=False)
        ends[self.end_id] = True
        return ends

    def forbidden(self, vocab_size: int) -> torch.Tensor:
        """bool[vocab_size]: True for tokens that are never sampled: special tokens (but the end) and rows without a
        token."""
        barred = torch.ones(vocab_size, dtype=torch.bool)
        barred[: min(vocab_size, self._backend.get_vocab_size())] = False
        for index, token in self._backend.get_added_tokens_decoder().items():
            if token.special and index < vocab_size:
                barred[index] = True
        barred[self.end_id] = False
        return barred
