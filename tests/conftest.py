"""Fixtures that several test files share. Heavy imports stay inside: most tests need neither torch nor a model."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A one-layer GPT-2 trained for a second on a stand-in corpus."""
    import torch

    from tests.learning_rig import tiny_folder

    torch.set_num_threads(1)
    return tiny_folder(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def llama_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer Llama with random weights: another architecture than the tiny model's."""
    import torch

    from tests.learning_rig import llama_folder

    torch.set_num_threads(1)
    return llama_folder(tmp_path_factory.mktemp("llama") / "model")
