"""Notebooks made up for tests: cells that are tagged parameters."""

import json
from collections.abc import Mapping
from pathlib import Path


def write_notebook(path: Path, *sources: str | Mapping[str, object]) -> Path:
    """A notebook of such cells, each as it is written or of these parameters."""
    texts = [s if isinstance(s, str) else "\n".join(f"{k}: {type(v).__name__} = {v!r}" for k, v in s.items()) for s in sources]
    cells = [{"cell_type": "code", "metadata": {"tags": ["parameters"]}, "source": text} for text in texts]
    path.write_text(json.dumps({"cells": cells}))
    return path
