"""Rendering several notebooks, several at a time."""

import threading
import time
from pathlib import Path

import pytest

from twinslib.site import render


def test_two_renders_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """Of two renderings of one notebook the second says for whom it waits, and finds it done; another notebook does not wait."""
    at_work, statuses = [], []

    def slow(notebook: Path, parameters: dict, folder: Path) -> None:
        at_work.append(notebook.stem)
        time.sleep(1)

    def run(*names: str) -> None:
        statuses.extend(render.render_all([(tmp_path / f"{name}.ipynb", {}) for name in names], tmp_path / "small"))

    for name in ("01_a", "02_b"):
        (tmp_path / f"{name}.ipynb").write_text("{}")
    monkeypatch.setattr(render, "render_notebook", slow)
    threads = [threading.Thread(target=run, args=names) for names in (("01_a",), ("01_a",), ("02_b",))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted((name, status) for name, status, _ in statuses) == [
        ("01_a", "rendered"), ("01_a", "unchanged"), ("02_b", "rendered")]
    assert sorted(at_work) == ["01_a", "02_b"] and capsys.readouterr().err.count("which is at render-01_a") == 1
    assert not list((tmp_path / "small" / "work" / "leases").iterdir())
