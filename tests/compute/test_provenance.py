"""What a provenance entry says."""

import json
import os
from pathlib import Path

import pytest
import torch

from twinslib.compute import provenance


def test_provenance_entry() -> None:
    """An entry is JSON: times, versions, device, precision and what is added; no host, user or folder."""
    entry = provenance.record("2026-01-01T00:00:00+00:00", 1.234, "cpu", weights="abc")
    text = json.dumps(entry)
    assert entry["started"] < entry["ended"] and entry["seconds"] == 1.23 and entry["weights"] == "abc"
    assert entry["device"] == "cpu" and entry["threads"] == 1 and entry["peak_memory_mib"] > 10
    assert set(entry["versions"]) == set(provenance.PACKAGES) and entry["versions"]["torch"][0].isdigit()
    for private in (os.uname().nodename, str(Path.home()), str(Path(__file__).parents[2])):
        assert private not in text


@pytest.mark.parametrize(("device", "initialized", "resets"), [("cuda:1", True, 1), ("cuda", False, 0), ("cpu", True, 0)])
def test_peak_is_that_of_the_task(device: str, initialized: bool, resets: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task begins with a peak of its own, on its own GPU; torch refuses that before the first use of one."""
    seen = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: initialized)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", seen.append)
    assert provenance.begin(device) <= provenance.now() and seen == [device] * resets
