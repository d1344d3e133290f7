"""Every test starts from the same random state, on one thread, with neither data nor results of the user in reach."""

import pytest
import torch

from twinslib.store.store import Store

torch.set_num_threads(1)  # also for what a module's fixtures compute, which come before those of a test


@pytest.fixture(autouse=True)
def isolated(monkeypatch, tmp_path):
    """One thread, a fixed seed, and folders of the test's own for data and results."""
    monkeypatch.setenv("TWINS_DATA", str(tmp_path / "twins_data"))
    monkeypatch.setenv("TWINS_RESULTS", str(tmp_path / "twins_results"))
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture
def store(tmp_path) -> Store:
    """An empty store of the preset `small`."""
    (tmp_path / "small").mkdir()
    return Store("small", root=tmp_path / "small")
