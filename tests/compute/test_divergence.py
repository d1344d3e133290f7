"""What diverges is a result, not a failure: kept, shown and not tried again; what depends on it says so."""

import os
from dataclasses import replace

import pytest

from tests.compute.made import BARE, CLEAN, compute, tiny_jobs
from tests.store_made import diverge
from twinslib.base.errors import Diverged
from twinslib.base.files import read_json
from twinslib.certify import smoothing
from twinslib.compute import worker
from twinslib.evidence import rows as evidence_rows
from twinslib.specs.jobs import Job, Task
from twinslib.specs.labels import DIVERGED, NOT_RUN, SOURCE_DIVERGED
from twinslib.specs.measure import CertifySpec
from twinslib.specs.run import FollowSpec, OptimSpec
from twinslib.store.store import Store
from twinslib.train import loop


def test_diverged_run_is_reported_and_the_others_go_on(store: Store) -> None:
    """An absurd learning rate is a result of its own run, in the first epoch, followed and with keep_best too."""
    jobs = tiny_jobs(("at",))
    optim, follow = OptimSpec(epochs=1, batch_size=20, lr=1e30), FollowSpec(train_images=10, test_images=10, record_every=1)
    broken = [replace(jobs[1], spec=replace(jobs[1].spec, optim=optim)),
              replace(jobs[1], spec=replace(jobs[1].spec, optim=replace(optim, val_every=1, keep_best=True))),
              Job("tiny", replace(jobs[1].spec, optim=optim, follow=follow), ())]
    planned = [jobs[0], *broken, jobs[1]]
    report = compute(store, planned)
    assert [t for t, _ in report.diverged] == [Task(job.spec) for job in broken]
    assert all("lower lr" in why and "epoch 1" in why for _, why in report.diverged)
    assert (report.failed, report.left, report.waiting) == ([], [], 0) and store.missing(planned) == []
    for job in broken:
        assert store.run(job.spec) is store.course(job.spec) is None and "lower lr" in store.diverged(job.spec)
        assert {store.absent(job, e) for e in (None, *job.evals)} == {DIVERGED}
    again = compute(store, planned)
    assert (again.done, again.failed, again.diverged, again.left) == ([], [], [], [])
    store.diverged_path(broken[0].spec).unlink()
    assert store.missing(planned) == [Task(broken[0].spec), *(Task(broken[0].spec, e) for e in broken[0].evals)]


def test_rows_until_divergence_are_kept(store: Store, monkeypatch) -> None:
    """A run that diverges late keeps the rows of the epochs before, in the table of epochs too, and leaves no checkpoint."""
    real = loop.not_finite
    monkeypatch.setattr(loop, "not_finite", lambda *of: "a weight" if calls.append(1) or len(calls) > 2 else real(*of))
    calls: list[int] = []  # asked at the start and after each epoch
    spec = replace(BARE, optim=replace(BARE.optim, epochs=3))
    (task, why), = compute(store, [Job("tiny", spec, ())]).diverged
    assert "in epoch 2" in why and [row["epoch"] for row in store.epochs(spec)] == [1]
    assert evidence_rows.epochs(store, [Job("tiny", spec, ())])["epoch"].tolist() == [1]
    assert not list(store.root.glob("work/*.ckpt"))
    entry = read_json(store.diverged_path(spec))["provenance"]
    assert entry["outcome"] == DIVERGED and entry["seconds"] > 0 and store.provenance(task) is None


def test_records_of_divergence(store: Store) -> None:
    """Where only the record of it was written before a kill the run has diverged all the same, until that file is deleted."""
    jobs, path = [Job("tiny", BARE, (CLEAN,)), Job("tuning", BARE, ())], store.root / "diverged" / f"{BARE.hash}.json"
    diverge(store, BARE)
    assert store.missing(jobs) == [] and store.epochs(BARE) == []
    path.unlink()
    assert store.missing(jobs) == [Task(BARE), Task(BARE, CLEAN)]
    diverge(store, BARE)
    assert store.diverged(BARE) == "NaN"
    other = replace(BARE, seed=7)
    os.rename(path, path.with_stem(other.hash))
    with pytest.raises(ValueError, match=f"spec of run {other.hash} .*moves it aside"):
        store.diverged(other)


