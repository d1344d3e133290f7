"""A notebook's parameters, and the overrides of a preset or of a study of one's own.

The toy numbers are the notebook's own `parameters` cell; notebooks/params/<preset>/NN.yaml holds overrides only. A study of one's
own is a folder of such files anywhere (`own`), each with a line `from: PRESET`. Its whole path stands wherever a name of a preset
does, and the last part of the path is its name.
"""

import ast
import json
import math
import os
import re
from collections.abc import Iterable
from pathlib import Path

import yaml

from ..base import paths
from ..base.errors import choose, shown
from ..specs.reading import read

PRESETS = ("toy", "small", "medium", "paper")
SETTINGS = ("preset", "threads", "compute")  # parameters that change no run
MOST_BYTES, MOST_VALUES = 50_000, 50_000  # of a parameter file; with aliases written out


class _Loader(yaml.SafeLoader):
    """Safe YAML in which no key is there twice, and whose aliases do not multiply beyond `MOST_VALUES`."""

    def fetch_flow_collection_start(self, kind: type) -> None:
        if self.flow_level > 50:  # beyond, the scanner takes seconds
            raise RecursionError
        super().fetch_flow_collection_start(kind)

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node, lines = super().compose_mapping_node(anchor), {}
        for key, _ in node.value:
            name, line = (key.tag, str(key.value)), key.start_mark.line + 1
            if name in lines:
                raise yaml.YAMLError(f"the key {shown(key.value)} twice, in line {lines[name]} and in line {line}")
            lines[name] = line
        return node

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None and _size(node, {}) > MOST_VALUES:
            raise yaml.YAMLError(f"more than {MOST_VALUES:,} values once aliases (*name) are written out")
        return node


def _size(node: yaml.Node, sizes: dict[int, float]) -> float:
    """Values in a node, each alias counted as what it stands for; infinite where it holds itself."""
    if id(node) not in sizes:
        sizes[id(node)] = math.inf
        parts = node.value if isinstance(node, yaml.CollectionNode) else ()
        sizes[id(node)] = 1 + sum(_size(n, sizes) for part in parts for n in (part if isinstance(part, tuple) else (part,)))
    return sizes[id(node)]


def parameters(notebook: Path) -> dict:
    """The literals of the notebook's one cell tagged `parameters`, read without running it."""
    name = notebook.name
    try:
        every = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        cells = [c for c in every if "parameters" in c["metadata"].get("tags", [])]
        sources = ["".join(c["source"]) for c in cells]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"expected a notebook with cells in {notebook}, got {type(error).__name__}: {error}") from None
    if len(cells) != 1:
        raise ValueError(f"expected exactly one cell tagged parameters in {name}, got {len(cells)}")
    out = {}
    try:
        for node in ast.parse(sources[0]).body:
            if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None):
                raise ValueError(f"expected only annotated literals in the parameters of {name}, got {ast.unparse(node)}")
            if node.target.id in out:
                raise ValueError(f"expected each parameter of {name} once, got {node.target.id} twice")
            try:
                out[node.target.id] = ast.literal_eval(node.value)
            except (ValueError, TypeError) as error:
                raise ValueError(f"expected a literal for {node.target.id} in the parameters of {name}, got {error}") from None
    except (SyntaxError, RecursionError, MemoryError) as error:
        line = f" in line {error.lineno} of the cell" if isinstance(error, SyntaxError) else ""
        raise ValueError(f"expected Python in the parameters of {name}, got {getattr(error, 'msg', error)}{line}") from None
    return out


def is_own(preset: str) -> bool:
    """True for the folder of a study, False for the name of a preset."""
    return os.path.isabs(preset)


def check(preset: str) -> str:
    """The same, if it is the name of a preset, or the folder of a study. ValueError: an unknown preset; a folder whose name is no
    name for a study. FileNotFoundError: no parameter file in the folder."""
    if not is_own(preset):
        return choose(preset, PRESETS, "preset")
    name = check_name(Path(preset).name)
    if not any(Path(preset).glob("*.yaml")):
        raise FileNotFoundError(f"expected parameter files such as 01.yaml in the folder {preset}, got none; write them with "
                                f"python -m twinslib study new {name} --from small 01 --to {Path(preset).parent}")
    return preset


def check_name(name: str) -> str:
    """The same, if a study may be called that: its results are results/`name`, beside those of the presets."""
    if name in PRESETS:
        raise ValueError(f"expected another name for a study than those of the presets, got {name!r}")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", name):
        raise ValueError(f"expected letters, digits, - and _ in the name of a study, at most 64, got {shown(name)}")
    return name


def file_name(preset: str, number: str) -> str:
    """The file with the parameters of a notebook, for messages."""
    if preset == "toy":
        return notebook(number).name
    return f"{Path(preset).name}/{number}.yaml" if is_own(preset) else f"params/{preset}/{number}.yaml"


def options(preset: str) -> list[str]:
    """How a command is told of a preset, or of a study by its folder or name."""
    return ["--preset" if preset in PRESETS else "--params", preset]


