"""Fixtures that several test files share. Heavy imports stay inside: most tests need neither torch nor a model."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.kafka.broker import Broker

# The same everywhere, subprocesses included; tests/unit/test_policy_gpu.py alone asks for a GPU.
os.environ.setdefault("ADLOOP_DEVICE", "cpu")


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


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A Kafka broker that all tests share; each takes a prefix of its own. Who stops it must start it again."""
    from tests.kafka_rig import running_broker

    with running_broker(tmp_path_factory.mktemp("kafka")) as running:
        yield running


@pytest.fixture(scope="session")
def secure_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A Kafka broker with SASL and TLS listeners beside the plain one."""
    from tests.kafka_rig import running_broker

    with running_broker(tmp_path_factory.mktemp("secure"), secure=True) as running:
        yield running
