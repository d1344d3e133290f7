"""The runner: what is rendered is finished, what fails leaves nothing at the final path, bad calls get one message."""

import os
import subprocess
from pathlib import Path

import nbformat
import pytest

from twinslib import __main__ as cli
from twinslib.base import paths
from twinslib.site import render
from twinslib.studies import plan

ROOT = Path(__file__).parent.parent


def write_notebook(path: Path, *cells: str, tag_first: bool = True) -> Path:
    """A notebook of the given code cells, the first one tagged parameters."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    if tag_first:
        notebook.cells[0].metadata.tags = ["parameters"]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)
    return path


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """An empty notebooks folder that the library takes for its own."""
    folder = tmp_path / "notebooks"
    (folder / "params" / "small").mkdir(parents=True)
    monkeypatch.setattr(paths, "notebooks_dir", lambda: folder)
    monkeypatch.setitem(plan.STUDIES, "01", lambda eps, best: [])
    return folder


def test_good_notebook_is_rendered(tmp_path):
    """Notebook and page appear with the given parameters, temporary files go; the folder's name may hold braces."""
    notebook = write_notebook(tmp_path / "{odd}" / "01_good.ipynb", "eps: float = 0.1", "print('eps', eps)")
    final = render.render_notebook(notebook, {"eps": 0.5}, tmp_path / "{odd}" / "out")
    assert sorted(p.name for p in final.parent.iterdir()) == ["01_good.html", "01_good.ipynb"]
    rendered = nbformat.read(final, 4)
    assert rendered.cells[-1].outputs[0].text == "eps 0.5\n"
    assert "eps 0.5" in final.with_suffix(".html").read_text()
    assert str(tmp_path) not in final.read_text() + final.with_suffix(".html").read_text()


def test_failure_and_what_follows(tmp_path, capsys):
    """A failure leaves nothing at the final path, the next run only with keep_going, what is done is skipped."""
    bad = write_notebook(tmp_path / "01_bad.ipynb", "eps: float = 0.1", "raise ValueError('as expected')", "print(eps)")
    good = write_notebook(tmp_path / "02_good.ipynb", "eps: float = 0.1", "print(eps)")
    jobs, out = [(bad, {}), (good, {})], tmp_path / "out"
    assert [status for _, status, _ in render.render_all(jobs, out)] == ["failed", "not run"]
    assert "01_bad.ipynb" in (message := capsys.readouterr().err) and "as expected" in message
    assert [p.name for p in out.iterdir() if p.is_file()] == [".01_bad.partial.ipynb"]
    assert [status for _, status, _ in render.render_all(jobs, out, keep_going=True)] == ["failed", "rendered"]
    assert not (out / "01_bad.ipynb").exists() and (out / "02_good.ipynb").exists()
    assert [status for _, status, _ in render.render_all(jobs[1:], out)] == ["unchanged"]


@pytest.mark.parametrize("cell", ["assert eps < 1", "assert eps < 1 or exit(0)"])
def test_failure_keeps_the_last_good_rendering(tmp_path, cell):
    """What was rendered before stays as it was when the notebook breaks."""
    notebook = write_notebook(tmp_path / "01_x.ipynb", "eps: float = 0.1", cell, "print(eps)")
    before = render.render_notebook(notebook, {}, tmp_path / "out").read_bytes()
    assert render.render_all([(notebook, {"eps": 2.0})], tmp_path / "out")[0][1] == "failed"
    assert (tmp_path / "out" / "01_x.ipynb").read_bytes() == before


