"""The store: finished means finished, whatever happens in between."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch

from twinslib.base import files
from twinslib.base.errors import Diverged
from twinslib.base.files import write_json
from twinslib.certify import smoothing
from twinslib.compute import worker
from twinslib.compute.check import check
from twinslib.compute.networks import Networks
from twinslib.compute.queue import sweep
from twinslib.compute.worker import Worker
from twinslib.evidence import rows as evidence_rows
from twinslib.nets import models
from twinslib.nets.checkpoint import load_weights
from twinslib.specs.measure import CertifySpec, EvalSpec
from twinslib.specs.method import method
from twinslib.specs.reading import canonical_json
from twinslib.specs.run import AttackSpec, DataSpec, FollowSpec, ModelSpec, OptimSpec, RunSpec, WeightsSpec
from twinslib.store import store as store_store
from twinslib.store.jobs import Job, Task
from twinslib.store.store import DIVERGED, NOT_RUN, SOURCE_DIVERGED, Store
from twinslib.studies import rules
from twinslib.train import loop
from twinslib.train.loop import fit

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
    store = Store("tiny", root=root)
    report = sweep(Worker(store, "cpu"), tiny_jobs())
    assert not report.failed and not report.left
    evidence_rows.write(store, tiny_jobs(), "tiny")
    return root, contents(root)


def test_second_sweep_has_nothing_to_do(undisturbed) -> None:
    """A finished store is recognised; nothing is computed again and no byte changes."""
    root, before = undisturbed
    store = Store("tiny", root=root)
    assert store.missing(tiny_jobs()) == []
    assert sweep(Worker(store, "cpu"), tiny_jobs()).done == []
    assert contents(root) == before


def test_two_sweeps_are_byte_identical(undisturbed, tmp_path) -> None:
    """Another store, the same bytes: rows, epochs, masks, splits, run records and source weights."""
    torch.manual_seed(123)
    store = Store("tiny", root=tmp_path)
    sweep(Worker(store, "cpu"), tiny_jobs())
    evidence_rows.write(store, tiny_jobs(), "tiny")
    assert contents(tmp_path) == undisturbed[1]


def test_rows_follow_the_masks(undisturbed) -> None:
    """Each row's value is the mean of its mask; every number names its attack, images and run."""
    root, _ = undisturbed
    store = Store("tiny", root=root)
    rows = evidence_rows.rows(store, tiny_jobs())
    assert list(rows.columns) == evidence_rows.COLUMNS and len(rows) == 7
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

        store = Store("tiny", root=tmp_path)
        calls[0] += 1
        if not sweep(Worker(store, "cpu"), tiny_jobs(), stop=stop).left:
            break
    assert calls[0] > 3
    evidence_rows.write(store, tiny_jobs(), "tiny")
    assert contents(tmp_path) == undisturbed[1]


CHILD = """
import sys; sys.path.insert(0, {tests!r})
import torch; torch.set_num_threads(1)
from pathlib import Path
from tests.compute.test_queue import tiny_jobs
from twinslib.compute.queue import sweep
from twinslib.compute.worker import Worker
from twinslib.evidence import rows
from twinslib.store.store import Store
store = Store("tiny", root=Path({root!r}))
print("ready", flush=True)
sweep(Worker(store, "cpu"), tiny_jobs())
rows.write(store, tiny_jobs(), "tiny")
"""


def child(root: Path) -> subprocess.Popen:
    code = CHILD.format(tests=str(Path(__file__).parents[2]), root=str(root))
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
    store = Store("tiny", root=tmp_path)
    sweep(Worker(store, "cpu"), tiny_jobs()[:1])
    before = contents(tmp_path)
    for folder in ("runs", "masks", "weights"):
        (tmp_path / folder / ".half.json.123.tmp").write_text("half")
    sweep(Worker(store, "cpu"), tiny_jobs()[:1])
    assert not list(tmp_path.rglob("*.tmp")) and contents(tmp_path) == before


def test_second_sweep_on_one_store_is_refused(undisturbed, tmp_path) -> None:
    """While one sweep holds a store, another gets one clear message, and the first one is not disturbed."""
    store = Store("tiny", root=tmp_path)
    with store.locked(), pytest.raises(ValueError, match=f"got one by process {os.getpid()}"):
        sweep(Worker(Store("tiny", root=tmp_path), "cpu"), tiny_jobs())
    assert sweep(Worker(store, "cpu"), tiny_jobs()[:1]).failed == []


def test_budget_stops(undisturbed, tmp_path) -> None:
    """A spent budget leaves all that is not done; a generous one leaves nothing."""
    store = Store("tiny", root=tmp_path)
    assert len(sweep(Worker(store, "cpu"), tiny_jobs(), budget=0.0).left) == 10
    assert sweep(Worker(store, "cpu"), tiny_jobs(), budget=600.0).left == []


