"""What a notebook shows of a store, in this process: its cells run without computing; figures as the words in them."""

import ast
import contextlib
import io
import json

import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from twinslib.base import markdown
from twinslib.show import embedding, figures
from twinslib.store import store as store_module
from twinslib.store.store import Store
from twinslib.studies import presets


def show(number: str, store: Store, monkeypatch: pytest.MonkeyPatch, changed: dict | None = None) -> str:
    """Everything that a reader of the notebook would see, figures as the words in them. Figures are made but not written, and
    t-SNE is left out: both take most of the time and know nothing of runs. changed: parameters that differ from those of toy."""
    shown: list[str] = []

    def figure(fig: Figure, path, about: str = "") -> tuple:
        shown.append("\n".join(text.get_text() for text in fig.findobj(Text)))
        return path, path

    def display(*values: object) -> None:
        for value in values:
            table = markdown.to_markdown(value) if isinstance(value, pd.DataFrame) else None
            shown.append(table or getattr(value, "data", None) or str(value))

    with monkeypatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as printed, \
            pd.option_context("display.max_colwidth", None):
        patch.setattr(figures, "save", figure)
        patch.setattr(store_module, "Store", lambda preset: store)
        patch.setattr("IPython.display.Image", lambda *a, **k: "")
        patch.setattr(embedding, "course_projections", lambda course, seed: [])
        notebook = presets.notebook(number)
        names = presets.parameters(notebook) | (changed or {}) | {"preset": store.given, "compute": False, "display": display}
        for cell in json.loads(notebook.read_text())["cells"]:
            if cell["cell_type"] != "code" or "parameters" in cell["metadata"].get("tags", []):
                continue
            tree = ast.parse("".join(cell["source"]))
            last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
            exec(compile(tree, notebook.name, "exec"), names)
            if last is not None:
                value = eval(compile(ast.Expression(last.value), notebook.name, "eval"), names)
                if value is not None:
                    display(value)
    page = (store.root / "tables" / f"{number}.md").read_text()
    return "\n".join([*shown, printed.getvalue(), page])
