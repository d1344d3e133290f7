"""Reading everything: what is damaged, foreign or missing is named, and what is moved aside is made again."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.compute.made import compute, contents
from tests.faults.harness import jobs
from twinslib.base.files import read_json, write_json, write_npz
from twinslib.specs.jobs import Task
from twinslib.store.check import KINDS, check, repair
from twinslib.store.store import Store

SOURCE, AT, TWINS = jobs()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A finished store."""
    store = Store("tiny", root=tmp_path_factory.mktemp("whole"))
    assert not compute(store, jobs()).failed
    return store


@pytest.fixture
def store(whole: Store, tmp_path: Path) -> Store:
    """A copy of it."""
    return Store("tiny", root=shutil.copytree(whole.root, tmp_path / "store"))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def impossible(path: Path) -> None:
    record = read_json(path)
    record["epochs"][0]["val_clean_acc"] = 5.0
    write_json(path, record)


def other(path: Path) -> None:
    """Another one's file under this name."""
    shutil.copy2(next(p for p in sorted(path.parent.glob(f"*{path.suffix}")) if p != path), path)


def others_measurement(path: Path) -> None:
    write_npz(path, {"none": np.zeros(7, bool)}, {"run": AT.spec.hash, "measurement": {}})


RECORD, MASKS, VOTES = Task(AT.spec), Task(AT.spec, AT.evals[0]), Task(AT.spec, AT.certs[0])
DAMAGE = [
    (lambda s: s.path(RECORD), cut, "expected JSON"), (lambda s: s.path(RECORD), impossible, "accuracies within 0 and 1"),
    (lambda s: s.path(RECORD), other, "expected the spec of"), (lambda s: s.path(MASKS), cut, "damaged or foreign"),
    (lambda s: s.path(MASKS), other, "expected run"), (lambda s: s.path(VOTES), cut, "damaged or foreign"),
    (lambda s: s.path(MASKS), others_measurement, "in EvalSpec"), (lambda s: s.weights_path(AT.spec), other, "the spec of"),
    (lambda s: s.weights_path(AT.spec), cut, "weights as they were written"),
    (lambda s: s.root / "courses" / f"{AT.spec.hash}.npz", cut, "damaged or foreign"),
    (lambda s: next(s.root.glob("splits/*.npz")), cut, "damaged or foreign"),
    (lambda s: s.root / "weights" / f"{SOURCE.spec.hash}.json", cut, "expected JSON"),
]


@pytest.mark.parametrize(("which", "damage", "what"), DAMAGE, ids=lambda x: getattr(x, "__name__", x))
def test_damage_is_found_and_mended(whole: Store, store: Store, which, damage, what: str) -> None:
    """The file is named with what is wrong; moved aside it is made again by the next sweep, and all is as before."""
    path = which(store)
    damage(path)
    (problem,), count = check(store)
    assert (problem.kind, problem.path) == ("damaged", path) and what in problem.what and count > 15
    ((again, aside),) = repair(store)
    assert again == problem and aside.exists() and not path.exists() and aside.parent == store.root / "work" / "aside"
    assert not compute(store, jobs()).failed
    if "weights" not in path.parts and path.suffix != ".safetensors":
        assert contents(store, *jobs()) == contents(whole, *jobs()) and check(store)[0] == []


def test_a_task_that_ends_meanwhile(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a worker takes away while everything is read is no problem, and not counted."""
    count = check(store)[1]
    write_json(store.work_path(f"{AT.spec.hash}.json"), {})
    pattern = next(key for key, read in KINDS.items() if key.startswith("work/") and read is read_json)
    monkeypatch.setitem(KINDS, pattern, lambda path: (path.unlink(), read_json(path)))
    assert check(store) == ([], count)


def test_a_folder_that_lies_elsewhere(store: Store, tmp_path: Path) -> None:
    """What is behind a link is read too."""
    cut(store.path(MASKS))
    (store.root / "masks").rename(tmp_path / "elsewhere")
    (store.root / "masks").symlink_to(tmp_path / "elsewhere")
    assert [p.path for p in check(store)[0]] == [store.path(MASKS)]


def test_names_of_sets() -> None:
    """A split may be of any set that can be packed."""
    assert any(re.fullmatch(pattern, "splits/flowers.v2+more-0a1b2c3d.npz") for pattern in KINDS)


def test_foreign_and_missing(store: Store) -> None:
    """A file that no store has, and what a result needs and is not there; only the former can be moved."""
    assert check(store)[0] == []
    (store.root / "masks" / "notes.txt").write_text("mine")
    store.path(Task(SOURCE.spec)).unlink()
    (store.root / "courses" / f"{AT.spec.hash}.npz").unlink()
    found = {(p.kind, str(p.path.relative_to(store.root))) for p in check(store)[0]}
    assert found == {("foreign", "masks/notes.txt"), ("missing", f"runs/{SOURCE.spec.hash}.json"),
                     ("missing", f"courses/{AT.spec.hash}.npz")}
    assert [path.name for _, path in repair(store)] == ["masks_notes.txt"]
