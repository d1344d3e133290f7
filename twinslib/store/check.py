"""Reading everything in a store: what is damaged, what does not belong there, and what something else needs and is not there."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ..base.files import check_safetensors, meta_of, read_about, read_bytes, read_json, read_npz, refused
from ..specs.measure import CertifySpec, EvalSpec
from ..specs.reading import from_dict, spec_hash
from ..specs.run import RunSpec
from .store import Store, check_epochs, check_masks
from .votes import load_votes

RUN, MEASURED = r"[0-9a-f]{12}", r"[0-9a-f]{12}-[0-9a-f]{12}"
SHOWN = ("rows/*.csv", "epochs/*.csv", "tables/*.md", "figures/*.p[nd][gf]", "[0-9][0-9]_*.ipynb",
         "[0-9][0-9]_*.html", ".*")  # made from results
OTHERS = ("work/leases", "work/workers", "work/aside")  # nobody's numbers


class Problem(NamedTuple):
    """A file that is damaged or foreign, or one that is missing, and what is wrong."""

    kind: str
    path: Path
    what: str


def check(store: Store) -> tuple[list[Problem], int]:
    """(everything that is wrong with the files of a store, how many files were read)."""
    problems, count, records = [], 0, {}
    files = (Path(folder, name) for folder, _, names in os.walk(store.root, followlinks=True) for name in names)
    for path in sorted(p for p in files if p.is_file()):
        name = path.relative_to(store.root)
        if any(name.match(pattern) for pattern in SHOWN) or str(name).startswith(OTHERS):
            continue
        count += 1
        read = next((read for pattern, read in KINDS.items() if re.fullmatch(pattern, str(name))), None)
        if read is None:
            problems.append(Problem("foreign", path, "no file of a store has such a name"))
            continue
        try:
            found = read(path)
        except FileNotFoundError:  # its task ended meanwhile
            count -= 1
        except (ValueError, TypeError) as error:
            problems.append(Problem("damaged", path, str(error)))
        else:
            records |= {path.stem: found} if name.parent.name == "runs" else {}
    return problems + _missing(store, records, {p.path for p in problems}), count


def repair(store: Store) -> list[tuple[Problem, Path]]:
    """Move what is damaged or foreign into work/aside/, where a sweep does not look: (problem, where it lies now) of each."""
    moved = []
    for problem in check(store)[0]:
        if problem.kind == "missing" or not problem.path.exists():
            continue
        target = store.root / "work" / "aside" / "_".join(problem.path.relative_to(store.root).parts)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(problem.path, target)
        moved.append((problem, target))
    return moved


def _missing(store: Store, records: dict[str, dict], wrong: set[Path]) -> list[Problem]:
    def problem(path: Path, what: str) -> list[Problem]:
        return [] if path.exists() or path in wrong else [Problem("missing", path, what)]

    out = []
    for run, record in records.items():
        spec = from_dict(RunSpec, record["spec"])
        out += problem(store.root / "splits" / f"{record.get('split')}.npz", f"the split of run {run}")
        if spec.follow:
            out += problem(store.root / "courses" / f"{run}.npz", f"the course of run {run}, which was followed")
        if spec.source:
            out += problem(store.root / "runs" / f"{spec.source.hash}.json", f"run {spec.source.hash}, from which {run} started")
    for folder in ("masks", "votes", "courses", "weights"):
        for path in sorted(store.root.glob(f"{folder}/*.*")):
            run = path.stem.split("-")[0]
            if run not in records and re.fullmatch(RUN, run):
                out += problem(store.root / "runs" / f"{run}.json", f"the run of {folder}/{path.name}")
    return list(dict.fromkeys(out))


def _named(path: Path, spec: object, name: str) -> None:
    if spec_hash(spec) != name:
        raise refused(path, f"the spec of {name}", f"that of {spec_hash(spec)}")


def _record(path: Path) -> dict:
    record = read_json(path)
    if not isinstance(record.get("spec"), dict):
        raise refused(path, "the spec of a run", "none")
    _named(path, from_dict(RunSpec, record["spec"]), path.stem.split("-")[0])
    check_epochs(path, record.get("epochs", []))
    return record


def _masks(path: Path) -> None:
    about, (run, name) = read_about(path), path.stem.split("-")
    arrays = read_npz(path, {"run": run})
    spec = from_dict(EvalSpec, about.get("measurement") or {})
    _named(path, spec, name)
    check_masks(path, arrays, spec.images)


def _votes(path: Path) -> None:
    run, name = path.stem.split("-")
    load_votes(path, {"run": run})
    measured = read_about(path).get("measurement")
    if measured:
        _named(path, from_dict(CertifySpec, measured), name)


def _split(path: Path) -> None:
    if lacking := {"train", "val", "test", "settings"} - set(read_npz(path)):
        raise refused(path, "a split", f"arrays without {', '.join(sorted(lacking))}")


def _weights(path: Path) -> None:
    check_safetensors(path)
    spec = meta_of(path).get("spec", "{}")
    _named(path, from_dict(RunSpec, json.loads(spec)), path.stem.split("-")[0])


def _beside(path: Path) -> None:
    _named(path, from_dict(RunSpec, read_json(path).get("spec") or {}), path.stem)


KINDS: dict[str, Callable[[Path], object]] = {
    r"(claims|waiting)\.json": read_json, r"claims\.md": Path.read_bytes,
    rf"runs/{RUN}\.json": _record, rf"diverged/({RUN}|{MEASURED})\.json": _record,
    rf"masks/{MEASURED}\.npz": _masks, rf"votes/{MEASURED}\.npz": _votes,
    rf"courses/{RUN}\.npz": lambda path: read_npz(path, {"run": path.stem}), r"splits/[\w.+-]+\.npz": _split,
    rf"(weights/{RUN}|work/{RUN}(-best)?)\.safetensors": _weights, rf"weights/{RUN}\.json": _beside,
    rf"work/({RUN}|{MEASURED})\.json": read_json,
    rf"work/{RUN}\.ckpt": lambda path: read_bytes(path, {"run": path.stem}), rf"work/{MEASURED}\.npz": load_votes,
    rf"work/{MEASURED}/\d+\.npz": lambda path: read_npz(path, {"run": path.parent.name.split("-")[0], "block": int(path.stem)})}
