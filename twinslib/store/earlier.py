"""Results of earlier versions, written as today: a file per measurement, with provenance and digest inside."""

import contextlib
import json
from collections.abc import Mapping

from ..base.files import read_about, read_json, read_npz, write_json, write_npz
from ..specs.jobs import Task
from ..specs.measure import CertifySpec, EvalSpec
from ..specs.reading import canonical_json, from_dict
from ..specs.run import RunSpec
from .store import Store, about
from .votes import load_votes


def upgrade(store: Store, runs: Mapping[str, RunSpec], certifications: Mapping[str, CertifySpec]) -> int:
    """Write every result of an earlier version anew; returns how many. Weights stay, as their run's record holds their hash.

    Whenever it is killed, nothing is lost, and the next call goes on. `runs`, `certifications`: by hash; files of runs that
    diverged, and votes, were named after them but do not hold them."""
    count = 0
    for path in sorted(store.root.glob("runs/*.json")):
        record = read_json(path)
        spec, kept = from_dict(RunSpec, record["spec"]), store.root / "provenance" / path.name
        entries = read_json(kept) if kept.exists() else {}
        for task, new in [*_masks(store, spec), *_votes(store, spec, certifications)]:
            new(about(task) | {"provenance": _entry(entries, task.kind)})
            count += 1
        course = store.root / "courses" / f"{path.stem}.npz"
        if course.exists() and not read_about(course):
            write_npz(course, read_npz(course), {"run": path.stem}, compress=True)
            count += 1
        (store.root / "masks" / f"{path.stem}.npz").unlink(missing_ok=True)
        if not record.get("provenance"):
            again = {"again": entries["train again"]} if "train again" in entries else {}
            write_json(path, record | {"provenance": _entry(entries, "train"), **again})
            count += 1
        kept.unlink(missing_ok=True)
    for path in store.root.glob("provenance/*.json"):
        entry = read_json(path).get("train", {})
        if "diverged" in entry and path.stem in runs:
            write_json(store.diverged_path(runs[path.stem]), {
                "spec": json.loads(canonical_json(runs[path.stem])), "diverged": entry.pop("diverged"), "epochs": [],
                "provenance": entry})
            path.unlink()
            count += 1
    with contextlib.suppress(OSError):  # absent, or something of others in it
        (store.root / "provenance").rmdir()
    for path in store.root.glob("splits/*.npz"):
        if not read_about(path):
            arrays = read_npz(path)
            write_npz(path, arrays, {"data": json.loads(str(arrays["settings"]))["fingerprint"]}, compress=True)
            count += 1
    return count


def _entry(entries: Mapping, kind: str) -> dict:
    """Provenance of a piece; of one whose process was killed before it wrote that, what was known when it began."""
    return {k: v for k, v in entries.get(kind, {}).items() if k != "unfinished"}


def _masks(store: Store, spec: RunSpec) -> list:
    path, found = store.root / "masks" / f"{spec.hash}.npz", {}
    for key, array in (read_npz(path) if path.exists() else {}).items():
        name, stage = key.split("/")
        found.setdefault(name, {})[stage] = array
    out = []
    for stages in found.values():
        task = Task(spec, from_dict(EvalSpec, json.loads(str(stages.pop("spec")))))
        out.append((task, lambda what, task=task, stages=stages: write_npz(store.path(task), stages, what, compress=True)))
    return out


def _votes(store: Store, spec: RunSpec, certifications: Mapping[str, CertifySpec]) -> list:
    out = []
    for path in store.root.glob(f"votes/{spec.hash}-*.npz"):
        if not read_about(path):
            task = Task(spec, certifications[path.stem.split("-")[1]])
            out.append((task, lambda what, path=path: load_votes(path).save(path, what)))
    return out

