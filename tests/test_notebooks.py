"""Committed notebooks: thin, executed at toy, clean metadata; parameter files name what the notebooks know."""

import ast
import json
import re

import pytest
import yaml

from twinslib.base import paths
from twinslib.studies import plan, presets

NOTEBOOKS = sorted(paths.notebooks_dir().glob("*.ipynb"))
PARAMS = sorted((paths.notebooks_dir() / "params").glob("*/*"))
notebooks = pytest.mark.parametrize("path", NOTEBOOKS, ids=[p.stem for p in NOTEBOOKS])


def read(path):
    return json.loads(path.read_text())


def code_cells(path):
    return [cell for cell in read(path)["cells"] if cell["cell_type"] == "code"]


def source(cell):
    return "".join(cell["source"])


def tags(cell):
    return cell["metadata"].get("tags", [])


def texts(cell):
    """All text outputs of a cell."""
    for output in cell["outputs"]:
        yield "".join(output.get("text", []))
        for kind, value in output.get("data", {}).items():
            if kind.startswith("text/"):
                yield "".join(value)


def test_names():
    """Notebooks are named NN_name.ipynb with numbers of their own, and each number has a study."""
    assert NOTEBOOKS and all(re.fullmatch(r"\d\d_[a-z0-9_]+", p.stem) for p in NOTEBOOKS)
    assert len({p.stem[:2] for p in NOTEBOOKS}) == len(NOTEBOOKS)
    assert {p.stem[:2] for p in NOTEBOOKS} <= set(plan.STUDIES)


@notebooks
def test_parameters_cell(path):
    """Exactly one cell is tagged parameters; it holds annotated plain literals of the annotated type, at toy."""
    (cell,) = [c for c in code_cells(path) if "parameters" in tags(c)]
    for node in ast.parse(source(cell)).body:
        assert isinstance(node, ast.AnnAssign) and isinstance(node.annotation, ast.Name), ast.unparse(node)
        assert type(ast.literal_eval(node.value)).__name__ == node.annotation.id, ast.unparse(node)
    assert presets.parameters(path)["preset"] == "toy"


@notebooks
def test_executed_in_order(path):
    """Run top-down once: counts 1…n, no error; checked cells have outputs, for nbval passes those that never ran."""
    cells = code_cells(path)
    assert [c["execution_count"] for c in cells] == list(range(1, len(cells) + 1))
    assert not any(o["output_type"] == "error" or o.get("name") == "stderr" for c in cells for o in c["outputs"])
    checked = [c for c in cells if "nbval-check-output" in tags(c)]
    assert checked and all(c["outputs"] for c in checked)


@notebooks
def test_thin(path):
    """No function, class or magic, at most 120 lines of code, under 1.25 MB: what is more belongs in the library."""
    lines = 0
    for cell in code_cells(path):
        tree = ast.parse(source(cell))  # a magic is a syntax error
        assert not any(isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) for n in ast.walk(tree))
        lines += sum(1 for line in source(cell).splitlines() if line.strip() and not line.strip().startswith("#"))
    assert lines <= 120
    assert path.stat().st_size < 1_250_000


@notebooks
def test_clean_metadata(path):
    """Kernel python3; nothing of the machine or the tool that ran it: no papermill record, version, time or path; what stands
    before the finding is folded, and every picture has its words."""
    notebook = read(path)
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    assert set(notebook["metadata"]) <= {"kernelspec", "language_info"}
    assert "version" not in notebook["metadata"].get("language_info", {})
    assert all(set(cell["metadata"]) <= {"tags", "jupyter"} for cell in notebook["cells"])
    cells = code_cells(path)
    first = next(i for i, cell in enumerate(cells) if "finding" in tags(cell))
    assert all(cell["metadata"]["jupyter"] == {"source_hidden": True} for cell in cells[:first])
    for output in (o for cell in cells for o in cell["outputs"] if "image/png" in o.get("data", {})):
        assert output["metadata"]["image/png"]["alt"]
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    local = re.compile(r"(?<![\w.])/(home|root|tmp|work|Users|mnt|opt|usr)/")
    assert not [t for cell in code_cells(path) for t in [source(cell), *texts(cell)] if local.search(t)]


@notebooks
@pytest.mark.parametrize("preset", [p for p in presets.PRESETS if p != "toy"])
def test_parameter_files(path, preset):
    """Every notebook has overrides for every larger preset: names it knows, values typed like its defaults."""
    defaults = presets.parameters(path)
    values = presets.overrides(preset, path.stem[:2], defaults)
    presets.check_parameters(values, defaults, preset)
    assert values["preset"] == preset


def test_no_stray_parameter_files():
    """Each parameter file belongs to a preset and a notebook, and is a mapping."""
    known = {(preset, f"{p.stem[:2]}.yaml") for p in NOTEBOOKS for preset in presets.PRESETS if preset != "toy"}
    assert {(p.parent.name, p.name) for p in PARAMS} <= known
    assert all(isinstance(yaml.safe_load(p.read_text()), dict) for p in PARAMS)
