"""Where the numbers come from: every training run of a preset and what was measured on it, when, with what and on what."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..base.files import read_about, read_json
from ..specs.labels import DIVERGED, dataset_label, method_label
from ..specs.reading import from_dict
from ..specs.run import RunSpec
from ..store.store import Store
from .tables import join


@dataclass(frozen=True)
class Run:
    """A run, with its provenance entries: the training first, then what was measured. number: of its set of versions."""

    hash: str
    what: str
    state: str
    entries: tuple[Mapping, ...]
    number: str

    @property
    def measured(self) -> int:
        return sum(entry["kind"] != "train" for entry in self.entries)

    @property
    def started(self) -> str:
        """When the first of it began, in UTC."""
        return min((e["started"] for e in self.entries), default="").replace("T", " ")[:16]

    @property
    def ended(self) -> str:
        return max((e["ended"] for e in self.entries if "ended" in e), default="").replace("T", " ")[:16]

    @property
    def hours(self) -> float:
        return sum(e.get("seconds", 0.0) for e in self.entries) / 3600

    def each(self, name: str) -> str:
        """The different values that its entries have under a name, in their order; commit: in short, hardware: in words."""
        values = (WORDS.get(name, lambda entry: entry.get(name))(entry) for entry in self.entries)
        return join(dict.fromkeys(str(value) for value in values if value not in (None, "")))


def _hardware(entry: Mapping) -> str:
    name = entry.get("cpu", "cpu") if entry.get("device") == "cpu" else entry.get("device", "not recorded")
    kernels = (entry.get("instruction_set") or {}).get("torch") if entry.get("device") == "cpu" else None
    return ", ".join(filter(None, (name, kernels, f"{entry.get('threads', '?')} threads")))


WORDS = {"commit": lambda entry: entry["commit"][:7] + " with changes" * entry["changed"] if "commit" in entry else "",
         "hardware": _hardware}


def read(store: Store) -> tuple[list[Run], dict[str, Mapping[str, str]]]:
    """All runs in the order in which they began, and the sets of versions by the number that runs name them with."""
    found = [(path, read_json(path)) for folder in ("runs", "diverged") for path in sorted((store.root / folder).glob("*.json"))
             if "-" not in path.stem]  # a measurement that diverged belongs to its run
    entries = {path.stem: tuple(_entries(store, path.stem, record)) for path, record in found}
    sets: list[Mapping[str, str]] = []
    for entry in sorted((e for each in entries.values() for e in each if "versions" in e), key=lambda e: e["started"]):
        versions = {"Python": entry.get("python", "not recorded")} | entry["versions"]
        if versions not in sets:
            sets.append(versions)
    runs = []
    for path, record in found:
        mine = entries[path.stem]
        used = {sets.index({"Python": e.get("python", "not recorded")} | e["versions"]) + 1 for e in mine if "versions" in e}
        state = DIVERGED if path.parent.name == "diverged" else "finished"
        runs.append(Run(path.stem, _what(from_dict(RunSpec, record["spec"])), state, mine, join(map(str, sorted(used))) or "—"))
    return sorted(runs, key=lambda run: (run.started, run.hash)), {str(i): v for i, v in enumerate(sets, start=1)}


def _entries(store: Store, name: str, record: Mapping) -> Iterator[dict]:
    """Provenance of the training and of each measurement."""
    if train := record.get("provenance"):
        yield {"kind": "train"} | train
    for folder in ("masks", "votes"):
        for path in sorted((store.root / folder).glob(f"{name}-*.npz")):
            if found := read_about(path).get("provenance"):
                yield {"kind": path.stem} | found


def _what(spec: RunSpec) -> str:
    """AT on CIFAR-10, seed 1, from AT on Tiny-ImageNet."""
    start = f", from {_what(spec.source)}" if spec.source else f", from {Path(spec.weights.file).name}" if spec.weights else ""
    return f"{method_label(spec.method.name)} on {dataset_label(spec.data.name)}, seed {spec.seed}{start}"