def test_what_starts_from_a_diverged_source_is_not_tried(store: Store) -> None:
    """Its fine-tunes are no failures: they cannot be done, and say that their source diverged; others are done."""
    source, *tunes = tiny_jobs()
    origin = replace(source.spec, optim=replace(source.spec.optim, lr=1e30))
    tunes = [replace(job, spec=replace(job.spec, source=origin)) for job in tunes]
    jobs = [replace(source, spec=origin), *tunes, Job("tiny", BARE, ())]
    report = compute(store, jobs)
    assert [t for t, _ in report.diverged] == [Task(origin)] and report.done == [Task(BARE)]
    assert (report.failed, report.left, store.missing(jobs)) == ([], [], [])
    assert {store.absent(job, e) for job in tunes for e in (None, *job.evals)} == {SOURCE_DIVERGED}
    assert store.absent(jobs[-1]) == NOT_RUN and store.lost_to(tunes[0].spec) == origin
    rows = evidence_rows.rows(store, jobs)
    assert rows["value"].isna().all() and set(rows["images"]) == {DIVERGED, SOURCE_DIVERGED}


def test_diverged_measurements_are_results(store: Store, monkeypatch) -> None:
    """Logits that are not finite end one evaluation or certification, not its neighbours."""
    cert = CertifySpec(sigma=0.25, images=4, n=20, n0=10, alpha=0.05)
    job = Job("tiny", BARE, tiny_jobs()[1].evals, certs=(cert, replace(cert, sigma=0.5)))
    clean, pgd, auto = job.evals

    def diverging(real, bad):
        def call(*arguments, **options):
            if bad(arguments):
                raise Diverged("expected finite logits, got NaN")
            return real(*arguments, **options)
        return call

    monkeypatch.setattr(worker, "evaluate_block", diverging(worker.evaluate_block, lambda given: given[0] == pgd))
    monkeypatch.setattr(smoothing, "collect_votes", diverging(smoothing.collect_votes, lambda given: given[2].sigma == 0.25))
    report = compute(store, [job])
    assert [t for t, _ in report.diverged] == [Task(BARE, pgd), Task(BARE, cert)]
    assert set(report.done) == {Task(BARE), Task(BARE, clean), Task(BARE, auto), Task(BARE, job.certs[1])}
    assert report.failed == store.missing([job]) == [] and store.diverged(BARE) is None
    for measured in (pgd, cert):
        assert "finite logits" in store.diverged(BARE, measured) and store.absent(job, measured) == DIVERGED
    assert store.absent(job, clean) == NOT_RUN and store.votes(BARE, cert) is None and store.votes(BARE, job.certs[1])
    rows = evidence_rows.rows(store, [replace(job, certs=())])
    assert rows.loc[rows["value"].isna(), ["attack", "n", "images"]].values.tolist() == [["pgd3", 40, DIVERGED]]
    assert compute(store, [job]).done == [] and not list(store.root.glob("work/*-*"))


def test_weights_that_cannot_be_made_again(store: Store, monkeypatch) -> None:
    """A finished run whose weights are lost and whose training now diverges keeps its numbers."""
    clean, pgd, _ = tiny_jobs()[1].evals
    compute(store, [Job("tiny", BARE, (clean,))])
    store.weights_path(BARE).unlink()
    monkeypatch.setattr(loop, "not_finite", lambda *of: "a weight")
    job = Job("tiny", BARE, (clean, pgd))
    report = compute(store, [job])
    assert [t for t, _ in report.diverged] == [Task(BARE)] and report.failed == report.left == store.missing([job]) == []
    assert store.run(BARE) and store.masks(BARE, clean) and store.absent(job, pgd) == DIVERGED
    assert evidence_rows.rows(store, [job])["value"].isna().tolist() == [False, True]
