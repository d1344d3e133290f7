"""The queue: finished means finished, whatever happens in between."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.compute.made import BARE, CLEAN, EPS, compute, contents, do, networks, tiny_jobs, until_done
from tests.studies.made import first
from twinslib.base import owner
from twinslib.base.files import read_json, write_json
from twinslib.compute.check import check
from twinslib.evidence import rows as evidence_rows
from twinslib.nets import models
from twinslib.nets.checkpoint import load_weights, save_weights
from twinslib.specs.jobs import Job, Task, tasks_of
from twinslib.specs.measure import CertifySpec, EvalSpec
from twinslib.specs.method import method
from twinslib.specs.run import FollowSpec, RunSpec, WeightsSpec
from twinslib.store.store import Store, split_name
from twinslib.studies import plan, rules
from twinslib.train.loop import fit

JOBS = tiny_jobs()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, dict[str, bytes]]:
    """The store of an undisturbed sweep, and the bytes that it leaves."""
    torch.set_num_threads(1)
    store = Store("tiny", root=tmp_path_factory.mktemp("whole"))
    report = compute(store, JOBS)
    assert not report.failed and not report.left
    return store, contents(store, *JOBS)


def test_finished_store(whole) -> None:
    """A finished store is recognised and no byte of it changes; each row is the mean of its mask."""
    store, before = whole
    assert store.missing(JOBS) == compute(store, JOBS).done == [] and contents(store) == before
    rows = evidence_rows.rows(store, JOBS)
    assert list(rows.columns) == evidence_rows.COLUMNS and len(rows) == 7 and not rows.isna().any().any()
    for job in JOBS:
        for e in job.evals:
            for stage, mask in store.masks(job.spec, e).items():
                row = rows[(rows.run == job.spec.hash) & (rows.attack == stage) & (rows.n == e.images)]
                assert row.value.item() == mask.mean() and mask.dtype == bool
        entries = [store.provenance(Task(job.spec, e)) for e in (None, *job.evals)]
        text = json.dumps(entries)
        assert str(Path.home()) not in text and os.uname().nodename not in text and str(store.root) not in text
        assert all(entry["rules"] == rules.stamps() for entry in entries)
        train = entries[0]
        assert train["seconds"] > 0 and train["threads"] == 1 and train["versions"]["torch"] == version("torch")
    data = JOBS[1].spec.data
    assert not list(store.root.glob("work/*.json")) and not list(store.root.glob("work/leases/*"))
    with np.load(store.root / "splits" / f"{split_name(data)}.npz") as split:
        order = split["test"].tolist()
    assert len(set(order)) == len(order) == len(networks(store).data(data).test_y) and rules.stamps()


@pytest.mark.parametrize("how", ["between any two steps", "in every block"])
def test_interrupted(whole, store: Store, how: str) -> None:
    """Stopped each time a little further, or with no time at all: another store, another random state, the same bytes."""
    torch.manual_seed(123)
    if how == "in every block":
        assert len(compute(store, JOBS, budget=0.0).left) == 10
        assert until_done(store, JOBS) > 20
    else:
        for turn in range(200):
            asked = iter(range(3 + turn % 4))
            if not compute(store, JOBS, stop=lambda asked=asked: next(asked, None) is None).left:
                break
        assert 3 < turn < 199
    assert contents(store, *JOBS) == whole[1]


def test_forgotten_files_go(store: Store) -> None:
    """Half-written files and leases of a killed process go with the next sweep."""
    assert compute(store, JOBS[:1]).failed == []
    before = contents(store)
    dead = subprocess.run([sys.executable, "-c", "from twinslib.base import owner; print(owner.me())"], check=True,
                          capture_output=True, text=True).stdout.strip()
    for folder in ("runs", "masks", "weights", "work/leases"):
        for who in (dead, owner.me()):
            (store.root / folder / f".half.json.{who}.tmp").write_text("half")
    (store.root / "work" / "leases" / "x.json").write_text(json.dumps({"owner": dead}))
    compute(store, JOBS[:1])
    assert {p.name.split(".")[-2] for p in store.root.rglob("*.tmp")} == {owner.me()} and contents(store) == before
    assert not list(store.root.glob("work/leases/*.json"))


def other_width(path: Path) -> None:
    save_weights(path, models.make_model("thin_resnet10", 10, seed=0), load_weights(path)[1])


@pytest.mark.parametrize(("damage", "message"), [
    (lambda p: p.write_bytes(p.read_bytes()[:500]), "truncated"), (lambda p: p.write_bytes(b"<html>no</html>"), "web page"),
    (lambda p: torch.save({"model": print}, p), "safetensors"), (other_width, ".safetensors: expected"),
])
def test_damaged_source_weights_are_named(store: Store, damage, message: str) -> None:
    """Truncated, foreign, pickled or ill-fitting source weights are the failure of what starts from them, before fine-tuning."""
    compute(store, JOBS[:1])
    damage(store.weights_path(JOBS[0].spec))
    report = compute(store, JOBS[:2])
    assert message in report.failed[0][1] and {t.spec for t, _ in report.failed} == {JOBS[1].spec} and report.done == []
    assert store.run(JOBS[1].spec) is None


@pytest.mark.parametrize("same", [True, False])
def test_a_finished_run_stays_when_its_weights_are_made_again(store: Store, caplog, same: bool) -> None:
    """For a further evaluation lost weights are trained again, which they say."""
    spec = replace(BARE, follow=FollowSpec(test_images=10))
    compute(store, [Job("tiny", spec, (CLEAN,))])
    record = store.root / "runs" / f"{spec.hash}.json"
    if not same:
        write_json(record, read_json(record) | {"weights": "0" * 64})
    kept = [record, store.root / "courses" / f"{spec.hash}.npz"]
    before, train = [p.read_bytes() for p in kept], store.provenance(Task(spec))
    store.weights_path(spec).unlink()
    assert len(compute(store, [Job("tiny", spec, (CLEAN, replace(CLEAN, images=30)))]).done) == 2
    assert [p.read_bytes() for p in kept] == before and store.provenance(Task(spec)) == train
    assert load_weights(store.weights_path(spec))[1]["again"]["commit"] == train["commit"]
    assert ("its weights, trained again, are not those recorded" in caplog.text) is not same


def joint(name: str = "toy_source", classes: int | None = None, exclude: tuple[str, ...] = ()) -> RunSpec:
    """A joint fine-tune from a source on the images `name`."""
    source = JOBS[0].spec
    source = replace(source, data=replace(source.data, name=name, exclude=exclude))
    return replace(JOBS[1].spec, source=source, method=method("joint", source_classes=classes))


def changed(**data) -> RunSpec:
    return replace(JOBS[1].spec, data=replace(JOBS[1].spec.data, **data))


MANY = 10**6
NO_FILE = replace(BARE, weights=WeightsSpec(file="nonesuch.safetensors", classes=5))


@pytest.mark.parametrize("kind", ["run", "candidate", "waiting"])
@pytest.mark.parametrize(("spec", "measured", "message"), [
    (BARE, replace(CLEAN, images=MANY), "at most .* test images of toy_target, got 1000000"),
    (BARE, CertifySpec(sigma=0.25, images=MANY), "at most .* test images of toy_target, got 1000000; lower images"),
    (BARE, CertifySpec(sigma=0.25, images=2, restat_images=MANY), "at most .* training images of toy_target as restat_images"),
    (changed(exclude=("nonesuch",)), None, "one of the 10 classes"), (changed(train_images=MANY), None, "ask for fewer"),
    (changed(name="nonesuch"), None, "nonesuch"), (changed(image_size=13), None, "13"),
    (changed(exclude=tuple("3456789")), EvalSpec(kind="autoattack", images=6, eps=EPS),
     "at least 4 classes of toy_target for apgd-t, got 3; attack with apgd-ce, fab-t, square"),
    (NO_FILE, None, "nonesuch.safetensors"),
    (joint("tinyimagenet32"), None, "source images tinyimagenet32 for method 'joint'.* got none; leave the method out"),
    (joint(classes=11), None, "source_classes of at most 10 for method 'joint' \\(toy_source\\), got 11"),
    (joint(classes=10, exclude=("a",)), None, "source_classes of at most 9"),
    (replace(BARE, follow=FollowSpec(train_images=61)), None, "at most 60 train_images of toy_target to follow, got 61"),
    (replace(BARE, follow=FollowSpec(test_images=MANY)), None, "at most .* test_images of toy_target to follow, got 1000000"),
])
def test_impossible_requests_are_refused_before_any_work(store: Store, spec: RunSpec, measured, message: str, kind: str) -> None:
    """Too many images or classes, unknown ones, missing images and weights; also for runs that wait and for candidates."""
    certifies = isinstance(measured, CertifySpec)
    job = Job("tuning" if kind == "candidate" else "tiny", spec, (measured,) if measured and not certifies else (),
              certs=(measured,) if certifies else (), settled=kind != "waiting", candidates=(spec,) if kind == "waiting" else ())
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        compute(store, [*JOBS, job])
    assert not (store.root / "runs").exists()


def test_what_is_possible_is_not_refused(store: Store) -> None:
    """All the images there are may be followed, ten of ten classes asked for."""
    spec = joint("tinyimagenet32")
    possible = [Task(replace(BARE, follow=FollowSpec(train_images=60, test_images=40))), Task(joint(classes=10)),
                Task(spec, CLEAN), Task(replace(spec, method=method("l2sp")))]
    check(networks(store), possible)


@pytest.mark.parametrize("number", sorted(plan.STUDIES))
def test_notebooks_as_committed_are_not_refused(store: Store, number: str) -> None:
    check(networks(store), tasks_of(plan.plan("toy", number)[0](best=first)))


KEEPING = {"joint": {}, "joint_uot": {"source_classes": 3}, "distill": {}, "l2sp": {}, "frozen_at": {}}


def keeping_jobs(*names: str) -> list[Job]:
    """The source, and one epoch of two steps of each method, with nothing to measure."""
    source, job = tiny_jobs(("at",), epochs=1)
    spec = replace(job.spec, data=replace(job.spec.data, train_images=40))
    return [source, *(Job("tiny", replace(spec, method=method(name, **KEEPING[name])), ()) for name in names)]


def test_methods_that_keep_something_can_be_interrupted(store: Store, tmp_path) -> None:
    """Stopped after every step, with the start read anew each time, they end with the same bytes."""
    jobs, once, often = keeping_jobs(*KEEPING), store, Store("tiny", root=tmp_path / "often")
    assert not compute(once, jobs).failed
    assert until_done(often, jobs) > 2 * len(KEEPING) and contents(often) == contents(once)
    records = {job.spec.method.name: once.run(job.spec) for job in jobs[1:]}
    assert len({record["weights"] for record in records.values()}) == len(KEEPING)
    names = set(networks(once).data(jobs[0].spec.data).class_names)
    few, every = records["joint_uot"], records["joint"]
    assert len(set(few["source_classes"])) == 3 and set(few["source_classes"]) < names
    assert 0 < few["source_images"] < every["source_images"] == 60 and set(every["source_classes"]) == names
    assert [name for name, r in records.items() if "source_images" in r] == ["joint", "joint_uot"]
    source, frozen, free = (load_weights(once.weights_path(jobs[i].spec))[0] for i in (0, -1, -2))
    statistics = [name for name in source if name.endswith(("running_mean", "running_var"))]
    assert statistics and all(torch.equal(source[name], frozen[name]) for name in statistics)
    assert not any(torch.equal(source[name], free[name]) for name in statistics)


def test_random_and_given_starts(store: Store) -> None:
    """A run without a source starts from its seed's random weights; one with a source has the source's, under a new head."""
    jobs, random = keeping_jobs("l2sp"), replace(BARE, seed=7)
    compute(store, jobs[:1])
    assert networks(store).origin(random) is None
    fresh = models.make_model("tiny_resnet", 10, seed=7).state_dict()
    assert all(torch.equal(value, fresh[name]) for name, value in networks(store).start(random).state_dict().items())
    state, _ = load_weights(store.weights_path(jobs[0].spec))
    origin, start = networks(store).origin(jobs[1].spec).state_dict(), networks(store).start(jobs[1].spec).state_dict()
    assert all(torch.equal(value, state[name]) for name, value in origin.items())
    assert {name for name in state if not torch.equal(state[name], start[name])} == {"network.fc.weight", "network.fc.bias"}


def test_masks_begun_on_lost_weights(store: Store) -> None:
    """Where weights are made again, nothing is put together from two networks."""
    (job,) = [replace(job, evals=(EvalSpec(kind="pgd", images=20, eps=EPS, steps=1, batch_size=10),)) for job in JOBS[:1]]
    compute(store, [replace(job, evals=())])
    assert compute(store, [job], budget=0.0).left
    blocks = store.work_path(Task(job.spec, job.evals[0]).name)
    assert [path.name for path in blocks.iterdir()] == ["0.npz"]
    store.weights_path(job.spec).unlink()
    do(store, Task(job.spec))
    assert store.weights_path(job.spec) and not blocks.exists()


FOLLOW = FollowSpec(record_every=2, train_images=15, test_images=25, steps=2)


def followed_jobs(*names: str, follow: FollowSpec | None = FOLLOW) -> list[Job]:
    """The source, which is not followed, and fine-tunes that are, with nothing to measure afterwards."""
    source, *tunes = tiny_jobs(names)
    return [replace(source, evals=()), *(Job("tiny", replace(job.spec, follow=follow), ()) for job in tunes)]


def test_courses_are_kept(store: Store) -> None:
    """The course of a finished run is what training it leaves, array by array."""
    jobs, plain = followed_jobs("at", "twins_trades"), followed_jobs("at", follow=None)[1].spec
    assert all(store.course(job.spec) is None for job in jobs)
    compute(store, [*jobs, Job("tiny", plain, ())])
    for job in jobs[1:]:
        want = fit(job.spec, networks(store).start(job.spec), networks(store).data(job.spec.data), device="cpu").course
        found = store.course(job.spec)
        assert set(found) == set(want) and found["test_robust"].shape == (3, 25)
        assert all(found[k].dtype == want[k].dtype and np.array_equal(found[k], want[k]) for k in want)
    assert store.run(plain)["weights"] == store.run(jobs[1].spec)["weights"]
    assert {p.stem for p in (store.root / "courses").iterdir()} == {job.spec.hash for job in jobs[1:]}


def test_stamps_are_those_of_the_beginning(store: Store, monkeypatch) -> None:
    """They are on disk before the first step, so that they outlive a kill."""
    source = tiny_jobs(epochs=1)[0]
    job = replace(source, evals=(EvalSpec(kind="pgd", images=20, eps=EPS, steps=1, batch_size=10), *source.evals))
    for turn in range(30):
        monkeypatch.setattr(rules, "stamps", lambda turn=turn: {"C2": f"{turn}:x"})
        if not compute(store, [job], budget=0.0).left:
            break
        begun = list(store.root.glob("work/*.json"))
        assert len(begun) <= 1 and (turn > 1 or read_json(begun[0])["rules"] == {"C2": "0:x"})
    # three steps, then two blocks, then one, each in a turn of its own
    assert [store.provenance(Task(job.spec, e))["rules"]["C2"] for e in (None, *job.evals)] == ["0:x", "3:x", "5:x"]


def test_stopped_while_others_work(store: Store) -> None:
    """A sweep that can do nothing, as another one holds what there is, ends when it is told to, with all of it left."""
    lease = store.leases.take(Task(JOBS[0].spec).name)
    asked = iter(range(2))
    report = compute(store, JOBS, stop=lambda: next(asked, None) is None)
    lease.release()
    assert report.done == report.failed == [] and len(report.left) == len(store.missing(JOBS))