def test_diverged_run_is_reported_and_the_others_go_on(tmp_path) -> None:
    """An absurd learning rate is a result of its own run, in the first epoch, followed and with keep_best too: no failure, kept,
    not tried again; the source and the other method are finished."""
    jobs = tiny_jobs(("at",))
    optim, follow = OptimSpec(epochs=1, batch_size=20, lr=1e30), FollowSpec(train_images=10, test_images=10, record_every=1)
    broken = [replace(jobs[1], spec=replace(jobs[1].spec, optim=optim)),
              replace(jobs[1], spec=replace(jobs[1].spec, optim=replace(optim, val_every=1, keep_best=True))),
              Job("tiny", replace(jobs[1].spec, optim=optim, follow=follow), ())]
    store = Store("tiny", root=tmp_path)
    planned = [jobs[0], *broken, jobs[1]]
    report = sweep(Worker(store, "cpu"), planned)
    assert [t for t, _ in report.diverged] == [Task(job.spec) for job in broken]
    assert all("lower lr" in why and "epoch 1" in why for _, why in report.diverged)
    assert (report.failed, report.left, report.waiting) == ([], [], 0) and store.missing(planned) == []
    for job in broken:
        assert store.run(job.spec) is store.course(job.spec) is None and "lower lr" in store.diverged(job.spec)
        assert {store.absent(job, e) for e in (None, *job.evals)} == {DIVERGED}
    again = sweep(Worker(store, "cpu"), planned)
    assert (again.done, again.failed, again.diverged, again.left) == ([], [], [], [])
    store.kept_in(Task(broken[0].spec)).unlink()
    assert store.missing(planned) == [Task(broken[0].spec), *(Task(broken[0].spec, e) for e in broken[0].evals)]


def test_rows_until_divergence_are_kept(tmp_path, monkeypatch) -> None:
    """A run that diverges late keeps the rows of the epochs before, in the table of epochs too, and leaves no checkpoint."""
    real = loop._not_finite
    monkeypatch.setattr(loop, "_not_finite", lambda model: "a weight" if calls.append(1) or len(calls) > 2 else real(model))
    calls: list[int] = []  # asked at the start and after each epoch
    store, spec = Store("tiny", root=tmp_path), replace(BARE, optim=replace(BARE.optim, epochs=3))
    (task, why), = sweep(Worker(store, "cpu"), [Job("tiny", spec, ())]).diverged
    assert "in epoch 2" in why and [row["epoch"] for row in store.epochs(spec)] == [1]
    assert evidence_rows.epochs(store, [Job("tiny", spec, ())])["epoch"].tolist() == [1] and not list(tmp_path.glob("work/*.ckpt"))
    entry = json.loads((tmp_path / "provenance" / f"{spec.hash}.json").read_text())["train"]
    assert entry["outcome"] == DIVERGED and entry["seconds"] > 0 and store.provenance(task) is None


def test_killed_after_divergence(tmp_path) -> None:
    """Where only the record of it was written before a kill, the run has diverged all the same."""
    store = Store("tiny", root=tmp_path)
    write_json(tmp_path / "provenance" / f"{BARE.hash}.json", {"train": {"seconds": 0.0, "unfinished": True, "rules": {}}})
    write_json(tmp_path / "diverged" / f"{BARE.hash}.json", {"spec": json.loads(canonical_json(BARE)), "diverged": "NaN"})
    assert store.missing([Job("tiny", BARE, (EvalSpec(kind="clean", images=20),))]) == [] and store.diverged(BARE) == "NaN"
    other = replace(BARE, seed=7)
    os.rename(tmp_path / "diverged" / f"{BARE.hash}.json", tmp_path / "diverged" / f"{other.hash}.json")
    with pytest.raises(ValueError, match=f"spec of run {other.hash} .*restore or delete"):
        store.diverged(other)


def test_what_starts_from_a_diverged_source_is_not_tried(tmp_path) -> None:
    """Its fine-tunes are no failures: they cannot be done, and say that their source diverged; others are done."""
    source, *tunes = tiny_jobs()
    origin = replace(source.spec, optim=replace(source.spec.optim, lr=1e30))
    tunes = [replace(job, spec=replace(job.spec, source=origin)) for job in tunes]
    jobs, store = [replace(source, spec=origin), *tunes, Job("tiny", BARE, ())], Store("tiny", root=tmp_path)
    report = sweep(Worker(store, "cpu"), jobs)
    assert [t for t, _ in report.diverged] == [Task(origin)] and report.done == [Task(BARE)]
    assert (report.failed, report.left, store.missing(jobs)) == ([], [], [])
    assert {store.absent(job, e) for job in tunes for e in (None, *job.evals)} == {SOURCE_DIVERGED}
    assert store.absent(jobs[-1]) == NOT_RUN and store.lost_to(tunes[0].spec) == origin
    rows = evidence_rows.rows(store, jobs)
    assert rows["value"].isna().all() and set(rows["images"]) == {DIVERGED, SOURCE_DIVERGED}


def diverging(real: Callable, evaluation: EvalSpec) -> Callable:
    def block(e, *rest):
        if e == evaluation:
            raise Diverged("expected finite logits, got NaN")
        return real(e, *rest)
    return block


def test_diverged_measurement_is_a_result(tmp_path, monkeypatch) -> None:
    """Logits that are not finite end one evaluation, not the others; it is kept, shown and not tried again."""
    store, job = Store("tiny", root=tmp_path), Job("tiny", BARE, tiny_jobs()[1].evals)
    clean, pgd, auto = job.evals
    monkeypatch.setattr(worker, "evaluate_block", diverging(worker.evaluate_block, pgd))
    report = sweep(Worker(store, "cpu"), [job])
    assert [t for t, _ in report.diverged] == [Task(BARE, pgd)]
    assert report.done == [Task(BARE), Task(BARE, clean), Task(BARE, auto)] and report.failed == store.missing([job]) == []
    assert "finite logits" in store.diverged(BARE, pgd) and store.diverged(BARE) is None
    assert [store.absent(job, e) for e in (pgd, clean)] == [DIVERGED, NOT_RUN]
    rows = evidence_rows.rows(store, [job])
    assert rows.loc[rows["value"].isna(), ["attack", "n", "images"]].values.tolist() == [["pgd3", 40, DIVERGED]]
    assert sweep(Worker(store, "cpu"), [job]).done == [] and not list(tmp_path.glob("work/*-*"))


