"""Grids of runs: their order, what reaches which run, and parameters that are refused."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from twinslib import paths, study
from twinslib.config import METHODS, RunSpec

FILES = sorted((paths.notebooks_dir() / "params").glob("*/*.yaml"))
PRESETS = [("toy", number) for number in sorted(study.STUDIES)] + [(p.parent.name, p.stem) for p in FILES]
TWO_WINGS = [name for name, m in METHODS.items() if m.wings == "twins"]


def arguments(**changes: object) -> dict:
    """Arguments of `transfer`: two sources, two targets, all methods, two seeds."""
    source = {"data": {"name": "toy_source", "image_size": 16}, "optim": {"epochs": 1}}
    return {
        "arch": "tiny_resnet", "norm": "batch", "start": "robust",
        "sources": {"natural": source | {"method": "natural"}, "robust": source | {"attack": {"steps": 3}}},
        "targets": {"a": {"data": {"val_images": 5}, "method": {"twins_weight": 0.4}}, "b": {"optim": {"lr": 0.5}}},
        "methods": list(METHODS), "seeds": [0, 1], "optim": {"epochs": 2, "lr": 0.1}, "attack": {"eps": 0.1},
        "source_evaluations": [{"kind": "clean", "images": 9}],
        "evaluations": [{"kind": "clean", "images": 7}, {"kind": "pgd", "images": 7, "eps": 0.1, "targets": ["b"]}],
    } | changes


def test_order_of_priority() -> None:
    """The start network first, then all of seed 0 before any of seed 1; every combination exactly once."""
    jobs = study.transfer(**arguments())
    assert jobs[0].spec.method.name == "at" and jobs[0].spec.source is None
    tunes = [j.spec for j in jobs if j.spec.source is not None]
    assert all(t.source == jobs[0].spec for t in tunes)
    assert [t.seed for t in tunes] == [0] * 10 + [1] * 10
    for seed in (0, 1):
        cells = [(t.data.name, t.method.name) for t in tunes if t.seed == seed]
        assert cells == [(data, name) for data in "ab" for name in METHODS]
    assert len({j.spec.hash for j in jobs}) == len(jobs) == 22
    assert {j.study for j in jobs} == {"transfer"}


def test_every_source_is_a_job_before_what_starts_from_it() -> None:
    """Whatever a run starts from is in the list, earlier; sources that nothing starts from are measured as well."""
    jobs = [j.spec for j in study.transfer(**arguments())]
    for i, spec in enumerate(jobs):
        assert spec.source is None or spec.source in jobs[:i]
    assert {s.method.name for s in jobs if s.source is None} == {"natural", "at"}


def test_two_wing_switches_reach_two_wing_methods_only() -> None:
    """A target's method switches change its two-wing runs; single-network runs and other targets keep the defaults."""
    for job in study.transfer(**arguments())[1:]:
        spec = job.spec
        switched = spec.data.name == "a" and spec.method.name in TWO_WINGS
        assert spec.method == replace(METHODS[spec.method.name], twins_weight=0.4 if switched else 1.0)


def test_a_targets_overrides_are_its_own() -> None:
    """Data and optimiser settings of a target go over the shared ones and to that target only."""
    for job in study.transfer(**arguments()):
        if (spec := job.spec).source is not None:
            assert (spec.optim.epochs, spec.optim.lr) == (2, 0.5 if spec.data.name == "b" else 0.1)
            assert spec.data.val_images == (5 if spec.data.name == "a" else 0)
            assert spec.attack.eps == 0.1 and spec.source.attack.steps == 3


def test_evaluations_may_be_limited_to_targets() -> None:
    """An evaluation with `targets` is made on those alone, all others on every target; the list enters no hash."""
    jobs = study.transfer(**arguments())
    kinds = {j.spec.data.name: [e.kind for e in j.evals] for j in jobs}
    assert kinds == {"toy_source": ["clean"], "a": ["clean"], "b": ["clean", "pgd"]}
    everywhere = arguments()
    del everywhere["evaluations"][1]["targets"]
    assert study.transfer(**everywhere)[-2].evals == jobs[-2].evals


def test_start_from_weights_of_others() -> None:
    """A source may be a file from elsewhere: nothing is trained for it, and its name is part of each run's hash."""
    def tunes(file: str) -> list[RunSpec]:
        sources = {"robust": {"weights": {"file": file, "classes": 1000}}}
        return [j.spec for j in study.transfer(**arguments(sources=sources))]

    assert len(tunes("a.pt")) == 20 and all(s.source is None and s.weights.file == "a.pt" for s in tunes("a.pt"))
    assert not {s.hash for s in tunes("a.pt")} & {s.hash for s in tunes("b.pt")}


