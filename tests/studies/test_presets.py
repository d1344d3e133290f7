"""A notebook's parameters and a preset's overrides are read strictly; what was asked for is shown in words."""

from pathlib import Path

import pytest

from tests.notebooks_made import write_notebook
from tests.studies.made import PRESETS, last, unknown
from twinslib.base import paths
from twinslib.studies import plan, presets


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A notebooks folder of the test's own, with parameters for preset small."""
    monkeypatch.setattr(paths, "notebooks_dir", lambda: tmp_path)
    write_notebook(tmp_path / "01_x.ipynb", {"eps": 0.1, "seeds": [0]})
    (tmp_path / "params" / "small").mkdir(parents=True)
    return tmp_path


@pytest.mark.parametrize(("text", "found"), [
    ("eps: 0.5", {"eps": 0.5}), ("eps: 1", {"eps": 1}), ("", {}), ("# none", {}), ("eps: 8/255", {"eps": 8 / 255})])
def test_overrides(folder: Path, text: str, found: dict) -> None:
    """A preset's file holds overrides only; an empty one changes nothing, toy has no file."""
    (folder / "params" / "small" / "01.yaml").write_text(text)
    known = presets.parameters(presets.notebook("01"))
    assert presets.overrides("small", "01", known) == found and presets.overrides("toy", "01", known) == {}


@pytest.mark.parametrize("best", [last, unknown])
@pytest.mark.parametrize(("preset", "number"), PRESETS, ids=str)
def test_every_run_is_shown(preset: str, number: str, best) -> None:
    """None is planned twice, and each is measured, followed, starts others or is a candidate."""
    jobs = plan.plan(preset, number)[0](best=best)
    lines, own = plan.settings(jobs), [job.spec for job in jobs if not job.study.endswith("tuning")]
    assert len(own) == len(set(own))
    assert all(job.measurements or job.ship or job.spec.follow or job.study.endswith("tuning") for job in jobs)
    assert {line["data set"] for line in lines} == {j.spec.data.name for j in jobs}
    for job in jobs:
        spec = job.spec
        mine = {"data set": spec.data.name, "role": "start network" if job.ship else "target", "network": spec.model.arch,
                "epochs": spec.optim.epochs, "schedule": spec.optim.schedule, "weight decay": spec.optim.weight_decay}
        lists = {"methods": spec.method.name, "seeds": str(spec.seed), "lr": f"{spec.optim.lr:g}"}
        assert any(mine.items() <= line.items() and all(value in line[key].split(", ") for key, value in lists.items())
                   for line in lines), mine
