"""Every test of the queue has a store of its own."""

from pathlib import Path

import pytest

from twinslib.store.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store, and a folder for the weights of others beside it."""
    (tmp_path / "twins_data" / "weights").mkdir(parents=True)
    return Store("tiny", root=tmp_path / "store")
