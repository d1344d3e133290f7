"""A notebook's parameters, and the overrides of a preset.

The toy numbers are the notebook's own `parameters` cell; notebooks/params/<preset>/NN.yaml holds overrides only.
"""

import ast
import json
from pathlib import Path

import yaml

from ..base import paths
from ..base.errors import choose

PRESETS = ("toy", "small", "medium", "paper")
SETTINGS = ("preset", "threads", "compute")  # parameters that change no run


def parameters(notebook: Path) -> dict:
    """The literals of the notebook's one cell tagged `parameters`, read without running it."""
    cells = [c for c in json.loads(notebook.read_text())["cells"] if "parameters" in c["metadata"].get("tags", [])]
    if len(cells) != 1:
        raise ValueError(f"expected exactly one cell tagged parameters in {notebook.name}, got {len(cells)}")
    out = {}
    for node in ast.parse("".join(cells[0]["source"])).body:
        if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None):
            raise ValueError(f"expected only annotated literals in the parameters of {notebook.name}, got {ast.unparse(node)}")
        out[node.target.id] = ast.literal_eval(node.value)
    return out


def overrides(preset: str, number: str, known: dict) -> dict:
    """Overrides of a preset for notebook `number`, checked against the notebook's parameters.

    Raises:
        FileNotFoundError: no such file.
        ValueError, TypeError: not YAML, an unknown preset or name, or a value of another type than the notebook's.
    """
    if choose(preset, PRESETS, "preset") == "toy":
        return {}
    path = paths.notebooks_dir() / "params" / preset / f"{number}.yaml"
    if not path.exists():
        raise FileNotFoundError(f"expected the parameters of preset {preset} for notebook {number} in {path}, got no such file")
    where = f"params/{preset}/{number}.yaml"
    try:
        values = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"expected YAML in {where}, got {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise TypeError(f"expected a mapping of parameters in {where}, got {values!r}")
    check_parameters(values, known, where)
    return values


def chosen(preset: str, number: str) -> tuple[dict, dict]:
    """(arguments of the study of notebook `number` at `preset`, but for `best`; the settings that go with them)."""
    known = parameters(notebook(number))
    values = known | overrides(preset, number, known)
    return {k: v for k, v in values.items() if k not in SETTINGS}, {k: values[k] for k in SETTINGS}


def check_parameters(values: dict, defaults: dict, where: str) -> None:
    """Refuse unknown names, and values of another type (YAML reads 1e-3 as text).

    Raises:
        ValueError: a key of `values` that `defaults` lacks.
        TypeError: a value of another type, at any depth `defaults` has too; int passes for float, None for all but
            lists and mappings.
    """
    for key, value in values.items():
        choose(key, defaults, f"key of {where}")
        _check_type(value, defaults[key], f"{key} in {where}")


def _check_type(value: object, default: object, name: str) -> None:
    empty = value is None and not isinstance(default, list | dict)
    if empty or default is None or (isinstance(default, float) and type(value) is int):
        return
    if type(value) is not type(default):
        hint = "; write 1.0e-3, not 1e-3" if isinstance(default, float) and isinstance(value, str) else ""
        raise TypeError(f"expected {type(default).__name__} for {name}, got {value!r}{hint}")
    if isinstance(value, dict):
        for key in value.keys() & default.keys():
            _check_type(value[key], default[key], f"{name}, {key}")
    elif isinstance(value, list) and default:
        for item in value:
            _check_type(item, default[0], f"item of {name}")


def notebooks() -> dict[str, Path]:
    """The notebooks that there are, by number."""
    return {p.name[:2]: p for p in sorted(paths.notebooks_dir().glob("[0-9][0-9]_*.ipynb"))}


def notebook(number: str) -> Path:
    """The notebook whose name begins with `number`."""
    found = notebooks()
    return found[choose(number, found, "notebook")]