def overrides(preset: str, number: str, known: dict) -> dict:
    """Overrides of a preset or study for notebook `number`, checked against the notebook's parameters, and the preset itself.
    FileNotFoundError: no such file. ValueError, TypeError: not YAML, a key that is there twice, another preset than the file's
    folder, an unknown preset or name, or a value of another type than the notebook's; in a study no `from`."""
    if check(preset) == "toy":
        return {}
    name, where, values, inherited = Path(preset).name, file_name(preset, number), _read(preset, number), {}
    if is_own(preset):
        if "from" not in values:
            raise ValueError(f"expected a line such as from: small in {where}, for all that the file leaves out, got none")
        inherited = overrides(choose(str(values.pop("from")), PRESETS, f"preset after from in {where}"), number, known)
    values = check_parameters(values, known, where)
    if values.get("preset", name) != name:
        raise ValueError(f"expected preset {name} in {where}, as its folder says, got {values['preset']!r}; leave it out")
    check_threads(values.get("threads", 0), f"threads in {where}")
    if is_own(preset) and values.get("crossed", {}).get("preset") == name:  # notebook 05: networks of this study's notebook 01
        values["crossed"]["preset"] = preset
    return inherited | values | ({"preset": preset} if "preset" in known else {})


def _read(preset: str, number: str) -> dict:
    """The parameter file of a notebook as it is."""
    own, where = is_own(preset), file_name(preset, number)
    path = (Path(preset) if own else paths.notebooks_dir() / "params" / preset) / f"{number}.yaml"
    if not path.is_file():
        raise FileNotFoundError(f"expected the parameters of {'study' if own else 'preset'} {Path(preset).name} for notebook "
                                f"{number} in {path}, got no such file")
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"expected at most {MOST_BYTES:,} bytes in {where}, got {path.stat().st_size:,}")
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except RecursionError:
        raise ValueError(f"expected YAML in {where}, got lists or mappings too deep in each other") from None
    except Exception as error:  # the boundary: what the parser raises is the file's fault, and it raises many kinds
        raise ValueError(f"expected YAML in {where}, got {' '.join(str(error).split()) or type(error).__name__}") from None
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise TypeError(f"expected a mapping of parameters in {where}, got {shown(values)}")
    return values


def origins(preset: str) -> set[str]:
    """The preset itself, or those that the files of a study come from."""
    return {str(_read(preset, number).get("from")) for number in numbers(preset)} if is_own(preset) else {preset}


def chosen(preset: str, number: str) -> tuple[dict, dict]:
    """(arguments of the study of notebook `number` at `preset`, but for `best`; the settings that go with them)."""
    known = parameters(notebook(number))
    values = known | overrides(preset, number, known)
    return {k: v for k, v in values.items() if k not in SETTINGS}, {k: values[k] for k in SETTINGS if k in values}


def check_parameters(values: dict, defaults: dict, where: str) -> dict:
    """The values, each of the type of its default (`reading.read`); what is inside of lists and mappings is read by the study.
    ValueError: a key of `values` that `defaults` lacks. TypeError: a value of another type."""
    for key in values:
        choose(key, defaults, f"key of {where}")
    return {key: read(object if defaults[key] is None else type(defaults[key]), value, f"{key} in {where}")
            for key, value in values.items()}


def check_threads(threads: int, what: str) -> None:
    """ValueError for less than 0 threads (0 leaves torch's default), or so many that they only stand in each other's way."""
    cores = os.cpu_count() or 1
    most = max(16, 4 * cores)  # results depend on the number, so a machine with few cores may be asked for more
    if not 0 <= threads <= most:
        raise ValueError(f"expected {what} from 0 to {most} (cores of this machine: {cores}), got {threads}")


def numbers(preset: str, asked: Iterable[str] = ()) -> list[str]:
    """The notebooks that are asked for, each once; if none is, those that there are parameters for. ValueError: a study has a
    file for a notebook that there is not, or none for one that is asked for."""
    there = list(notebooks())
    if is_own(check(preset)):
        files = sorted(Path(preset).glob("*.yaml"))
        there = [choose(file.stem, there, f"the number in the name of {file}") for file in files]
        asked = [choose(number, there, f"notebook of study {Path(preset).name}") for number in asked]
    return list(dict.fromkeys(asked)) or there


def notebooks() -> dict[str, Path]:
    """The notebooks that there are, by number. FileNotFoundError: none, as where the package is used outside of its
    repository."""
    folder = paths.notebooks_dir()
    found = {p.name[:2]: p for p in sorted(folder.glob("[0-9][0-9]_*.ipynb"))}
    if not found:
        raise FileNotFoundError(f"expected notebooks NN_name.ipynb in {folder}, got none; call this from the repository, or set "
                                f"TWINS_ROOT to its folder (results are looked for in {paths.results_dir()})")
    return found


def notebook(number: str) -> Path:
    """The notebook whose name begins with `number`."""
    found = notebooks()
    return found[choose(number, found, "notebook")]
