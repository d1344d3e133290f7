"""The site of the committed results, built once."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from twinslib.site import build
from twinslib.store.store import Store

RESULTS = Path(__file__).parents[2] / "results" / "small"


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its folder."""
    out = tmp_path_factory.mktemp("site")
    build.build(Store("small", root=RESULTS), out)
    return out


@pytest.fixture
def changed(tmp_path: Path) -> Callable[..., Store]:
    """Makes a store of the committed claims, rows, figures and tables, without notebooks and runs, in which one file has another
    text."""
    def make(name: str = "", change: Callable[[str], str] = str) -> Store:
        root = tmp_path / "changed"
        for folder in ("rows", "figures", "tables"):
            shutil.copytree(RESULTS / folder, root / folder, dirs_exist_ok=True)
        shutil.copy(RESULTS / "claims.json", root)
        if name:
            before = (root / name).read_text()
            (root / name).write_text(change(before))
            assert (root / name).read_text() != before
        return Store("small", root=root)

    return make
