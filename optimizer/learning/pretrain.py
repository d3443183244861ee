"""Trains the tiny language model from scratch: a GPT-2 architecture of about a million parameters with its own BPE
tokenizer.

What it leaves out on purpose: validation splits, mixed precision, checkpoints in between. It takes 1.5
minutes on two cores with AVX-512, about 5 on two with AVX2 (10 with another process beside it), is cached by content
hash, and only has to know how short advertising copy reads: the reinforcement comes later.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from optimizer.learning.muon import Muon
from optimizer.learning.prompt import Prompt
from optimizer.learning.recipe import MARKER, Line, PretrainConfig, Progress
from optimizer.learning.tokenizer import END, TextCodec, quiet_transformers, train_tokenizer

IGNORED = -100


def _example(codec: TextCodec, prompt: Prompt, slots: dict[str, str]) -> tuple[list[int], list[int]]:
    """(ids, labels): only what the model writes is learnt; prompt and slot names are given."""
    ids = codec.encode(prompt.text)
    labels = [IGNORED] * len(ids)
    for name, text in slots.items():
        head = codec.encode(f"{name}:")
        # Spelled as sampling spells it: a text starts with a space and ends with its line break.
        body = codec.encode(f" {text}\n")
        ids += head + body
        labels += [IGNORED] * len(head) + body
    return ids, labels


def _batches(
    examples: Sequence[tuple[list[int], list[int]]], batch_rows: int, end_id: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of rows of about one length, in random order, padded on the right."""
    noise = torch.rand(len(examples), generator=generator) * 4
    order = sorted(range(len(examples)), key=lambda at: len(examples[at][0]) + float(noise[at]))
    starts = torch.randperm((len(order) + batch_rows - 1) // batch_rows, generator=generator).tolist()
    for start in starts:
        rows = [examples[at] for at in order[start * batch_rows : (start + 1) * batch_rows]]
        width = max(len(ids) for ids, _ in rows)
        ids = torch.full((len(rows), width), end_id, dtype=torch.long)
        labels = torch.full((len(rows), width), IGNORED, dtype=torch.long)
        for at, (row, wanted) in enumerate(rows):
            ids[at, : len(row)] = torch.tensor(row)
            labels[at, : len(row)] = torch.tensor(wanted)
        yield ids, labels


def pretrain(config: PretrainConfig, lines: Sequence[Line], folder: Path, progress: Progress) -> Path:
    """Train on `lines` and write a Hugging Face model folder (safetensors). Returns `folder`.

    The folder appears whole or not at all. Same configuration, lines and machine: same weights."""
    quiet_transformers()
    progress("tokenizer", 0, 1)
    sample = lines[:: max(1, len(lines) // 12_000)]
    tokenizer = train_tokenizer(
        (prompt.text + "\n".join(slots.values()) for prompt, slots in sample), config.vocab_size
    )
    codec = TextCodec(tokenizer)
    examples = [_example(codec, prompt, slots) for prompt, slots in lines]
    examples = [(ids, labels) for ids, labels in examples if len(ids) <= config.positions]
    if not examples:
        raise ValueError("pretrain: no example fits the model's context")
    generator = torch.Generator().manual_seed(config.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = _new_model(config, len(tokenizer), codec.end_id)
    _fit(model, config, examples, codec.end_id, generator, progress)
    model.eval()  # type: ignore[no-untyped-call]
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    model.save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)
    (temporary / MARKER).write_text(json.dumps({"pretrain": asdict(config), "end": END}, indent=1))
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        temporary.rename(folder)
    except OSError:
        # Another process finished the same model first; its folder has the same content.
        if not folder.exists():
            raise
        shutil.rmtree(temporary)
    return folder


def _new_model(config: PretrainConfig, vocab_size: int, end_id: int) -> GPT2LMHeadModel:
    shape = GPT2Config(
        vocab_size=vocab_size,
        n_positions=config.positions,
        n_embd=config.width,
        n_layer=config.layers,
        n_head=config.heads,
        # GPT-2's own activation, as one fused operation.
        activation_function="gelu_pytorch_tanh",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=end_id,
        eos_token_id=end_id,
        pad_token_id=end_id,
    )
    return GPT2LMHeadModel(shape)


def _fit(
    model: GPT2LMHeadModel,
    config: PretrainConfig,
    examples: Sequence[tuple[list[int], list[int]]],
    end_id: int,
    generator: torch.Generator,
    progress: Progress,
) -> None:
    steps = max(1, round(config.epochs * ((len(examples) + config.batch_rows - 1) // config.batch_rows)))
    hidden = [p for name, p in model.named_parameters() if p.ndim == 2 and name.startswith("transformer.h.")]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or not name.startswith("transformer.h.")]
    # Orthogonalised momentum (Muon: Jordan et al. 2024) on the matrices: in the time there is, far below AdamW's loss.
    optimizers: list[torch.optim.Optimizer] = [
        Muon(hidden, lr=config.matrix_learning_rate, weight_decay=config.weight_decay),
        torch.optim.AdamW(others, lr=config.learning_rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    warm = max(1, round(config.warmup * steps))
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min((step + 1) / warm, 1.0, max(0.02, (steps - step) / (0.8 * steps)))
        )
        for optimizer in optimizers
    ]
    model.train()
    done = 0
    while done < steps:
        for ids, labels in _batches(examples, config.batch_rows, end_id, generator):
            # Padding is on the right and attention is causal, so no mask is needed; only wanted positions meet the
            # head.
            hidden = model.transformer(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
            wanted = labels[:, 1:]
            chosen = wanted != IGNORED
            loss = torch.nn.functional.cross_entropy(model.lm_head(hidden[chosen]), wanted[chosen])
            model.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer, schedule in zip(optimizers, schedules, strict=True):
                optimizer.step()
                schedule.step()
            done += 1
            progress(f"training, loss {loss.item():.2f}" if done % 20 == 0 else "", done, steps)
            if done >= steps:
                break
