"""Tests of the engine share this folder's models and swarm; torch uses one thread per peer."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    import os

    for key in [key for key in os.environ if key.startswith("GOSSAMER_")]:
        monkeypatch.delenv(key)
