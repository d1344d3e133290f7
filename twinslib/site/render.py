"""Run notebooks at a preset and keep the result: python -m twinslib render --preset toy [NN …]

Each notebook runs under a temporary name beside its final one. Only when every code cell has run without an error does
it become results/<preset>/NN_name.ipynb, with NN_name.html beside it: what lies there is always a finished rendering.
The HTML is the notebook's page of the site (`build`) as one file.
"""

import argparse
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import nbformat
import papermill

from ..base.files import atomic_write
from ..store.leases import Leases
from ..store.store import Store
from ..studies import own, plan, presets
from . import build

KEPT = ("tags", "jupyter")  # of a cell's metadata: what is checked, what is folded


def render_notebook(notebook: Path, parameters: Mapping, folder: Path) -> Path:
    """Run `notebook` with `parameters` over its defaults; returns `folder`/NN_name.ipynb, HTML beside it.

    Raises:
        papermill.PapermillExecutionError: a cell failed; see `folder`/.NN_name.partial.ipynb for all up to it.
        RuntimeError: the kernel died, or a cell was never run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / notebook.name
    partial = folder / f".{notebook.stem}.partial.ipynb"
    rendered = papermill.execute_notebook(
        _literal(notebook), _literal(partial), parameters=dict(parameters), kernel_name="python3", progress_bar=False,
        cwd=notebook.parent)  # as Jupyter and nbval do
    never_run = [i for i, cell in enumerate(rendered.cells)
                 if cell.cell_type == "code" and cell.source.strip() and cell.execution_count is None]
    if never_run:  # what papermill leaves after an interrupt, without saying so
        raise RuntimeError(f"expected every code cell of {notebook.name} to have run, got none in cells {never_run}")
    rendered.metadata.papermill.update(input_path=f"notebooks/{notebook.name}", output_path=final.name)
    for cell in rendered.cells:
        if "injected-parameters" in cell.metadata.get("tags", ()):
            cell.metadata["jupyter"] = {"source_hidden": True}  # folded, as the defaults above it are
    study = str(parameters.get("preset", ""))
    if presets.is_own(study):  # by its name: where it lies on this machine is nobody's matter
        rendered = nbformat.reads(nbformat.writes(rendered).replace(study, Path(study).name), 4)
    html = build.alone(Store(folder.name, root=folder), notebook.stem, rendered.cells)
    atomic_write(final, lambda tmp: nbformat.write(rendered, tmp))
    atomic_write(final.with_suffix(".html"), lambda tmp: Path(tmp).write_text(html, encoding="utf-8"))
    partial.unlink()
    return final


def update(notebook: Path, rendered: Path) -> None:
    """Put the outputs of a toy rendering into the notebook itself, without what the tool recorded: the committed form."""
    clean, done = nbformat.read(notebook, 4), nbformat.read(rendered, 4)
    done.cells = [c for c in done.cells if "injected-parameters" not in c.metadata.get("tags", [])]
    for cell, source in zip(done.cells, clean.cells, strict=True):
        cell.metadata = {key: source.metadata[key] for key in KEPT if source.metadata.get(key)}
        cell.id = source.id
        for output in cell.get("outputs", ()):
            if output.output_type != "stream":
                output.metadata = {key: words for key, words in output.metadata.items() if key == "image/png"}
    clean.cells = done.cells
    clean.metadata = {"kernelspec": clean.metadata.kernelspec, "language_info": {"name": "python"}}
    for count, cell in enumerate((c for c in clean.cells if c.cell_type == "code"), start=1):
        cell.execution_count = count
        for output in cell.outputs:
            if output.output_type == "execute_result":
                output.execution_count = count
    atomic_write(notebook, lambda tmp: nbformat.write(clean, tmp))


def _literal(path: Path) -> str:
    """Path for papermill, which would fill in anything in braces."""
    return str(path.resolve()).replace("{", "{{").replace("}", "}}")


def fingerprint(notebook: Path, parameters: Mapping, folder: Path) -> str:
    """Hash of all that a rendering depends on: notebook, parameters, the package, and in `folder` rows, what diverged and which
    results there are."""
    package = Path(__file__).parents[1]
    files = [notebook, *(f for kind in ("py", "csv", "yaml", "j2", "css") for f in sorted(package.rglob(f"*.{kind}"))),
             *sorted(folder.glob("**/*.csv")), *sorted(folder.glob("diverged/*.json"))]
    there = sorted(file.name for kind in ("masks", "votes", "courses") for file in folder.glob(f"{kind}/*.npz"))
    digest = hashlib.sha256(json.dumps([parameters, there], sort_keys=True).encode())
    for file in files:
        digest.update(file.name.encode() + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def render_all(jobs: Iterable[tuple[Path, Mapping]], folder: Path, *, force: bool = False,
               keep_going: bool = False) -> list[tuple[str, str, float]]:
    """Render (notebook, parameters) pairs in order; returns (name, status, seconds) for each.

    Status is rendered, unchanged (the last rendering here is of the same notebook, parameters, code and rows), failed,
    or not run (after a failure without `keep_going`). Errors of notebooks are printed, not raised.
    """
    rows = []
    for notebook, parameters in jobs:
        stamp = folder / f".{notebook.stem}.rendered"
        if any(status == "failed" for _, status, _ in rows) and not keep_going:
            rows.append((notebook.stem, "not run", 0.0))
            continue
        start = time.monotonic()
        with Leases(folder / "work" / "leases").hold(f"render-{notebook.stem}", lambda line: print(line, file=sys.stderr)):
            status = _render_one(notebook, parameters, folder, stamp, force)
        rows.append((notebook.stem, status, time.monotonic() - start))
    return rows


def _render_one(notebook: Path, parameters: Mapping, folder: Path, stamp: Path, force: bool) -> str:
    if not force and stamp.exists() and stamp.read_text() == fingerprint(notebook, parameters, folder):
        return "unchanged"
    print(f"rendering {notebook.stem}", file=sys.stderr, flush=True)
    try:
        render_notebook(notebook, parameters, folder)
        digest = fingerprint(notebook, parameters, folder)  # again: rendering may have written rows
        atomic_write(stamp, lambda tmp: Path(tmp).write_text(digest))
    except Exception as error:  # the boundary: whatever a notebook raises is its own failure, the others go on
        print(f"{notebook.name}: {type(error).__name__}: {str(error).strip()}", file=sys.stderr)
        return "failed"
    return "rendered"


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the `render` command, which sets `func(args) -> int`."""
    parser = commands.add_parser("render", help="run notebooks at a preset and keep them as notebook and page")
    parser.add_argument("numbers", nargs="*", metavar="NN", help="notebook numbers; default: all")
    own.add_options(parser)
    parser.add_argument("--force", action="store_true", help="render again what has not changed")
    parser.add_argument("--update", action="store_true", help="with toy: put the outputs into notebooks/ (to commit them)")
    parser.add_argument("--as-is", action="store_true", help="compute nothing: show what is finished, call the rest not run")
    parser.add_argument("--keep-going", action="store_true", help="go on with the next notebook after a failure")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Render what the command asks for; 1 if anything failed.

    Raises:
        ValueError, TypeError, FileNotFoundError: a wrong preset, notebook or parameter file, before anything is run.
    """
    if args.update and args.preset != "toy":
        raise ValueError(f"expected preset toy with --update, got {args.preset!r}; committed notebooks hold toy outputs")
    jobs, folder = [], Store(args.preset).root
    for number in presets.numbers(args.preset, args.numbers):
        notebook = presets.notebook(number)
        values = presets.overrides(args.preset, number, presets.parameters(notebook))
        plan.plan(args.preset, number)  # which refuses what its study does
        jobs.append((notebook, values | ({"compute": False} if args.as_is else {})))
    importable = [os.getcwd(), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    os.environ["PYTHONPATH"] = os.pathsep.join(map(os.path.abspath, importable))  # for kernels, which start in another folder
    rows = render_all(jobs, folder, force=args.force, keep_going=args.keep_going)
    if args.update:
        for notebook, _ in jobs:
            if (notebook.stem, "rendered") in {(name, status) for name, status, _ in rows}:
                update(notebook, folder / notebook.name)
    width = max((len(name) for name, _, _ in rows), default=8)
    for name, status, seconds in [("notebook", "status", "seconds"), *((n, s, f"{t:.0f}") for n, s, t in rows)]:
        print(f"{name:<{width}}  {status:<9}  {seconds:>7}")
    return 1 if any(status in ("failed", "not run") for _, status, _ in rows) else 0
