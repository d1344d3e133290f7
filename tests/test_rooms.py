"""How the package is built: what may import what, without circles, on few floors, in small files."""

import ast
import functools
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
MODULES = {".".join(p.relative_to(ROOT).with_suffix("").parts): p for p in (ROOT / "twinslib").rglob("*.py")}
READING = ("base", "specs", "store", "studies", "evidence", "claims", "show", "site")
COMPUTING = ("data", "nets", "attack", "train", "certify", "compute")
WITHOUT_TORCH = """
import importlib, pkgutil, sys

class Absent:
    def find_spec(name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchvision"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent)
for room in sys.argv[1:]:
    package = importlib.import_module(f"twinslib.{room}")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"twinslib.{room}.{module.name}")
"""
LIGHT = """
import sys, time
start = time.perf_counter()
import twinslib
print(time.perf_counter() - start, "torch" in sys.modules)
"""


@functools.cache
def imports() -> dict[str, set[str]]:
    """Module of the package -> those of the package that it imports, also inside its functions."""
    out = {}
    for name, path in MODULES.items():
        found: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                origin = ".".join([*name.split(".")[:-node.level], *([node.module] if node.module else [])])
                found |= {origin, *(f"{origin}.{alias.name}" for alias in node.names)}
        out[name] = found & MODULES.keys()
    return out


def room(module: str) -> str:
    """The package that a module is in; those outside of all are the commands."""
    parts = module.split(".")
    return parts[1] if len(parts) > 2 else "commands"


def floors(graph: dict[str, set[str]]) -> dict[str, int]:
    """On which floor each node stands: one above the highest that it needs.

    Raises:
        ValueError: a circle.
    """
    heights: dict[str, int] = {}

    def height(node: str, above: tuple[str, ...]) -> int:
        if node in above:
            raise ValueError(f"circle: {' -> '.join((*above, node))}")
        if node not in heights:
            heights[node] = 1 + max((height(below, (*above, node)) for below in sorted(graph[node])), default=0)
        return heights[node]

    for node in graph:
        height(node, ())
    return heights


def test_no_circles() -> None:
    """Neither between files nor between rooms."""
    floors(imports())
    floors(rooms())


def rooms() -> dict[str, set[str]]:
    """Room -> those that it needs."""
    out: dict[str, set[str]] = {}
    for module, needed in imports().items():
        out.setdefault(room(module), set()).update(room(n) for n in needed)
    return {name: needed - {name} for name, needed in out.items()}


def test_few_floors() -> None:
    """At most six of rooms, under the commands."""
    assert max(height for name, height in floors(rooms()).items() if name != "commands") <= 6


def test_two_towers() -> None:
    """What computes knows nothing of evidence, claims and figures; what reads knows nothing of computing."""
    needs = rooms()
    assert needs.keys() == {*READING, *COMPUTING, "commands"}
    for name in COMPUTING:
        assert not needs[name] & {"evidence", "claims", "show", "commands"}, name
    for name in READING:
        assert not needs[name] & {*COMPUTING, "commands"}, name


def test_reading_needs_no_torch() -> None:
    """Specs, store, studies and all that reads work where torch is not installed."""
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, *READING], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_import_is_light() -> None:
    """`import twinslib` takes less than a tenth of a second and no torch."""
    tries = [subprocess.run([sys.executable, "-c", LIGHT], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
             for _ in range(3)]
    assert min(float(seconds) for seconds, _ in tries) < 0.1 and {torch for _, torch in tries} == {"False"}


def test_small_files() -> None:
    """No file has more than 350 lines, and each says in its first line what a stranger would look for in it."""
    for module, text in ((module, path.read_text()) for module, path in MODULES.items()):
        assert len(text.splitlines()) <= 350 and ast.get_docstring(ast.parse(text)), module