SOURCE = {"data": {"name": "toy_source"}, "optim": {}}


@pytest.mark.parametrize(("changes", "error", "message"), [
    ({"start": "robsut"}, ValueError, "expected start to be one of natural, robust, got 'robsut'; did you mean 'robust'?"),
    ({"arch": "tiny_resnt"}, ValueError, "did you mean 'tiny_resnet'?"),
    ({"norm": "grup"}, ValueError, "did you mean 'group'?"),
    ({"norm": "group"}, ValueError, "expected norm 'batch' for a two-wing method, got 'group'"),
    ({"methods": ["twin_at"]}, ValueError, "expected method to be one of .*; did you mean 'twins_at'?"),
    ({"optim": {"learning_rate": 1}}, ValueError, "expected key of targets.a.optim to be one of epochs, batch_size, lr"),
    ({"attack": {"eps": 8}}, ValueError, "expected eps in \\[0, 1\\] \\(pixel units\\), got 8; write 8/255"),
    ({"targets": {"a": {"optm": {}}}}, ValueError, "key of targets.a .*; did you mean 'optim'?"),
    ({"targets": {"a": None}}, TypeError, "expected a mapping for targets.a, got None"),
    ({"targets": {"a": {"method": {"twinsweight": 1.0}}, "b": {}}}, ValueError, "did you mean 'twins_weight'?"),
    ({"targets": {"a": {"data": {"crop_size": 9}}, "b": {}}}, ValueError, "expected key of targets.a.data"),
    ({"sources": {"robust": SOURCE | {"methd": "at"}}}, ValueError, "key of sources.robust .*; did you mean 'method'?"),
    ({"sources": {"robust": {"data": {"name": "a"}}}}, ValueError, "expected optim in sources.robust, got only data"),
    ({"sources": {"robust": None}}, TypeError, "expected a mapping for sources.robust, got None"),
    ({"sources": {"robust": {"weights": {"file": "a.pt"}}}}, ValueError, "expected classes in sources.robust.weights"),
    ({"evaluations": [{"kind": "clean", "images": 1, "targets": ["c"]}]}, ValueError, "target of an evaluation .* a, b"),
    ({"evaluations": [{"kind": "pgd", "images": 1, "esp": 0.1}]}, ValueError, "key of evaluations .*'eps'?"),
])
def test_illegal_arguments(changes: dict, error: type, message: str) -> None:
    """Unknown names and wrong values anywhere in the parameters are refused before any run."""
    with pytest.raises(error, match=message):
        study.transfer(**arguments(**changes))


@pytest.mark.parametrize(("preset", "number"), PRESETS, ids=str)
def test_presets_build_jobs(preset: str, number: str) -> None:
    """Every preset's parameters make jobs: no two alike, all sources among them, each method on the same targets."""
    jobs, settings = study.jobs(preset, number)
    assert jobs and len({j.spec.hash for j in jobs}) == len(jobs)
    assert settings["preset"] == preset
    specs = {j.spec for j in jobs}
    assert all(s.source is None or s.source in specs for s in specs)
    by_method: dict[str, set] = {}
    for j in jobs:
        if j.spec.source is not None or j.spec.weights is not None:
            by_method.setdefault(j.spec.method.name, set()).add((j.spec.data, j.spec.optim, j.spec.seed, j.evals))
    assert len({frozenset(cells) for cells in by_method.values()}) == 1


@pytest.mark.parametrize(("preset", "number"), PRESETS, ids=str)
def test_every_run_is_shown(preset: str, number: str) -> None:
    """The settings for display hold every data set, method and seed of the jobs."""
    jobs, _ = study.jobs(preset, number)
    lines = study.settings(jobs)
    assert {line["data set"] for line in lines} == {j.spec.data.name for j in jobs}
    for job in jobs:
        line = next(x for x in lines if x["data set"] == job.spec.data.name and job.spec.method.name in x["methods"])
        assert str(job.spec.seed) in line["seeds"].split(", ") and line["network"] == job.spec.model.arch