def test_diverged_certification_is_a_result(tmp_path, monkeypatch) -> None:
    """Logits that are not numbers under noise end a certification, not its neighbours; nothing of it is left or tried again."""
    store, cert = Store("tiny", root=tmp_path), CertifySpec(sigma=0.25, images=4, n=20, n0=10, alpha=0.05)
    job, real = Job("tiny", BARE, (), certs=(cert, replace(cert, sigma=0.5))), smoothing.collect_votes

    def votes(network, images, plan, **options):
        if plan.sigma == 0.25:
            raise Diverged("expected logits that are numbers, got NaN")
        return real(network, images, plan, **options)

    monkeypatch.setattr(smoothing, "collect_votes", votes)
    report = sweep(Worker(store, "cpu"), [job])
    assert [t for t, _ in report.diverged] == [Task(BARE, cert)] and report.failed == store.missing([job]) == []
    assert "got NaN" in store.diverged(BARE, cert) and store.absent(job, cert) == DIVERGED
    assert store.votes(BARE, cert) is None and store.votes(BARE, job.certs[1]) and sweep(Worker(store, "cpu"), [job]).done == []


def test_weights_that_cannot_be_made_again(tmp_path, monkeypatch) -> None:
    """A finished run whose weights are lost and whose training now diverges keeps its numbers; what is still to be measured has
    diverged, and is not tried again and again."""
    store, (clean, pgd, _) = Store("tiny", root=tmp_path), tiny_jobs()[1].evals
    sweep(Worker(store, "cpu"), [Job("tiny", BARE, (clean,))])
    store.weights_path(BARE).unlink()
    monkeypatch.setattr(loop, "_not_finite", lambda model: "a weight")
    job = Job("tiny", BARE, (clean, pgd))
    report = sweep(Worker(store, "cpu"), [job])
    assert [t for t, _ in report.diverged] == [Task(BARE)] and report.failed == report.left == store.missing([job]) == []
    assert store.run(BARE) and store.masks(BARE, clean) and store.absent(job, pgd) == DIVERGED
    assert evidence_rows.rows(store, [job])["value"].isna().tolist() == [False, True]


def test_failure_of_a_task_is_its_own(tmp_path, monkeypatch) -> None:
    """What one task raises is reported as its failure and tried again by the next sweep; all else is done."""
    jobs, real = tiny_jobs(), loop.fit
    bad = jobs[1].spec

    def fit(spec, *rest, **options):
        if spec == bad:
            raise RuntimeError("out of memory")
        return real(spec, *rest, **options)

    monkeypatch.setattr(worker, "fit", fit)
    store = Store("tiny", root=tmp_path)
    report = sweep(Worker(store, "cpu"), jobs)
    assert {t.spec for t, _ in report.failed} == {bad} and len(report.failed) == 1 + len(jobs[1].evals)
    assert report.failed[0] == (Task(bad), "RuntimeError: out of memory") and report.diverged == report.left == []
    assert {t.spec for t in report.done} == {jobs[0].spec, jobs[2].spec} and len(store.missing(jobs)) == len(report.failed)


def test_full_disk_loses_nothing(undisturbed, tmp_path, monkeypatch) -> None:
    """A write that fails for lack of space gives one clear message; after making room the rows are the same."""
    store = Store("tiny", root=tmp_path)
    real, written = os.replace, [0]

    def full(src, dst) -> None:
        written[0] += 1
        if written[0] == 6:
            raise OSError(28, "No space left on device")
        real(src, dst)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="make room and run the same command again"):
        sweep(Worker(store, "cpu"), tiny_jobs())
    monkeypatch.setattr(os, "replace", real)
    assert not list(tmp_path.rglob("*.tmp"))
    sweep(Worker(store, "cpu"), tiny_jobs())
    evidence_rows.write(store, tiny_jobs(), "tiny")
    assert contents(tmp_path) == undisturbed[1]


@pytest.mark.parametrize(("damage", "message"), [
    (lambda p: p.write_bytes(p.read_bytes()[:500]), "truncated"),
    (lambda p: p.write_bytes(b"<html>not found</html>"), "web page"),
    (lambda p: torch.save({"model": print}, p), "safetensors"),
])
def test_damaged_source_weights_are_named(undisturbed, tmp_path, damage, message: str) -> None:
    """Truncated, foreign or pickled source weights are the failure of what starts from them, before any fine-tuning."""
    jobs = tiny_jobs(("at",))
    store = Store("tiny", root=tmp_path)
    sweep(Worker(store, "cpu"), jobs[:1])
    damage(store.weights_path(jobs[0].spec))
    report = sweep(Worker(store, "cpu"), jobs)
    assert message in report.failed[0][1] and {t.spec for t, _ in report.failed} == {jobs[1].spec} and report.done == []
    assert store.run(jobs[1].spec) is None


def test_source_weights_of_another_width_are_refused(undisturbed, tmp_path) -> None:
    """Source weights whose tensors do not fit the network are named, not loaded in part."""
    from twinslib.nets.checkpoint import save_weights

    jobs = tiny_jobs(("at",))
    store = Store("tiny", root=tmp_path)
    sweep(Worker(store, "cpu"), jobs[:1])
    path = store.weights_path(jobs[0].spec)
    _, meta = load_weights(path)
    save_weights(path, models.make_model("thin_resnet10", 10, seed=0), meta)
    assert f"{path.name}: expected" in sweep(Worker(store, "cpu"), jobs).failed[0][1]


