"""Certification in the queue: its spec, its votes in the store, stopped and continued, networks with re-estimated statistics."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.compute.made import compute, do, networks
from twinslib.certify import smoothing
from twinslib.evidence import cells
from twinslib.specs.jobs import Job, Task
from twinslib.specs.measure import CertifySpec
from twinslib.specs.method import method
from twinslib.specs.reading import from_dict, to_dict
from twinslib.specs.run import DataSpec, ModelSpec, OptimSpec, RunSpec
from twinslib.store.store import Store, about
from twinslib.store.votes import load_votes
from twinslib.train import noise
from twinslib.train.step import OutOfTime

SPEC = RunSpec(data=DataSpec(name="toy_target", image_size=16, train_images=40, val_images=10), method=method("natural"),
               model=ModelSpec(arch="tiny_resnet"), optim=OptimSpec(epochs=1, batch_size=20, val_every=0))
CERT = CertifySpec(sigma=0.25, images=6, n=64, n0=16, alpha=0.01)
RESTAT = replace(CERT, restat_images=40)


def test_plan_of_a_spec() -> None:
    """Without radii every image gets n draws, with radii the test is sequential, with spending its boundaries are exact."""
    assert (CERT.plan.method, CERT.plan.looks, CERT.plan.n0, CERT.plan.alpha) == ("certify", (64,), 16, 0.01)
    spec = replace(CERT, radii=(0.0, 0.1), n=640, stop_if_wrong=True)
    assert spec.plan.method == "sequential" and spec.plan.n == 640 and spec.plan.stop_if_wrong and spec.plan.radii == (0.0, 0.1)
    exact = replace(spec, spending="linear")
    assert exact.plan.method == "exact" and exact.plan.spending == "linear" and exact.plan.n == 640 and exact.plan.stop_if_wrong
    spec = CertifySpec(sigma=0.5, images=7)
    assert to_dict(spec) == {"sigma": 0.5, "images": 7} and CERT.kind == "certify"
    assert (spec.n, spec.n0, spec.alpha, spec.precision, spec.restat_images, spec.seed) == (100_000, 100, 0.001, "float32", 0, 0)


@pytest.mark.parametrize(("changes", "message"), [
    ({"sigma": 64.0}, "sigma above 0 and at most 5 .*; write 64/255"), ({"images": 0}, "images > 0, got 0"),
    ({"n": 6, "alpha": 0.001}, "n of at least 10 at alpha 0.001, got 6"), ({"stop_if_wrong": True}, "radii with stop_if_wrong"),
    ({"restat_images": -1}, "restat_images >= 0, got -1"), ({"radii": [9.0]}, "radius of at most"),
    ({"spending": "linear"}, "radii with stop_if_wrong or spending"),
    ({"radii": [0.1], "spending": "lin"}, "spending to be one of linear, .*did you mean 'linear'"),
    ({"precision": "float16"}, "precision to be one of float32, bfloat16, got 'float16'"),
])
def test_illegal_specs(changes: dict, message: str) -> None:
    """Units, too few draws, radii out of reach: refused before any work."""
    with pytest.raises(ValueError, match=message):
        from_dict(CertifySpec, to_dict(CERT) | changes)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with one trained run, certified with its own and with re-estimated statistics."""
    store = Store("toy", root=tmp_path_factory.mktemp("store"))
    report = compute(store, [Job("x", SPEC, (), certs=(CERT, RESTAT))])
    assert [task.evaluation for task in report.done] == [None, CERT, RESTAT]
    return store


