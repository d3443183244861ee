"""A server with the campaign c1, and its client."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from tests.serving_rig import Rig, make_rig


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = make_rig(tmp_path)
    rig.put()
    yield rig
    rig.close()


@pytest.fixture
def client(rig: Rig) -> TestClient:
    return rig.client()
