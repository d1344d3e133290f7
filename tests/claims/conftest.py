"""An empty store of the preset `small`."""

import pytest

from twinslib.store.store import Store


@pytest.fixture
def store(tmp_path):
    (tmp_path / "small").mkdir()
    return Store("small", root=tmp_path / "small")
