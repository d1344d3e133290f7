"""Where data, results and notebooks live; the only place that knows.

`TWINS_DATA` and `TWINS_RESULTS` override the defaults. Nothing is created here: whoever writes makes the folder.
"""

import os
from pathlib import Path


def _root() -> Path:
    """Root of the repository for an installation in editable mode, else the current folder."""
    parent = Path(__file__).resolve().parents[2]
    return parent if (parent / "pyproject.toml").is_file() else Path.cwd()


def _from_environment(variable: str) -> Path | None:
    value = os.environ.get(variable)
    return Path(value).expanduser() if value else None


def data_dir() -> Path:
    """Folder of the packed image sets: `$TWINS_DATA`, else `twins` in the user's cache folder."""
    cache = _from_environment("XDG_CACHE_HOME") or Path.home() / ".cache"
    return _from_environment("TWINS_DATA") or cache / "twins"


def results_dir() -> Path:
    """Folder of rows, figures and shipped weights: `$TWINS_RESULTS`, else `results` at the root of the repository."""
    return _from_environment("TWINS_RESULTS") or _root() / "results"


def notebooks_dir() -> Path:
    """Folder of the notebooks and their parameter files."""
    return _root() / "notebooks"
