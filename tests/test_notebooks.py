"""Committed notebooks: thin, executed at toy, clean metadata; parameter files name what the notebooks know."""

import ast
import json
import re

from twinslib.base import paths
from twinslib.studies import plan, presets

NOTEBOOKS = sorted(paths.notebooks_dir().glob("*.ipynb"))
PARAMS = sorted((paths.notebooks_dir() / "params").glob("*/*"))


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


def test_parameters_cell():
    """Exactly one cell is tagged parameters; it holds annotated plain literals of the annotated type, at toy."""
    for path in NOTEBOOKS:
        (cell,) = [c for c in code_cells(path) if "parameters" in tags(c)]
        for node in ast.parse(source(cell)).body:
            assert isinstance(node, ast.AnnAssign) and isinstance(node.annotation, ast.Name), ast.unparse(node)
            assert type(ast.literal_eval(node.value)).__name__ == node.annotation.id, ast.unparse(node)
        assert presets.parameters(path)["preset"] == "toy"


def test_executed_in_order_and_thin():
    """Run once from the top without an error, checked cells have outputs (nbval passes those that never ran)."""
    for path in NOTEBOOKS:
        cells, lines = code_cells(path), 0
        assert [c["execution_count"] for c in cells] == list(range(1, len(cells) + 1)), path
        assert not any(o["output_type"] == "error" or o.get("name") == "stderr" for c in cells for o in c["outputs"]), path
        checked = [c for c in cells if "nbval-check-output" in tags(c)]
        assert checked and all(c["outputs"] for c in checked), path
        for cell in cells:
            tree = ast.parse(source(cell))  # a magic is a syntax error
            assert not any(isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) for n in ast.walk(tree)), path
            lines += sum(1 for line in source(cell).splitlines() if line.strip() and not line.strip().startswith("#"))
        assert lines <= 120 and path.stat().st_size < 1_250_000, path


def test_clean_metadata():
    """Nothing of the machine or the tool that ran it; what stands before the finding is folded, every picture has its words."""
    local = re.compile(r"(?<![\w.])/(home|root|tmp|work|Users|mnt|opt|usr)/")
    for path in NOTEBOOKS:
        notebook, cells = read(path), code_cells(path)
        assert notebook["metadata"]["kernelspec"]["name"] == "python3"
        assert set(notebook["metadata"]) <= {"kernelspec", "language_info"}
        assert "version" not in notebook["metadata"].get("language_info", {})
        assert all(set(cell["metadata"]) <= {"tags", "jupyter"} for cell in notebook["cells"]), path
        first = next(i for i, cell in enumerate(cells) if "finding" in tags(cell))
        assert all(cell["metadata"]["jupyter"] == {"source_hidden": True} for cell in cells[:first]), path
        for output in (o for cell in cells for o in cell["outputs"] if "image/png" in o.get("data", {})):
            assert output["metadata"]["image/png"]["alt"], path
        assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
        assert not [t for cell in cells for t in [source(cell), *texts(cell)] if local.search(t)], path


def test_parameter_files():
    """Every notebook has overrides for every larger preset, of names it knows and typed like its defaults."""
    known = {(preset, f"{p.stem[:2]}.yaml") for p in NOTEBOOKS for preset in presets.PRESETS if preset != "toy"}
    assert {(p.parent.name, p.name) for p in PARAMS} == known
    for preset, name in known:
        defaults = presets.parameters(presets.notebook(name[:2]))
        values = presets.overrides(preset, name[:2], defaults)
        presets.check_parameters(values, defaults, preset)
        assert values["preset"] == preset
