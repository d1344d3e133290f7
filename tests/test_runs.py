"""The store: finished means finished, whatever happens in between."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch

from twinslib import runs, table
from twinslib.config import AttackSpec, DataSpec, EvalSpec, ModelSpec, OptimSpec, RunSpec, WeightsSpec, method
from twinslib.runs import Job, Store, sweep

EPS = 16 / 255


def tiny_jobs(methods: tuple[str, ...] = ("at", "twins_trades"), *, lr: float = 0.05, epochs: int = 2) -> list[Job]:
    """A source and a few fine-tunes that take seconds: toy images, a tiny network, all kinds of evaluation."""
    data = dict(image_size=16, augment="crop", val_images=20)
    optim = OptimSpec(epochs=epochs, batch_size=20, lr=lr, val_every=1, val_steps=2)
    attack = AttackSpec(eps=EPS, step_size=EPS / 2, steps=2)
    source = RunSpec(data=DataSpec(name="toy_source", train_images=60, **data), model=ModelSpec(arch="tiny_resnet"),
                     method=method("at"), optim=optim, attack=attack)
    evals = (EvalSpec(kind="clean", images=40), EvalSpec(kind="pgd", images=40, eps=EPS, steps=3, batch_size=10),
             EvalSpec(kind="autoattack", images=6, eps=EPS, attacks=("apgd-ce",), batch_size=3))
    tunes = [RunSpec(data=DataSpec(name="toy_target", train_images=60, **data), model=ModelSpec(arch="tiny_resnet"),
                     method=method(name), optim=optim, attack=attack, source=source) for name in methods]
    return [Job("tiny", source, evals[:1], ship=True), *(Job("tiny", t, evals) for t in tunes)]


def contents(root: Path) -> dict[str, bytes]:
    """Bytes of everything that must not depend on how often a sweep was interrupted."""
    kept = [p for p in sorted(root.rglob("*")) if p.is_file() and not p.name.startswith(".")
            and not {"work", "provenance"} & set(p.relative_to(root).parts)]
    return {str(p.relative_to(root)): p.read_bytes() for p in kept}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> tuple[Path, dict[str, bytes]]:
    """An undisturbed sweep and the bytes that it leaves."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("undisturbed")
    store = Store("tiny", device="cpu", root=root)
    report = sweep(store, tiny_jobs())
    assert not report.failed and not report.left
    table.write(store, tiny_jobs(), "tiny")
    return root, contents(root)


def test_second_sweep_has_nothing_to_do(undisturbed) -> None:
    """A finished store is recognised; nothing is computed again and no byte changes."""
    root, before = undisturbed
    store = Store("tiny", device="cpu", root=root)
    assert store.missing(tiny_jobs()) == []
    assert sweep(store, tiny_jobs()).done == []
    assert contents(root) == before


def test_two_sweeps_are_byte_identical(undisturbed, tmp_path) -> None:
    """Another store, the same bytes: rows, epochs, masks, splits, run records and source weights."""
    torch.manual_seed(123)
    store = Store("tiny", device="cpu", root=tmp_path)
    sweep(store, tiny_jobs())
    table.write(store, tiny_jobs(), "tiny")
    assert contents(tmp_path) == undisturbed[1]


def test_rows_follow_the_masks(undisturbed) -> None:
    """Each row's value is the mean of its mask; every number names its attack, images and run."""
    root, _ = undisturbed
    store = Store("tiny", device="cpu", root=root)
    rows = table.rows(store, tiny_jobs())
    assert list(rows.columns) == table.COLUMNS and len(rows) == 7
    assert not rows.isna().any().any()
    for job in tiny_jobs():
        for e in job.evals:
            for stage, mask in store.masks(job.spec, e).items():
                row = rows[(rows.run == job.spec.hash) & (rows.attack == stage) & (rows.n == e.images)]
                assert row.value.item() == mask.mean() and mask.dtype == bool


def test_interrupted_between_any_two_steps(undisturbed, tmp_path) -> None:
    """A sweep that is stopped again and again, each time a little further, ends with the same bytes."""
    calls = [0]
    for turn in range(200):
        limit = [3 + turn % 4]

        def stop(limit=limit) -> bool:
            limit[0] -= 1
            return limit[0] < 0

        store = Store("tiny", device="cpu", root=tmp_path)
        calls[0] += 1
        if not sweep(store, tiny_jobs(), stop=stop).left:
            break
    assert calls[0] > 3
    table.write(store, tiny_jobs(), "tiny")
    assert contents(tmp_path) == undisturbed[1]


