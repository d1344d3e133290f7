"""A GPU knows one order of axes; so does the CPU that it is compared with, whatever its instruction set."""

import pytest

from twinslib.nets import arithmetic


@pytest.fixture(autouse=True)
def one_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Channels last, also on processors without AVX."""
    monkeypatch.setattr(arithmetic, "has_avx", lambda: True)
