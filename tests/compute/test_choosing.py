"""How hyper-parameters are chosen from what is finished, and when what waited for the choice is done."""

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from tests.compute.made import BARE, CLEAN, compute, contents, record
from tests.store_made import diverge
from twinslib import workers
from twinslib.evidence import rows as evidence_rows
from twinslib.specs.jobs import Job, Task
from twinslib.specs.labels import DIVERGED, NOT_RUN
from twinslib.store.store import Store

CANDIDATES = [replace(BARE, optim=replace(BARE.optim, lr=lr)) for lr in (0.1, 0.2, 0.3)]


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
def test_best(store: Store, epochs: list, chosen: int | None) -> None:
    """The best candidate has the highest mean of clean and robust validation accuracy at its last measurement."""
    for spec, found in zip(CANDIDATES, epochs, strict=True):
        assert store.best(CANDIDATES) is None
        if found:
            record(store, spec, *found)
        else:
            diverge(store, spec)
            assert store.diverged(spec) == "NaN"
    assert store.best(CANDIDATES) is (None if chosen is None else CANDIDATES[chosen])


def test_furthest_ahead(store: Store) -> None:
    """Against rivals the greatest lead is chosen; nothing while a rival is missing, and never a pair of which one diverged."""
    rivals = [replace(c, seed=7) for c in CANDIDATES]
    for spec, score in zip([*CANDIDATES, *rivals[:2]], (0.5, 0.6, 0.4, 0.5, 0.55), strict=True):
        record(store, spec, (score, score))
    assert store.best(CANDIDATES, over=rivals) is None
    diverge(store, rivals[2])
    assert store.best(CANDIDATES, over=rivals) is CANDIDATES[1]
    record(store, rivals[2], (0.2, 0.2))
    assert store.best(CANDIDATES, over=rivals) is CANDIDATES[2] and store.best(CANDIDATES) is CANDIDATES[1]


def test_what_no_choice_will_come_for(store: Store) -> None:
    """Of each pair one diverged: a run that waits for the best of them never comes. One without candidates waits for nothing."""
    rivals, kept = [replace(c, seed=7) for c in CANDIDATES], Job("tiny", BARE, (), settled=False)
    job = Job("tiny", BARE, (), settled=False, candidates=(*CANDIDATES, *rivals))
    for spec, rival in zip(CANDIDATES, rivals, strict=True):
        assert (store.absent(job), store.waiting([job, kept])) == (NOT_RUN, 1)
        record(store, spec, (0.5, 0.5))
        diverge(store, rival)
    assert (store.best(CANDIDATES, over=rivals), store.absent(job), store.waiting([job, kept])) == (None, DIVERGED, 0)


def test_best_needs_validation(store: Store) -> None:
    """Without a measurement on validation images nothing can be chosen, and the message says what to set."""
    for spec in CANDIDATES:
        record(store, spec, (None, None))
    with pytest.raises(ValueError, match=f"validation accuracy of run {CANDIDATES[0].hash} .*val_images and val_every"):
        store.best(CANDIDATES)


class TinyPlan:
    """AT whose rate is chosen among `values` with seed 0 and used with seeds 0 and 1; counts how often it is asked."""

    def __init__(self, *values: float) -> None:
        self.candidates = [replace(BARE, optim=replace(BARE.optim, lr=lr)) for lr in values]
        self.asked = 0

    def __call__(self, best) -> Sequence[Job]:
        self.asked += 1
        chosen = best(self.candidates)
        tunes = [replace(chosen or self.candidates[0], seed=seed) for seed in (0, 1)]
        return [*(Job("tuning", c, ()) for c in self.candidates),
                *(Job("tiny", t, (CLEAN,), settled=chosen is not None, candidates=() if chosen else tuple(self.candidates))
                  for t in tunes)]


def test_plan_is_asked_again(store: Store) -> None:
    """Candidates first; then the runs that waited are done with what was chosen, which is not trained twice."""
    plan = TinyPlan(0.01, 0.05)
    report = compute(store, plan)
    chosen = store.best(plan.candidates)
    score = {c: np.mean([store.run(c)["epochs"][-1][k] for k in ("val_clean_acc", "val_robust_acc")]) for c in plan.candidates}
    assert chosen == max(plan.candidates, key=score.get)  # the first of equals
    other = replace(chosen, seed=1)
    assert report.done == [*map(Task, plan.candidates), Task(chosen, CLEAN), Task(other), Task(other, CLEAN)]
    assert (report.failed, report.left, report.waiting) == ([], [], 0)
    assert plan.asked == 2  # at the start and after the last candidate, not after runs that nothing waits for


def test_what_is_chosen_and_done_between_two_looks_counts(store: Store) -> None:
    """Whoever follows workers that are quicker than it looks reports each task that they did, and none that was done before."""
    plan = TinyPlan(0.01, 0.05)
    compute(store, plan, budget=0.0)
    did = []

    class Quick(SimpleNamespace):
        done = staticmethod(lambda: True)
        status = staticmethod(lambda: 0)
        said = staticmethod(str)

    report, status = workers.sweep(lambda folder: did.extend(compute(store, plan).done) or [Quick()], store, plan, stop=bool)
    assert status == 0 and len(did) >= 4 and sorted(map(str, report.done)) == sorted(map(str, did))


def test_waiting_runs_are_counted(store: Store, tmp_path) -> None:
    """A sweep that ends before a choice leaves the candidates and says how many runs wait."""
    plan, left, once = TinyPlan(0.001, 0.1), [], Store("tiny", root=tmp_path / "once")
    while not left or any(left[-1]):
        report = compute(store, plan, budget=0.0)
        left.append((len(report.left), report.waiting))
    assert list(dict.fromkeys(left)) == [(2, 2), (1, 2), (3, 0), (2, 0), (1, 0), (0, 0)]
    compute(once, plan)
    for study in ("tuning", "tiny"):
        for where in (store, once):
            evidence_rows.write(where, [job for job in plan(where.best) if job.study == study], study)
    assert contents(once) == contents(store)


def test_all_candidates_diverged(store: Store) -> None:
    """Where every candidate diverges nothing is chosen."""
    plan = TinyPlan(1e30, 1e31)
    report = compute(store, plan)
    assert [t for t, _ in report.diverged] == [Task(c) for c in plan.candidates] and store.best(plan.candidates) is None
    assert (report.done, report.left, report.failed, report.waiting) == ([], [], [], 0)
    jobs = plan(store.best)
    assert [store.absent(job) for job in jobs] == [DIVERGED] * 4 and store.missing(jobs) == []
    rows = evidence_rows.rows(store, jobs)
    assert rows[["seed", "images"]].values.tolist() == [[0, DIVERGED], [1, DIVERGED]] and rows["value"].isna().all()