# -- parameters and overrides ----------------------------------------------------------------------------------------
def write_notebook(folder: Path, *sources: str, name: str = "01_x.ipynb") -> Path:
    """A notebook of cells that are all tagged parameters."""
    cells = [{"cell_type": "code", "metadata": {"tags": ["parameters"]}, "source": [text]} for text in sources]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps({"cells": [{"cell_type": "markdown", "metadata": {}, "source": []}, *cells]}))
    return folder / name


def test_parameters_are_literals(tmp_path: Path) -> None:
    """Annotated literals are read without running the notebook."""
    path = write_notebook(tmp_path, 'a: int = 1\nb: dict = {"c": [1.5, None, "x"]}  # a comment')
    assert study.parameters(path) == {"a": 1, "b": {"c": [1.5, None, "x"]}}


@pytest.mark.parametrize(("sources", "message"), [
    ((), "exactly one cell tagged parameters in 01_x.ipynb, got 0"),
    (("a: int = 1", "b: int = 2"), "got 2"),
    (("import os",), "only annotated literals .* got import os"),
    (("a = 1",), "got a = 1"),
    (("a: int",), "got a: int"),
    (("a: float = 8 / 255 + open('x')",), "malformed node"),
])
def test_parameters_that_are_code_are_refused(tmp_path: Path, sources: tuple[str, ...], message: str) -> None:
    """Anything but annotated literals is refused, and never run."""
    with pytest.raises(ValueError, match=message):
        study.parameters(write_notebook(tmp_path, *sources))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A notebooks folder of the test's own, with parameters for preset small."""
    monkeypatch.setattr(paths, "notebooks_dir", lambda: tmp_path)
    write_notebook(tmp_path, "eps: float = 0.1\nseeds: list = [0]")
    (tmp_path / "params" / "small").mkdir(parents=True)
    return tmp_path


@pytest.mark.parametrize(("text", "expected"), [("eps: 0.5", {"eps": 0.5}), ("eps: 1", {"eps": 1}), ("", {}), ("# none", {})])
def test_overrides(folder: Path, text: str, expected: dict) -> None:
    """A preset's file holds overrides only; an empty one changes nothing, toy has no file."""
    (folder / "params" / "small" / "01.yaml").write_text(text)
    known = study.parameters(study.notebook("01"))
    assert study.overrides("small", "01", known) == expected and study.overrides("toy", "01", known) == {}


@pytest.mark.parametrize(("text", "error", "message"), [
    ("epps: 0.5", ValueError, "key of params/small/01.yaml to be one of eps, seeds, got 'epps'; did you mean 'eps'?"),
    ("eps: 1e-3", TypeError, "float for eps in params/small/01.yaml, got '1e-3'; write 1.0e-3"),
    ("eps: 8/255", TypeError, "got '8/255'"),
    ("seeds: 3", TypeError, "expected list for seeds"),
    ("seeds:", TypeError, "expected list for seeds in params/small/01.yaml, got None"),
    ("- eps", TypeError, "expected a mapping of parameters in params/small/01.yaml"),
    ("eps: [0.5", ValueError, "expected YAML in params/small/01.yaml, got while parsing .* line 1"),
    ("eps: !!python/object/apply:os.getcwd []", ValueError, "expected YAML .*python/object"),
])
def test_illegal_overrides(folder: Path, text: str, error: type, message: str) -> None:
    """Unknown names, other types, no YAML and YAML that would run code are refused in one line."""
    (folder / "params" / "small" / "01.yaml").write_text(text)
    with pytest.raises(error, match=message) as caught:
        study.overrides("small", "01", study.parameters(study.notebook("01")))
    assert "\n" not in str(caught.value)


def test_unknown_presets_and_notebooks(folder: Path) -> None:
    """Each unknown name is answered with the known ones; a preset without a file names the file."""
    with pytest.raises(ValueError, match="preset to be one of toy, small, medium, paper, got 'smal'; did you mean 'small'"):
        study.overrides("smal", "01", {})
    with pytest.raises(FileNotFoundError, match="preset medium for notebook 01 .*params/medium/01.yaml"):
        study.overrides("medium", "01", {})
    with pytest.raises(ValueError, match="expected notebook to be one of 01, got '1'"):
        study.notebook("1")
    write_notebook(folder, "eps: float = 0.1\npreset: str = 'toy'\nthreads: int = 1", name="99_y.ipynb")
    with pytest.raises(ValueError, match="expected notebook with a study to be one of 01, got '99'"):
        study.jobs("toy", "99")