CHILD = """
import sys; sys.path.insert(0, {tests!r})
import torch; torch.set_num_threads(1)
from pathlib import Path
from test_runs import tiny_jobs
from twinslib import table
from twinslib.runs import Store, sweep
store = Store("tiny", device="cpu", root=Path({root!r}))
print("ready", flush=True)
sweep(store, tiny_jobs())
table.write(store, tiny_jobs(), "tiny")
"""


def child(root: Path) -> subprocess.Popen:
    code = CHILD.format(tests=str(Path(__file__).parent), root=str(root))
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True,
                               env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert process.stdout.readline() == "ready\n"
    return process


def test_killed_at_ten_random_moments(undisturbed, tmp_path) -> None:
    """SIGKILL at ten random moments, then one call to the end: the same bytes as the undisturbed sweep."""
    rng = random.Random(0)
    killed = 0
    for _ in range(40):
        process = child(tmp_path)
        time.sleep(rng.uniform(0.05, 1.5))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            killed += 1
        process.wait()
        if killed == 10:
            break
        if process.returncode == 0:  # it got to the end: begin again in part, so that ten kills really happen
            for path in sorted(tmp_path.glob("runs/*.json"))[1:] + sorted(tmp_path.glob("masks/*")):
                path.unlink()
    assert killed == 10
    process = child(tmp_path)
    assert process.wait(timeout=300) == 0
    assert contents(tmp_path) == undisturbed[1]


def test_left_overs_of_a_killed_process_are_removed(tmp_path) -> None:
    """Half-written temporary files go when the next sweep begins; finished files stay."""
    store = Store("tiny", device="cpu", root=tmp_path)
    sweep(store, tiny_jobs()[:1])
    before = contents(tmp_path)
    for folder in ("runs", "masks", "weights"):
        (tmp_path / folder / ".half.json.123.tmp").write_text("half")
    sweep(store, tiny_jobs()[:1])
    assert not list(tmp_path.rglob("*.tmp")) and contents(tmp_path) == before


def test_second_sweep_on_one_store_is_refused(undisturbed, tmp_path) -> None:
    """While one sweep holds a store, another gets one clear message, and the first one is not disturbed."""
    store = Store("tiny", device="cpu", root=tmp_path)
    with store.locked(), pytest.raises(ValueError, match=f"got one by process {os.getpid()}"):
        sweep(Store("tiny", device="cpu", root=tmp_path), tiny_jobs())
    assert sweep(store, tiny_jobs()[:1]).failed == []


def test_budget_stops(undisturbed, tmp_path) -> None:
    """A spent budget leaves all that is not done; a generous one leaves nothing."""
    store = Store("tiny", device="cpu", root=tmp_path)
    assert len(sweep(store, tiny_jobs(), budget=0.0).left) == 10
    assert sweep(store, tiny_jobs(), budget=600.0).left == []


def test_diverged_run_is_reported_and_the_others_go_on(tmp_path) -> None:
    """An absurd learning rate fails its own run; the source and the other method are finished and kept."""
    jobs = tiny_jobs(("at",))
    broken = Job("tiny", RunSpec(**{**vars(jobs[1].spec), "optim": OptimSpec(epochs=1, batch_size=20, lr=1e30)}),
                 jobs[1].evals)
    store = Store("tiny", device="cpu", root=tmp_path)
    report = sweep(store, [jobs[0], broken, jobs[1]])
    assert {t.spec.hash for t, _ in report.failed} == {broken.spec.hash} and "lower lr" in report.failed[0][1]
    assert store.missing(jobs) == [] and store.run(broken.spec) is None


def test_full_disk_loses_nothing(undisturbed, tmp_path, monkeypatch) -> None:
    """A write that fails for lack of space gives one clear message; after making room the rows are the same."""
    store = Store("tiny", device="cpu", root=tmp_path)
    real, written = os.replace, [0]

    def full(src, dst) -> None:
        written[0] += 1
        if written[0] == 6:
            raise OSError(28, "No space left on device")
        real(src, dst)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="make room and run the same command again"):
        sweep(store, tiny_jobs())
    monkeypatch.setattr(os, "replace", real)
    assert not list(tmp_path.rglob("*.tmp"))
    sweep(store, tiny_jobs())
    table.write(store, tiny_jobs(), "tiny")
    assert contents(tmp_path) == undisturbed[1]


@pytest.mark.parametrize(("damage", "message"), [
    (lambda p: p.write_bytes(p.read_bytes()[:500]), "truncated"),
    (lambda p: p.write_bytes(b"<html>not found</html>"), "web page"),
    (lambda p: torch.save({"model": print}, p), "safetensors"),
])
def test_damaged_source_weights_are_named(undisturbed, tmp_path, damage, message: str) -> None:
    """Truncated, foreign or pickled source weights stop the sweep with a message before any fine-tuning."""
    jobs = tiny_jobs(("at",))
    store = Store("tiny", device="cpu", root=tmp_path)
    sweep(store, jobs[:1])
    damage(store.weights_path(jobs[0].spec))
    with pytest.raises(ValueError, match=message):
        sweep(store, jobs)
    assert store.run(jobs[1].spec) is None