def test_fresh_clone_needs_no_training_for_finished_rows(undisturbed, tmp_path) -> None:
    """Without the work folder (a fresh clone) finished rows stand; a new evaluation trains again, to the same weights."""
    root, before = undisturbed
    for name, data in before.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    store = Store("tiny", root=tmp_path)
    assert store.missing(tiny_jobs()) == []
    extra = EvalSpec(kind="pgd", images=10, eps=EPS / 2, steps=2)
    jobs = [Job("tiny", j.spec, (*j.evals, extra)) if j.spec.source else j for j in tiny_jobs()]
    tasks = store.missing(jobs)
    assert [t.evaluation for t in tasks] == [None, extra, None, extra]
    recorded = store.run(jobs[1].spec)["weights"]
    sweep(Worker(store, "cpu"), jobs[:2])
    assert store.run(jobs[1].spec)["weights"] == recorded


@pytest.mark.parametrize(("change", "message"), [
    ({"evals": (EvalSpec(kind="clean", images=10**6),)}, "expected at most"),
    ({"data": {"exclude": ("nonesuch",)}}, "expected one of the 10 classes"),
    ({"data": {"train_images": 10**6}}, "ask for fewer"),
    ({"data": {"name": "nonesuch"}}, "nonesuch"),
    ({"data": {"image_size": 13}}, "13"),
    ({"data": {"exclude": tuple("3456789")}, "evals": (EvalSpec(kind="autoattack", images=6, eps=EPS),)},
     "at least 4 classes of toy_target for apgd-t, got 3; attack with apgd-ce, fab-t, square"),
    ({"weights": WeightsSpec(file="nonesuch.safetensors", classes=5), "source": None}, "nonesuch.safetensors"),
])
def test_impossible_requests_are_refused_before_any_work(tmp_path, change: dict, message: str) -> None:
    """Too many images, an unknown class or set, a wrong size, missing weights: one message, and nothing was computed."""
    jobs = tiny_jobs(("at",))
    spec = replace(jobs[1].spec, **{k: v for k, v in change.items() if k in ("weights", "source")})
    spec = replace(spec, data=replace(spec.data, **change.get("data", {})))
    store = Store("tiny", root=tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        sweep(Worker(store, "cpu"), [jobs[0], Job("tiny", spec, change.get("evals", jobs[1].evals))])
    assert not (tmp_path / "runs").exists()


def test_interrupted_in_every_block(undisturbed, tmp_path) -> None:
    """With no time at all each call still computes one step or block, and the bytes at the end are the same."""
    for _ in range(200):
        if not sweep(Worker(Store("tiny", root=tmp_path), "cpu"), tiny_jobs(), budget=0.0).left:
            break
    evidence_rows.write(Store("tiny", root=tmp_path), tiny_jobs(), "tiny")
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
    store = Store("tiny", root=root)
    spec = tiny_jobs()[1].spec
    with np.load(root / "splits" / f"{store_store.split_name(spec.data)}.npz") as split:
        order = split["test"]
    assert len(set(order.tolist())) == len(order) == len(Networks(store, "cpu").data(spec.data).test_y)


# -- hyper-parameters ------------------------------------------------------------------------------------------------
BARE = replace(tiny_jobs(("at",), epochs=1)[1].spec, source=None)
CANDIDATES = [replace(BARE, optim=replace(BARE.optim, lr=lr)) for lr in (0.1, 0.2, 0.3)]


def finish(store: Store, spec: RunSpec, *epochs: tuple[float | None, float | None]) -> None:
    """Leave the record of a finished run with (clean, robust) validation accuracy per epoch; None: not measured."""
    rows = [{"epoch": i, **{k: v for k, v in zip(("val_clean_acc", "val_robust_acc"), pair, strict=True) if v is not None}}
            for i, pair in enumerate(epochs, start=1)]
    write_json(store.root / "runs" / f"{spec.hash}.json", {"spec": json.loads(canonical_json(spec)), "epochs": rows})


def diverge(store: Store, spec: RunSpec) -> None:
    write_json(store.root / "provenance" / f"{spec.hash}.json", {"train": {"diverged": "NaN", "unfinished": True}})


@pytest.mark.parametrize(("epochs", "chosen"), [
    ([[(0.6, 0.2)], [(0.5, 0.4)], [(0.3, 0.5)]], 1),  # means 0.4, 0.45, 0.4
    ([[(0.9, 0.9), (0.2, 0.2)], [(0.1, 0.1), (0.3, 0.3)], [(0.25, 0.25)]], 1),  # the last epoch counts, not the best
    ([[(0.4, 0.4), (None, None)], [(0.1, 0.1)], [(0.3, 0.3)]], 0),  # the last that was measured
    ([[(0.3, 0.5)], [(0.5, 0.3)], [(0.4, 0.4)]], 0),  # the first of equals
    ([[(0.1, 0.1)], [(0.5, 0.3)], [(0.5, 0.3)]], 1),
    ([[(0.6, None)], [(0.7, None)], [(0.5, None)]], 1),  # natural training measures no robust accuracy
    ([[(0.0, 0.0)], None, None], 0),
    ([None, None, [(0.0, 0.0)]], 2),  # diverged is worse than all wrong
    ([None, None, None], None),
], ids=["mean", "last epoch", "last measured", "tie", "tie later", "clean only", "diverged after", "diverged before", "all"])
def test_best(tmp_path, epochs: list, chosen: int | None) -> None:
    """The best candidate has the highest mean of clean and robust validation accuracy at its last measurement, the first of
    equals; a diverged one (None) is never chosen."""
    store = Store("tiny", root=tmp_path)
    for spec, found in zip(CANDIDATES, epochs, strict=True):
        finish(store, spec, *found) if found else diverge(store, spec)
    assert store.best(CANDIDATES) is (None if chosen is None else CANDIDATES[chosen])


@pytest.mark.parametrize("absent", [0, 1, 2])
def test_no_best_while_one_is_missing(tmp_path, absent: int) -> None:
    """Nothing is chosen before every candidate has finished or diverged; an interrupted one has not."""
    store = Store("tiny", root=tmp_path)
    for i, spec in enumerate(CANDIDATES):
        if i != absent:
            finish(store, spec, (0.5, 0.5))
    assert store.best(CANDIDATES) is None
    write_json(tmp_path / "provenance" / f"{CANDIDATES[absent].hash}.json", {"train": {"unfinished": True}})
    assert store.best(CANDIDATES) is None and store.diverged(CANDIDATES[absent]) is None
    diverge(store, CANDIDATES[absent])
    assert store.best(CANDIDATES) is CANDIDATES[absent == 0] and store.diverged(CANDIDATES[absent]) == "NaN"


def test_furthest_ahead(tmp_path) -> None:
    """Against rivals the greatest lead is chosen; nothing while a rival is missing, and never a pair of which one diverged."""
    store, rivals = Store("tiny", root=tmp_path), [replace(c, seed=7) for c in CANDIDATES]
    for spec, score in zip([*CANDIDATES, *rivals[:2]], (0.5, 0.6, 0.4, 0.5, 0.55), strict=True):
        finish(store, spec, (score, score))
    assert store.best(CANDIDATES, over=rivals) is None
    diverge(store, rivals[2])
    assert store.best(CANDIDATES, over=rivals) is CANDIDATES[1]
    finish(store, rivals[2], (0.2, 0.2))
    assert store.best(CANDIDATES, over=rivals) is CANDIDATES[2] and store.best(CANDIDATES) is CANDIDATES[1]


def test_best_needs_validation(tmp_path) -> None:
    """Without a measurement on validation images nothing can be chosen, and the message says what to set."""
    store = Store("tiny", root=tmp_path)
    for spec in CANDIDATES:
        finish(store, spec, (None, None))
    with pytest.raises(ValueError, match=f"expected validation accuracy of run {CANDIDATES[0].hash} .*val_images and val_every"):
        store.best(CANDIDATES)


class TinyPlan:
    """AT whose rate is chosen among `values` with seed 0 and used with seeds 0 and 1; counts how often it is asked."""

    def __init__(self, *values: float, evals: tuple[EvalSpec, ...] = (EvalSpec(kind="clean", images=20),), **changes) -> None:
        base = replace(BARE, **changes)
        self.candidates = [replace(base, optim=replace(base.optim, lr=lr)) for lr in values]
        self.evals, self.asked = evals, 0

    def __call__(self, best) -> Sequence[Job]:
        self.asked += 1
        chosen = best(self.candidates)
        tunes = [replace(chosen or self.candidates[0], seed=seed) for seed in (0, 1)]
        return [*(Job("tuning", c, ()) for c in self.candidates),
                *(Job("tiny", t, self.evals, settled=chosen is not None, candidates=() if chosen else tuple(self.candidates))
                  for t in tunes)]


def write_all(store: Store, plan: TinyPlan) -> dict[str, bytes]:
    """Write the tables of both studies; returns the bytes of the store."""
    for name in ("tuning", "tiny"):
        evidence_rows.write(store, [job for job in plan(store.best) if job.study == name], name)
    return contents(store.root)


def test_plan_is_asked_again(tmp_path) -> None:
    """Candidates are trained first; when the last is finished the runs that waited are done, with what was chosen, and the
    chosen candidate is not trained twice."""
    plan, store = TinyPlan(0.01, 0.05), Store("tiny", root=tmp_path)
    report = sweep(Worker(store, "cpu"), plan)
    chosen = store.best(plan.candidates)
    score = {c: np.mean([store.run(c)["epochs"][-1][k] for k in ("val_clean_acc", "val_robust_acc")]) for c in plan.candidates}
    assert chosen == max(plan.candidates, key=score.get)  # the first of equals
    other, e = replace(chosen, seed=1), plan.evals[0]
    assert report.done == [*map(Task, plan.candidates), Task(chosen, e), Task(other), Task(other, e)]
    assert (report.failed, report.left, report.waiting) == ([], [], 0)
    assert plan.asked == 3  # at the start and after each candidate, not after runs that nothing waits for


def test_waiting_runs_are_counted(tmp_path) -> None:
    """A sweep that ends before a choice leaves the candidates and says how many runs wait; later calls get on to the end."""
    plan, store = TinyPlan(0.001, 0.1), Store("tiny", root=tmp_path)
    left = []
    for _ in range(30):
        report = sweep(Worker(store, "cpu"), plan, budget=0.0)
        left.append((len(report.left), report.waiting))
        if not any(left[-1]):
            break
    assert left[0] == (2, 2) and left[-1] == (0, 0)
    assert sorted(set(left), key=left.index) == [(2, 2), (1, 2), (3, 0), (2, 0), (1, 0), (0, 0)]
    once = Store("tiny", root=tmp_path / "once")
    sweep(Worker(once, "cpu"), plan)
    assert write_all(once, plan) == {k: v for k, v in write_all(store, plan).items() if not k.startswith("once")}


@pytest.mark.parametrize("values", [(1e30, 0.05), (0.05, 1e30)], ids=["first", "last"])
def test_diverged_candidate_does_not_block(tmp_path, values: tuple[float, ...]) -> None:
    """A candidate that diverges is reported once, the others are chosen from, and later sweeps leave it alone."""
    plan, store = TinyPlan(*values), Store("tiny", root=tmp_path)
    report = sweep(Worker(store, "cpu"), plan)
    (task, why), = report.diverged
    assert report.failed == []
    assert task == Task(plan.candidates[values.index(1e30)]) and "lower lr" in why
    assert report.waiting == 0 and report.left == [] and {j.spec.optim.lr for j in plan(store.best)[2:]} == {0.05}
    again = sweep(Worker(store, "cpu"), plan)
    assert (again.done, again.failed, again.diverged, again.left, again.waiting) == ([], [], [], [], 0)


def test_all_candidates_diverged(tmp_path) -> None:
    """Where every candidate diverges nothing is chosen: the sweep ends, nothing waits or has failed, and what they were for has
    diverged, in rows too; with one of another source word, the source's."""
    plan, store = TinyPlan(1e30, 1e31), Store("tiny", root=tmp_path)
    report = sweep(Worker(store, "cpu"), plan)
    assert [t for t, _ in report.diverged] == [Task(c) for c in plan.candidates] and store.best(plan.candidates) is None
    assert (report.done, report.left, report.failed, report.waiting) == ([], [], [], 0)
    jobs = plan(store.best)
    assert [store.absent(job) for job in jobs] == [DIVERGED] * 4 and store.missing(jobs) == []
    rows = evidence_rows.rows(store, jobs)
    assert rows[["seed", "images"]].values.tolist() == [[0, DIVERGED], [1, DIVERGED]] and rows["value"].isna().all()


def test_unsettled_jobs_alone_are_no_work(tmp_path) -> None:
    """Jobs that wait for others make no tasks, also when their stand-in could be trained."""
    store = Store("tiny", root=tmp_path)
    jobs = [replace(job, settled=False) for job in tiny_jobs()]
    assert store.missing(jobs) == []
    report = sweep(Worker(store, "cpu"), jobs)
    assert (report.done, report.left, report.waiting) == ([], [], 3) and not (tmp_path / "runs").exists()


def test_earlier_records_of_divergence_stay_readable(tmp_path) -> None:
    """A run that only its provenance calls diverged has diverged, measured or not; the file to delete is that one."""
    store = Store("tiny", root=tmp_path)
    diverge(store, BARE)
    e = EvalSpec(kind="clean", images=20)
    assert store.missing([Job("tiny", BARE, (e,)), Job("tuning", BARE, ())]) == [] and store.epochs(BARE) == []
    store.kept_in(Task(BARE)).unlink()
    assert store.missing([Job("tiny", BARE, (e,))]) == [Task(BARE), Task(BARE, e)]


# -- methods that need more than their start's weights -----------------------------------------------------------------
KEEPING = {"joint": {}, "joint_uot": {"source_classes": 3}, "distill": {}, "l2sp": {}, "frozen_at": {}}


def keeping_jobs(*names: str) -> list[Job]:
    """The source, and one epoch of two steps of each method, with nothing to measure."""
    source, job = tiny_jobs(("at",), epochs=1)
    spec = replace(job.spec, data=replace(job.spec.data, train_images=40))
    return [source, *(Job("tiny", replace(spec, method=method(name, **KEEPING[name])), ()) for name in names)]


def test_methods_that_keep_something_can_be_interrupted(tmp_path) -> None:
    """Stopped after every step, with the start read anew each time, they end with the same bytes; joint runs record which
    source images they had, and frozen statistics are still those of the source."""
    jobs = keeping_jobs(*KEEPING)
    once, often = (Store("tiny", root=tmp_path / name) for name in ("once", "often"))
    assert not sweep(Worker(once, "cpu"), jobs).failed
    turns = 1
    while sweep(Worker(often, "cpu"), jobs, budget=0.0).left and turns < 50:
        turns += 1
    assert turns > 2 * len(KEEPING) and contents(often.root) == contents(once.root)
    records = {job.spec.method.name: once.run(job.spec) for job in jobs[1:]}
    assert len({record["weights"] for record in records.values()}) == len(KEEPING)
    names = set(Networks(once, "cpu").data(jobs[0].spec.data).class_names)
    few, every = records["joint_uot"], records["joint"]
    assert len(set(few["source_classes"])) == 3 and set(few["source_classes"]) < names
    assert 0 < few["source_images"] < every["source_images"] == 60 and set(every["source_classes"]) == names
    assert [name for name, r in records.items() if "source_images" in r] == ["joint", "joint_uot"]
    source, frozen, free = (load_weights(once.weights_path(jobs[i].spec))[0] for i in (0, -1, -2))
    statistics = [name for name in source if name.endswith(("running_mean", "running_var"))]
    assert statistics and all(torch.equal(source[name], frozen[name]) for name in statistics)
    assert not any(torch.equal(source[name], free[name]) for name in statistics)


def test_random_and_given_starts(tmp_path) -> None:
    """A run without a source starts from its seed's random weights; one with a source has the source's, under a new head."""
    store = Store("tiny", root=tmp_path)
    jobs = keeping_jobs("l2sp")
    sweep(Worker(store, "cpu"), jobs[:1])
    random = replace(BARE, seed=7)
    assert Networks(store, "cpu").origin(random) is None
    fresh = models.make_model("tiny_resnet", 10, seed=7).state_dict()
    assert all(torch.equal(value, fresh[name]) for name, value in Networks(store, "cpu").start(random).state_dict().items())
    state, _ = load_weights(store.weights_path(jobs[0].spec))
    origin, start = Networks(store, "cpu").origin(jobs[1].spec).state_dict(), Networks(store, "cpu").start(jobs[1].spec).state_dict()
    assert all(torch.equal(value, state[name]) for name, value in origin.items())
    assert {name for name in state if not torch.equal(state[name], start[name])} == {"network.fc.weight", "network.fc.bias"}


def joint(name: str = "toy_source", classes: int | None = None, exclude: tuple[str, ...] = ()) -> RunSpec:
    """A joint fine-tune from a source on the images `name`."""
    spec = tiny_jobs(("at",))[1].spec
    source = replace(spec.source, data=replace(spec.source.data, name=name, exclude=exclude))
    return replace(spec, source=source, method=method("joint", source_classes=classes))


@pytest.mark.parametrize("kind", ["run", "candidate", "waiting"])
@pytest.mark.parametrize(("spec", "error", "message"), [
    (joint("tinyimagenet32"), FileNotFoundError,
     "expected the source images tinyimagenet32 for method 'joint', which trains on them too, got none; leave the method out"),
    (joint(classes=11), ValueError, "expected source_classes of at most 10 for method 'joint' \\(toy_source\\), got 11"),
    (joint(classes=10, exclude=("a",)), ValueError, "expected source_classes of at most 9 for method 'joint'"),
], ids=["no images", "classes", "excluded"])
def test_source_images_are_checked_before_any_work(tmp_path, spec: RunSpec, error: type, message: str, kind: str) -> None:
    """A method that trains on images of the source is refused by name where they are missing or have too few classes."""
    job = {"run": Job("tiny", spec, tiny_jobs()[1].evals), "candidate": Job("tuning", spec, ()),
           "waiting": Job("tiny", spec, (), settled=False)}[kind]
    with pytest.raises(error, match=message):
        sweep(Worker(Store("tiny", root=tmp_path), "cpu"), [*tiny_jobs(), job])
    assert not (tmp_path / "runs").exists()


def test_only_training_needs_the_source_images(tmp_path) -> None:
    """Measuring a joint run, and training other methods from the same weights, needs no source images; ten of ten classes
    may be asked for."""
    store, spec = Store("tiny", root=tmp_path), joint("tinyimagenet32")
    check(Networks(store, "cpu"), [Task(spec, EvalSpec(kind="clean", images=20)), Task(replace(spec, method=method("l2sp")))])
    check(Networks(store, "cpu"), [Task(joint(classes=10))])
    with pytest.raises(FileNotFoundError, match="tinyimagenet32"):
        check(Networks(store, "cpu"), [Task(spec)])


def test_evaluations_of_waiting_runs_are_checked_before_any_work(tmp_path) -> None:
    """Too many test images for a run that still waits are refused before its candidates are trained."""
    plan = TinyPlan(0.05, 0.1, evals=(EvalSpec(kind="clean", images=10**6),))
    with pytest.raises(ValueError, match="expected at most .* test images of toy_target, got 1000000"):
        sweep(Worker(Store("tiny", root=tmp_path), "cpu"), plan)
    assert not (tmp_path / "runs").exists()


# -- courses -----------------------------------------------------------------------------------------------------------
FOLLOW = FollowSpec(record_every=2, train_images=15, test_images=25, steps=2)


def followed_jobs(follow: FollowSpec | None = FOLLOW, *names: str) -> list[Job]:
    """The source, which is not followed, and fine-tunes that are, with nothing to measure afterwards."""
    source, *tunes = tiny_jobs(names or ("at", "twins_trades"))
    return [replace(source, evals=()), *(Job("tiny", replace(job.spec, follow=follow), ()) for job in tunes)]


def test_courses_are_kept(tmp_path) -> None:
    """The course of a finished run is what training it leaves, array by array; a run that is not followed has none, and a run
    that is followed is trained to the same weights."""
    store, jobs = Store("tiny", root=tmp_path), followed_jobs()
    plain = followed_jobs(None)[1].spec
    assert all(store.course(job.spec) is None for job in jobs)
    sweep(Worker(store, "cpu"), [*jobs, Job("tiny", plain, ())])
    for job in jobs[1:]:
        want = fit(job.spec, Networks(store, "cpu").start(job.spec), Networks(store, "cpu").data(job.spec.data), device="cpu").course
        found = store.course(job.spec)
        assert set(found) == set(want) and found["test_robust"].shape == (3, 25)
        assert all(found[k].dtype == want[k].dtype and np.array_equal(found[k], want[k]) for k in want)
    assert store.course(jobs[0].spec) is None and store.course(plain) is None
    assert store.run(plain)["weights"] == store.run(jobs[1].spec)["weights"]
    assert {p.stem for p in (tmp_path / "courses").iterdir()} == {job.spec.hash for job in jobs[1:]}


def test_courses_survive_interruption(tmp_path) -> None:
    """Stopped after every step, a sweep leaves the same bytes as an undisturbed one, courses and all."""
    jobs = [*followed_jobs(FOLLOW, "twins_at"), *followed_jobs(replace(FOLLOW, record_every=0), "at_awp")[1:]]
    once, often = (Store("tiny", root=tmp_path / name) for name in ("once", "often"))
    assert not sweep(Worker(once, "cpu"), jobs).failed
    turns = 1
    while sweep(Worker(often, "cpu"), jobs, budget=0.0).left and turns < 50:
        turns += 1
    assert turns == 18 and contents(often.root) == contents(once.root)
    assert sum(name.startswith("courses/") for name in contents(once.root)) == 2


def test_a_course_counts_with_its_run_only(tmp_path, monkeypatch) -> None:
    """A course whose run was cut off before its record was written is not read, and is written again with the run."""
    store, jobs = Store("tiny", root=tmp_path), followed_jobs(FOLLOW, "at")
    sweep(Worker(store, "cpu"), jobs[:1])
    real = files.write_json

    def cut_off(path, value) -> None:
        if path.parent.name == "runs":
            raise KeyboardInterrupt
        real(path, value)

    monkeypatch.setattr(worker, "write_json", cut_off)
    with pytest.raises(KeyboardInterrupt):
        sweep(Worker(store, "cpu"), jobs)
    monkeypatch.undo()
    path = tmp_path / "courses" / f"{jobs[1].spec.hash}.npz"
    before = path.read_bytes()
    assert store.course(jobs[1].spec) is None
    (tmp_path / "courses" / ".half.npz.123.tmp").write_text("half")
    sweep(Worker(store, "cpu"), jobs)
    assert store.course(jobs[1].spec) is not None and path.read_bytes() == before
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize("settled", [True, False])
@pytest.mark.parametrize(("follow", "message"), [
    (FollowSpec(train_images=61), "expected at most 60 train_images of toy_target to follow, got 61; lower it under follow"),
    (FollowSpec(test_images=10**6), "expected at most .* test_images of toy_target to follow, got 1000000; lower it"),
])
def test_followed_images_are_checked_before_any_work(tmp_path, follow: FollowSpec, message: str, settled: bool) -> None:
    """More images to follow than a run has are refused before the source is trained, also for runs that still wait."""
    source, *tunes = followed_jobs(follow)
    jobs = [source, *(replace(job, settled=settled) for job in tunes)]
    with pytest.raises(ValueError, match=message):
        sweep(Worker(Store("tiny", root=tmp_path), "cpu"), jobs)
    assert not (tmp_path / "runs").exists()
    check(Networks(Store("tiny", root=tmp_path), "cpu"), [Task(followed_jobs(FollowSpec(train_images=60, test_images=40))[1].spec)])


# -- rules ------------------------------------------------------------------------------------------------------------
def test_stamps_of_the_rules_are_recorded(undisturbed) -> None:
    """The provenance of every training and evaluation has the stamp of each claim's rule."""
    entries = [entry for p in (undisturbed[0] / "provenance").glob("*.json") for kind, entry in json.loads(p.read_text()).items()
               if kind != "run"]
    assert len(entries) == 10 and all(entry["rules"] == rules.stamps() for entry in entries) and rules.stamps()


def test_stamps_are_those_of_the_beginning(tmp_path, monkeypatch) -> None:
    """A task that was stopped and goes on keeps the stamps of the rules as they were when it began; what begins later has
    the later ones."""
    source = tiny_jobs(epochs=1)[0]
    job = replace(source, evals=(EvalSpec(kind="pgd", images=20, eps=EPS, steps=1, batch_size=10), *source.evals))
    kinds = ["train", *(Task(job.spec, e).kind for e in job.evals)]
    for turn in range(30):
        monkeypatch.setattr(rules, "stamps", lambda turn=turn: {"C2": f"{turn}:x"})
        done = sweep(Worker(Store("tiny", root=tmp_path), "cpu"), [job], budget=0.0)
        if not done.left:
            break
    record = json.loads((tmp_path / "provenance" / f"{job.spec.hash}.json").read_text())
    # three steps, then two blocks, then one, each in a turn of its own
    assert [record[kind]["rules"]["C2"] for kind in kinds] == ["0:x", "3:x", "5:x"]


def test_stamps_are_on_disk_before_the_first_step(tmp_path, monkeypatch) -> None:
    """Whatever ends a task, also a kill, what it continues with is stamped as it was when the task began."""
    seen = []

    def look(task: Task, done: int, total: int) -> None:
        path = tmp_path / "provenance" / f"{task.spec.hash}.json"
        seen.append(json.loads(path.read_text()).get(task.kind) if path.exists() else None)

    sweep(Worker(Store("tiny", root=tmp_path), "cpu"), tiny_jobs(epochs=1)[:1], on_step=look)
    assert seen[0] is not None and seen[0]["rules"] == rules.stamps() and seen[0]["unfinished"]


@pytest.mark.parametrize("same", [True, False])
def test_a_finished_run_stays_when_its_weights_are_made_again(tmp_path, caplog, same: bool) -> None:
    """For a further evaluation lost weights are trained again; record, course and provenance of the run stay, byte by byte, and
    weights that differ from those recorded are named."""
    store = Store("tiny", root=tmp_path)
    spec = replace(BARE, follow=FollowSpec(test_images=10))
    more = EvalSpec(kind="clean", images=20)
    sweep(Worker(store, "cpu"), [Job("tiny", spec, (more,))])
    record = tmp_path / "runs" / f"{spec.hash}.json"
    if not same:
        write_json(record, json.loads(record.read_text()) | {"weights": "0" * 64})
    kept = [record, tmp_path / "courses" / f"{spec.hash}.npz"]
    before, train = [p.read_bytes() for p in kept], store.provenance(Task(spec))
    store.weights_path(spec).unlink()
    assert len(sweep(Worker(store, "cpu"), [Job("tiny", spec, (more, replace(more, images=30)))]).done) == 2
    assert [p.read_bytes() for p in kept] == before and store.provenance(Task(spec)) == train
    entries = json.loads((tmp_path / "provenance" / f"{spec.hash}.json").read_text())
    assert entries["train again"]["weights"] == train["weights"]
    assert ("its weights, trained again, are not those recorded" in caplog.text) is not same
