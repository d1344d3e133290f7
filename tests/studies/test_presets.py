"""A notebook's parameters and a preset's overrides are read strictly; what was asked for is shown in words."""

import json
from pathlib import Path

import pytest

from tests.studies.made import PRESETS, last, unknown
from twinslib.base import paths
from twinslib.studies import plan, presets


def write_notebook(folder: Path, *sources: str, name: str = "01_x.ipynb") -> Path:
    """A notebook of cells that are all tagged parameters."""
    cells = [{"cell_type": "code", "metadata": {"tags": ["parameters"]}, "source": [text]} for text in sources]
    (folder / name).write_text(json.dumps({"cells": [{"cell_type": "markdown", "metadata": {}, "source": []}, *cells]}))
    return folder / name


def test_parameters_are_literals(tmp_path: Path) -> None:
    """Annotated literals are read without running the notebook; anything else is refused, and never run."""
    path = write_notebook(tmp_path, 'a: int = 1\nb: dict = {"c": [1.5, None, "x"]}  # a comment')
    assert presets.parameters(path) == {"a": 1, "b": {"c": [1.5, None, "x"]}}
    for sources, message in (((), "exactly one cell tagged parameters in 01_x.ipynb, got 0"),
                             (("a: int = 1", "b: int = 2"), "got 2"), (("import os",), "annotated literals .* got import os"),
                             (("a = 1",), "got a = 1"), (("a: int",), "got a: int"),
                             (("a: float = 8 / 255 + open('x')",), "malformed node")):
        with pytest.raises(ValueError, match=message):
            presets.parameters(write_notebook(tmp_path, *sources))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A notebooks folder of the test's own, with parameters for preset small."""
    monkeypatch.setattr(paths, "notebooks_dir", lambda: tmp_path)
    write_notebook(tmp_path, "eps: float = 0.1\nseeds: list = [0]")
    (tmp_path / "params" / "small").mkdir(parents=True)
    return tmp_path


@pytest.mark.parametrize(("text", "found"), [
    ("eps: 0.5", {"eps": 0.5}), ("eps: 1", {"eps": 1}), ("", {}), ("# none", {}),
    ("epps: 0.5", "key of params/small/01.yaml to be one of eps, seeds, got 'epps'; did you mean 'eps'?"),
    ("eps: 1e-3", "number for eps in params/small/01.yaml, got the text '1e-3'; in YAML write 1.0e-3"),
    ("eps: 8/255", {"eps": 8 / 255}),
    ("seeds: 3", "list for seeds"), ("seeds:", "a value for seeds in params/small/01.yaml, got nothing"),
    ("eps: 0.5\n\neps: 1.0", "the key 'eps' twice, in line 1 and in line 3"), ("seeds: &a [*a]", "more than 50,000 values"),
    ("0", "a mapping of parameters"), ("[" * 5000, "too deep"), ("eps: 0x" + "f" * 10000, "an integer of thousands of digits"),
    ("- eps", "a mapping of parameters in params/small/01.yaml"),
    ("eps: [0.5", "YAML in params/small/01.yaml, got while parsing .* line 1"),
    ("eps: !!python/object/apply:os.getcwd []", "YAML .*python/object"),
])
def test_overrides(folder: Path, text: str, found: dict | str) -> None:
    """A preset's file holds overrides only; an empty one changes nothing, toy has no file. Unknown names, other types, no
    YAML and YAML that would run code are refused in one line."""
    (folder / "params" / "small" / "01.yaml").write_text(text)
    known = presets.parameters(presets.notebook("01"))
    if isinstance(found, dict):
        assert presets.overrides("small", "01", known) == found and presets.overrides("toy", "01", known) == {}
        return
    with pytest.raises((ValueError, TypeError), match=found) as caught:
        presets.overrides("small", "01", known)
    assert "\n" not in str(caught.value)


def test_types_of_parameters() -> None:
    """The defaults' types pass, int for float, anything for None; what is inside of lists and mappings is not the matter here."""
    defaults = {"eps": 0.1, "steps": 5, "fast": True, "name": "a", "start": None, "seeds": [0], "optim": {"lr": 0.1, "epochs": 3}}
    for values in ({}, {"eps": 1}, {"eps": 0.5, "steps": 7}, {"fast": False}, {"start": 3}, {"seeds": []}, {"seeds": [1, "2"]},
                   {"optim": {"lr": 1, "warmup": "any"}}):
        assert presets.check_parameters(values, defaults, "here") == values
    for values, message in (({"eps": True}, "float for eps"), ({"steps": 5.0}, "int for steps"),
                            ({"steps": True}, "int for steps"), ({"optim": [0.1]}, "a mapping for optim in here"),
                            ({"fast": 1}, "bool for fast"), ({"seeds": 1}, "a list for seeds"),
                            ({"name": None}, "a value for name")):
        with pytest.raises(TypeError, match=message):
            presets.check_parameters(values, defaults, "here")


def test_unknown_presets_and_notebooks(folder: Path) -> None:
    """Each unknown name is answered with the known ones; a preset without a file names the file."""
    with pytest.raises(ValueError, match="preset to be one of toy, small, medium, paper, got 'smal'; did you mean 'small'"):
        presets.overrides("smal", "01", {})
    with pytest.raises(FileNotFoundError, match="preset medium for notebook 01 .*params/medium/01.yaml"):
        presets.overrides("medium", "01", {})
    with pytest.raises(ValueError, match="notebook to be one of 01, got '1'"):
        presets.notebook("1")
    write_notebook(folder, "\n".join(f"{name}: int = 1" for name in presets.SETTINGS), name="99_y.ipynb")
    with pytest.raises(ValueError, match="notebook with a study to be one of 01, .*, got '99'"):
        plan.plan("toy", "99")


@pytest.mark.parametrize("best", [last, unknown])
@pytest.mark.parametrize(("preset", "number"), PRESETS, ids=str)
def test_every_run_is_shown(preset: str, number: str, best) -> None:
    """None is planned twice, and each is measured, followed, starts others or is a candidate. The settings for display hold
    every data set, method and seed of the jobs, beside the network and the schedule that they have, and call only sources
    start networks."""
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
