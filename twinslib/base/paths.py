"""Where data, results and notebooks live; the only place that knows.

`TWINS_DATA`, `TWINS_RESULTS` and `TWINS_ROOT` override the defaults. Nothing is created here: whoever writes makes the folder.
"""

import os
from pathlib import Path


def _root() -> Path:
    """Root of the repository: `$TWINS_ROOT`, else where this file lies in one, else the current folder."""
    parent = Path(__file__).resolve().parents[2]
    return _from_environment("TWINS_ROOT") or (parent if (parent / "pyproject.toml").is_file() else Path.cwd())


def _from_environment(variable: str) -> Path | None:
    value = os.environ.get(variable)
    try:
        path = Path(value).expanduser() if value else None
    except RuntimeError:
        raise ValueError(f"expected a folder in {variable}, got {value!r}, of an unknown user; write it out") from None
    if path is not None and path.exists() and not path.is_dir():
        raise ValueError(f"expected a folder in {variable}, got {value!r}, which is none; name another")
    return path


def settle() -> None:
    """Make relative folders in the variables absolute: kernels of notebooks run in another folder than the command they serve."""
    for variable in ("TWINS_DATA", "TWINS_RESULTS", "TWINS_ROOT"):
        value = os.environ.get(variable)
        if value and not value.startswith("~"):
            os.environ[variable] = os.path.abspath(value)


def data_dir() -> Path:
    """Folder of the packed image sets: `$TWINS_DATA`, else `twins` in the user's cache folder."""
    given = _from_environment("TWINS_DATA")
    if given:
        return given
    try:
        return (_from_environment("XDG_CACHE_HOME") or Path.home() / ".cache") / "twins"
    except RuntimeError:
        raise ValueError("expected a home folder, or a folder in TWINS_DATA, got neither; set TWINS_DATA") from None


def results_dir() -> Path:
    """Folder of rows, figures and shipped weights: `$TWINS_RESULTS`, else `results` at the root of the repository."""
    return _from_environment("TWINS_RESULTS") or _root() / "results"


def shipped_dir() -> Path:
    """Folder of the results that ship with the repository, wherever new ones go."""
    return _root() / "results"


def notebooks_dir() -> Path:
    """Folder of the notebooks and their parameter files."""
    return _root() / "notebooks"