def test_votes_are_those_of_the_network(trained: Store) -> None:
    """The store's votes are those of the trained network on the first images."""
    data = networks(trained).data(SPEC.data)
    for spec in (CERT, RESTAT):
        model = networks(trained).trained(SPEC).eval()
        if spec.restat_images:
            model = noise.reestimated(model, data.train_x[:40], spec.sigma, seed=0)
        expected = smoothing.collect_votes(model, data.test_x[:6], spec.plan, labels=data.test_y[:6])
        kept, entry = trained.votes(SPEC, spec), trained.provenance(Task(SPEC, spec))
        assert np.array_equal(kept.votes, expected.votes) and np.array_equal(kept.chosen, expected.chosen)
        assert kept.finished.all() and (kept.draws == 64).all() and kept.plan == spec.plan and len(kept.index) == 6
        assert kept.fingerprint == pytest.approx(expected.fingerprint, rel=1e-3, abs=1e-4)
        assert entry["images"] == 6 and entry["draws"] == 6 * (64 + 16) and entry["precision"] == "float32"
    plain, restat = (trained.votes(SPEC, spec) for spec in (CERT, RESTAT))
    assert plain.model_hash != restat.model_hash and not np.array_equal(plain.votes, restat.votes)
    other = replace(CERT, sigma=0.5)
    assert trained.votes(SPEC, other) is None
    assert trained.missing([Job("x", SPEC, (), certs=(CERT, other, RESTAT))]) == [Task(SPEC, other)]
    assert "sigma 0.5, at most 64 draws, 6 images" in str(Task(SPEC, other))


def test_stopped_certification_goes_on(trained: Store) -> None:
    """Stopped after a round it leaves its votes in work/, nothing in votes/; continued it ends with the same counts."""
    spec = replace(CERT, n=80, images=4)
    task, part = Task(SPEC, spec), trained.root / "work" / f"{SPEC.hash}-{spec.hash}.npz"
    with pytest.raises(OutOfTime, match="of 4 images certified"):
        do(trained, task, stop=True)
    assert part.exists() and trained.votes(SPEC, spec) is None and trained.provenance(task) is None
    assert 0 < load_votes(part).draws.sum() + load_votes(part).pilot.sum() < 4 * 96
    do(trained, task)
    assert not part.exists() and (trained.votes(SPEC, spec).draws == 80).all()
    data = networks(trained).data(SPEC.data)
    whole = smoothing.collect_votes(networks(trained).trained(SPEC).eval(), data.test_x[:4], spec.plan)
    assert np.array_equal(trained.votes(SPEC, spec).votes, whole.votes)


@pytest.mark.parametrize(("seed", "other"), [(1, {"model_hash": "0" * 16}), (2, {"noise": "cuda-64"})])
def test_begun_on_another_machine(trained: Store, seed: int, other: dict, caplog: pytest.LogCaptureFixture) -> None:
    """Votes whose noise or re-estimated statistics this machine does not have are drawn from the first image again."""
    spec = replace(CERT, n=80, images=3, seed=seed)
    task, part = Task(SPEC, spec), trained.root / "work" / f"{SPEC.hash}-{spec.hash}.npz"
    with pytest.raises(OutOfTime):
        do(trained, task, stop=True)
    replace(load_votes(part), **other).save(part, about(task))
    do(trained, task)
    data = networks(trained).data(SPEC.data)
    whole = smoothing.collect_votes(networks(trained).trained(SPEC).eval(), data.test_x[:3], spec.plan, seed=spec.seed)
    assert np.array_equal(trained.votes(SPEC, spec).votes, whole.votes) and "begun on another kind of machine" in caplog.text


def test_votes_of_another_certification_are_not_mixed_in(trained: Store, tmp_path: Path) -> None:
    """Votes under a name that is not theirs, of another noise level, number of draws or precision, are refused when read."""
    store = Store("toy", root=shutil.copytree(trained.root, tmp_path / "copy"))
    jobs = [Job("x", SPEC, (), certs=(CERT,), labels=(("pretraining", "mixed"), ("finetuning", "clean"), ("norm", "batch")))]
    (found,) = cells.finished(store, jobs)
    path, votes = store.root / "votes" / f"{SPEC.hash}-{CERT.hash}.npz", trained.votes(SPEC, CERT)
    assert np.array_equal(found.certified.radius, votes.certified().radius)
    for other, message in (({"plan": replace(votes.plan, sigma=0.5)}, "sigma: 0.5 there, 0.25 asked for"),
                           ({"plan": replace(votes.plan, n0=20)}, "n0: 20 there, 16 asked for"),
                           ({"precision": "bfloat16"}, "precision: bfloat16 there, float32 asked for")):
        replace(votes, **other).save(path, about(Task(SPEC, CERT)))
        with pytest.raises(ValueError, match=f"{message}; .*moves it aside"):
            cells.finished(store, jobs)