def test_source_weights_of_another_width_are_refused(undisturbed, tmp_path) -> None:
    """Source weights whose tensors do not fit the network are named, not loaded in part."""
    from twinslib.checkpoint import load_weights, save_weights
    from twinslib.models import make_model

    jobs = tiny_jobs(("at",))
    store = Store("tiny", device="cpu", root=tmp_path)
    sweep(store, jobs[:1])
    path = store.weights_path(jobs[0].spec)
    _, meta = load_weights(path)
    save_weights(path, make_model("thin_resnet10", 10, seed=0), meta)
    with pytest.raises(ValueError, match=f"{path.name}: expected"):
        sweep(store, jobs)


def test_fresh_clone_needs_no_training_for_finished_rows(undisturbed, tmp_path) -> None:
    """Without the work folder (a fresh clone) finished rows stand; a new evaluation trains again, to the same weights."""
    root, before = undisturbed
    for name, data in before.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    store = Store("tiny", device="cpu", root=tmp_path)
    assert store.missing(tiny_jobs()) == []
    extra = EvalSpec(kind="pgd", images=10, eps=EPS / 2, steps=2)
    jobs = [Job("tiny", j.spec, (*j.evals, extra)) if j.spec.source else j for j in tiny_jobs()]
    tasks = store.missing(jobs)
    assert [t.evaluation for t in tasks] == [None, extra, None, extra]
    recorded = store.run(jobs[1].spec)["weights"]
    sweep(store, jobs[:2])
    assert store.run(jobs[1].spec)["weights"] == recorded


@pytest.mark.parametrize(("change", "message"), [
    ({"evals": (EvalSpec(kind="clean", images=10**6),)}, "expected at most"),
    ({"data": {"exclude": ("nonesuch",)}}, "expected one of the 10 classes"),
    ({"data": {"train_images": 10**6}}, "ask for fewer"),
    ({"data": {"name": "nonesuch"}}, "nonesuch"),
    ({"data": {"image_size": 13}}, "13"),
    ({"weights": WeightsSpec(file="nonesuch.safetensors", classes=5), "source": None}, "nonesuch.safetensors"),
])
def test_impossible_requests_are_refused_before_any_work(tmp_path, change: dict, message: str) -> None:
    """Too many images, an unknown class or set, a wrong size, missing weights: one message, and nothing was computed."""
    jobs = tiny_jobs(("at",))
    spec = replace(jobs[1].spec, **{k: v for k, v in change.items() if k in ("weights", "source")})
    spec = replace(spec, data=replace(spec.data, **change.get("data", {})))
    store = Store("tiny", device="cpu", root=tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        sweep(store, [jobs[0], Job("tiny", spec, change.get("evals", jobs[1].evals))])
    assert not (tmp_path / "runs").exists()


def test_interrupted_in_every_block(undisturbed, tmp_path) -> None:
    """With no time at all each call still computes one step or block, and the bytes at the end are the same."""
    for _ in range(200):
        if not sweep(Store("tiny", device="cpu", root=tmp_path), tiny_jobs(), budget=0.0).left:
            break
    table.write(Store("tiny", device="cpu", root=tmp_path), tiny_jobs(), "tiny")
    assert contents(tmp_path) == undisturbed[1]
    record = json.loads(next((tmp_path / "provenance").glob("*.json")).read_text())
    assert not any(entry.get("unfinished") for entry in record.values() if isinstance(entry, dict))


def test_provenance_has_no_paths_or_names(undisturbed) -> None:
    """Provenance says when, with what and on which device, and names no host, user or folder."""
    root, _ = undisturbed
    texts = [p.read_text() for p in (root / "provenance").glob("*.json")]
    assert len(texts) == 3
    for text in texts:
        assert str(Path.home()) not in text and os.uname().nodename not in text and str(root) not in text
        entry = json.loads(text)["train"]
        assert entry["seconds"] > 0 and entry["threads"] == 1 and entry["versions"]["torch"] == version("torch")


def test_masks_are_nested_subsets_of_one_order(undisturbed) -> None:
    """The first n test images are the same for every evaluation: the split's order is stored and fixed."""
    root, _ = undisturbed
    store = Store("tiny", device="cpu", root=root)
    spec = tiny_jobs()[1].spec
    with np.load(root / "splits" / f"{runs.split_name(spec.data)}.npz") as split:
        order = split["test"]
    assert len(set(order.tolist())) == len(order) == len(store.data(spec.data).test_y)