def test_rendering_depends_on_rows_and_parameters(tmp_path):
    """The fingerprint changes with the notebook, a parameter, a row, a result or a run that diverged, and with nothing else."""
    notebook = write_notebook(tmp_path / "01_x.ipynb", "eps: float = 0.1")
    (tmp_path / "out" / "rows").mkdir(parents=True)
    seen = [render.fingerprint(notebook, {"a": 1, "b": 2}, tmp_path / "out")]
    assert render.fingerprint(notebook, {"b": 2, "a": 1}, tmp_path / "out") == seen[0]
    seen.append(render.fingerprint(notebook, {"a": 1, "b": 3}, tmp_path / "out"))
    (tmp_path / "out" / "rows" / "x.csv").write_text("value\n0.5\n")
    seen.append(render.fingerprint(notebook, {"a": 1, "b": 2}, tmp_path / "out"))
    write_notebook(notebook, "eps: float = 0.2")
    seen.append(render.fingerprint(notebook, {"a": 1, "b": 2}, tmp_path / "out"))
    (tmp_path / "out" / "diverged").mkdir()
    (tmp_path / "out" / "diverged" / "x.json").write_text("{}")
    seen.append(render.fingerprint(notebook, {"a": 1, "b": 2}, tmp_path / "out"))
    (tmp_path / "out" / "votes").mkdir()
    (tmp_path / "out" / "votes" / "x.npz").touch()
    seen.append(render.fingerprint(notebook, {"a": 1, "b": 2}, tmp_path / "out"))
    assert len(set(seen)) == 6


def test_main_renders_the_preset(repository, capsys, monkeypatch):
    """The command renders into results/<preset> with the file's overrides, prints a table, and exits 1 on a failure. Notebooks
    import what can be imported where it is called, such as a network of one's own."""
    (repository.parent / "mynets.py").write_text("EPS = 0.5")
    monkeypatch.chdir(repository.parent)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    write_notebook(repository / "01_x.ipynb", "eps: float = 0.1", "import mynets", "assert eps == mynets.EPS")
    (repository / "params" / "small" / "01.yaml").write_text("eps: 0.5")
    assert cli.main(["render", "--preset", "small"]) == 0
    assert (paths.results_dir() / "small" / "01_x.ipynb").exists()
    assert capsys.readouterr().out.splitlines()[-1].split()[:2] == ["01_x", "rendered"]
    assert cli.main(["render", "--preset", "toy", "01"]) == 1
    assert list((paths.results_dir() / "toy").glob("0*")) == []


def run_all(*arguments: str, script: Path = ROOT / "run_all.sh", **env: str) -> subprocess.CompletedProcess:
    return subprocess.run([script, *arguments], env=os.environ | env, capture_output=True, text=True, timeout=300)


def test_shell_syntax():
    """The shell scripts parse; those that are called are executable."""
    for script in ("run_all.sh", "run_tests.sh", ".ci/run", ".ci/setup.sh"):
        subprocess.run(["bash", "-n", ROOT / script], check=True)
        assert script.endswith("setup.sh") or os.access(ROOT / script, os.X_OK)


def test_run_all_refuses(tmp_path):
    """A bad word is refused before anything is set up: one line with the usage, exit status 2."""
    (tmp_path / "first").symlink_to(ROOT / "run_all.sh")
    (tmp_path / "second").symlink_to("first")
    for script, arguments, message in (
            (ROOT / "run_all.sh", ["huge"], "expected a preset (toy, small, medium, paper), a notebook number"),
            (ROOT / "run_all.sh", ["toy", "small"], "expected one preset, got 'toy' and 'small'"),
            (ROOT / "run_all.sh", ["01", "toy", "01"], "expected each argument once, got '01' twice"),
            (ROOT / "run_all.sh", ["--force", "--force"], "expected each argument once, got '--force' twice"),
            (ROOT / "run_all.sh", [""], "or an option, got ''"),
            (ROOT / "run_all.sh", ["--params"], "expected a folder after --params, got nothing"),
            (ROOT / "run_all.sh", ["--params", "/absent"], "expected the folder of a study after --params, got '/absent'"),
            (ROOT / "run_all.sh", ["toy", "--params", "/tmp"], "expected one preset or study, got 'toy' and '/tmp'"),
            (ROOT / "run_all.sh", ["toy", "99"], "expected a notebook of notebooks/, got number '99'"),
            (tmp_path / "second", ["toy", "01", "--fast"], "got '--fast'")):
        done = run_all(*arguments, script=script, TWINS_PYTHON="no_such_python")
        assert done.returncode == 2 and done.stdout == ""
        assert message in done.stderr and "; usage: ./run_all.sh [toy|" in done.stderr and done.stderr.count("\n") == 1
