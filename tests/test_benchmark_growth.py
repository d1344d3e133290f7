"""The benchmark of growth changes one number at a time, measures the memory of nothing but what runs, and it runs."""

import json
import sys
from functools import partial

import numpy as np
import pytest
import torch

from benchmarks import command, growth, twins_step
from twinslib import __main__ as twins


@pytest.mark.parametrize(("axis", "value"), [("steps", 3), ("width", 8), ("side", 48)])
def test_one_number_changes(axis, value):
    """The spec differs in the axis alone, and network and images follow it."""
    usual = {"steps": growth.PGD_STEPS, "width": 32, "side": 32}
    spec, base = growth.spec_at(axis, value, 2), growth.spec_at(axis, usual[axis], 2)
    assert growth.spec_at(axis, usual[axis], 2).attack.steps == growth.PGD_STEPS
    assert [name for name in vars(spec) if getattr(spec, name) != getattr(base, name)] == [growth.PLACES[axis][0]]
    x, _ = twins_step.random_batch(spec, "cpu", 0)
    model, _ = twins_step.make_step("ours", spec, "cpu")
    first = next(m for m in model.modules() if isinstance(m, torch.nn.Conv2d))
    assert x.shape[2] == (value if axis == "side" else 32) and first.out_channels == (value if axis == "width" else 32)


def hold(mib):
    np.ones((mib, 2**17))


def test_memory_is_that_of_the_work():
    """As much as is held, whatever this process has held before."""
    hold(400)
    assert growth.peak(partial(hold, 200), "cpu", 1) == pytest.approx(200, abs=10)


@pytest.mark.parametrize("axis", ["steps", "n"])
def test_command_line(axis, tmp_path, capsys):
    """A row that follows from the times beside it, ours and the textbook's."""
    out = tmp_path / "result.json"
    growth.main([axis, "--values", "2" if axis == "steps" else "200", "--batch", "2", "--repeats", "2", "--images", "5",
                 "--out", str(out)])
    point, = json.loads(out.read_text())["results"]
    textbook, ours = point["samples"].values()
    of = sum if axis == "n" else np.median
    assert len(textbook) == (growth.GROUPS if axis == "n" else 2) and min(textbook + ours) > 0
    assert point["ratio"]["estimate"] == pytest.approx(of(textbook) / of(ours))
    assert point["seconds"] == pytest.approx([of(textbook) / (5 if axis == "n" else 1), of(ours) / (5 if axis == "n" else 1)])
    assert min(point["memory_mib"].values()) > 0 and growth.line(point) in capsys.readouterr().out


def test_workers(monkeypatch, tmp_path):
    """One worker and all take turns over the same sweep, by a call that the command understands."""
    calls = []
    monkeypatch.setattr(growth.subprocess, "run", lambda words, **how: calls.append(words))
    growth.main(["workers", "--repeats", "2", "--out", str(tmp_path / "result.json")])
    assert [words[words.index("--workers") + 1] for words in calls] == ["1", "2", "2", "1"]
    assert calls[0][:3] == [sys.executable, "-m", "twinslib"]
    assert twins.main([*calls[1][3:], "--dry-run"]) == 0


def test_readme_states_what_was_measured():
    """Each row of the README's table of growth is that of a committed file, and the other way round."""
    stored = [json.loads(file.read_text())["results"] for file in growth.RESULTS.glob("*/*.json")]
    rows = {growth.line(point) for results in stored for point in results}
    readme = (command.RESULTS.parent / "README.md").read_text().splitlines()
    assert rows == {line for line in readme if line.startswith(tuple(f"| {axis} " for axis in growth.VALUES))}
