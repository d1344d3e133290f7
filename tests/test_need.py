"""What verdicts wait for: the least that a rule asks for, in the ledger's order, and the hours until each."""

import json
from collections import Counter
from pathlib import Path

import pytest

from tests import store_made
from twinslib import need
from twinslib.claims import ledger as claims_ledger
from twinslib.claims.verdict import NOT_TESTED
from twinslib.compute import cost, queue
from twinslib.compute.worker import Worker
from twinslib.specs.jobs import Job, Report
from twinslib.store.store import Store
from twinslib.studies import plan as studies_plan
from twinslib.studies import presets, rules

SMALL = Path(__file__).parent.parent / "results" / "small"
NUMBERS = ("01", "02", "04", "06")


@pytest.fixture(scope="module")
def store() -> Store:
    return Store("small", root=SMALL)


@pytest.fixture(scope="module")
def plans() -> dict:
    return {number: studies_plan.plan("small", number)[0] for number in NUMBERS}


@pytest.fixture
def empty(tmp_path: Path) -> Store:
    return Store("small", root=tmp_path)


def test_least_that_a_rule_asks_for(empty: Store, plans: dict) -> None:
    """From nothing: every pair of the rule on so many data sets with so many seeds, at each rate."""
    found = {n.claim.id: n for n in need.needs(empty, plans)}
    assert list(found) == [c.id for c in rules.claims() if c.id in found]  # the ledger's order
    assert {"C2", "C3", "C4", "C8", "C9", "C5", "E1", "E2", "E3"} <= set(found) and "C1" not in found
    for name, one in found.items():
        rule = one.claim.rule
        if rule.smooth or name.startswith("AFT"):
            continue
        cells = Counter((j.spec.method.name, j.spec.data.name, dict(j.labels).get("rate")) for j in one.runs)
        assert set(cells.values()) == {rule.min_seeds}
        assert {method for method, *_ in cells} == {method for pair in rule.pairs for method in pair}
        assert len({data for _, data, _ in cells}) == max(rule.min_datasets, 3 if rule.measure == "gain" else 1)
        assert {rate for *_, rate in cells} == ({f"{r:g}" for r in rule.rates} or {None})
        tuned = {j.spec for j in one.jobs if j.study == "tuning"}
        assert tuned == {spec for job in one.runs for spec in job.candidates} and {t.spec for t in one.tasks} >= tuned


def test_of_what_is_finished(store: Store, plans: dict) -> None:
    """Judged claims wait for nothing, the others for runs that are not there and would count."""
    ledger = json.loads((SMALL / "claims.json").read_text())
    for one in need.needs(store, plans):
        assert ledger[one.claim.id]["verdict"] == NOT_TESTED and one.tasks
        jobs = plans[one.claim.notebook](best=store.best)
        assert set(one.runs) <= set(jobs) and set(one.tasks) >= {t for t in store.missing(one.runs)}
        assert all(store.missing([job]) or not job.settled for job in one.runs)


def test_a_rate_that_diverged_is_gone_without(empty: Store, plans: dict) -> None:
    """E2 and E3 leave such a rate out and still wait for the others; to C5, which compares whole seeds, the data set is lost."""
    before = {n.claim.id: n for n in need.needs(empty, plans)}
    lost = next(job for job in before["E2"].runs if job.spec.method.name == "twins_at" and dict(job.labels)["rate"] == "0.3")
    gone = next(job for job in before["C5"].runs if job.settled)
    for job in (lost, gone):
        store_made.diverge(empty, job.spec)
    after = {n.claim.id: n for n in need.needs(empty, plans)}
    for name in ("E2", "E3"):
        assert set(after[name].runs) == set(before[name].runs) - {lost}
    assert gone.spec.data not in {job.spec.data for job in after["C5"].runs}


def test_toy_waits_for_nothing(tmp_path: Path) -> None:
    toy = Store("toy", root=tmp_path)
    found = need.needs(toy, {"01": studies_plan.plan("toy", "01")[0]})
    assert found == [] and need.describe(found, 1.0, "given") == "no verdict waits for planned runs"


def test_hours_add_up_without_counting_twice(empty: Store, plans: dict) -> None:
    """Cumulative; E2 and E3 share the runs of TWINS-AT with E1."""
    found = [n for n in need.needs(empty, plans) if n.claim.id in ("E1", "E2", "E3")]
    alone = [need.hours([n], 1e9)[0] for n in found]
    after = need.hours(found, 1e9)
    assert alone[0] == after[0] < after[1] < after[2] < sum(alone)
    assert after[-1] == pytest.approx(sum(map(cost.macs, {t for n in found for t in n.tasks})) / 1e9 / 3600)
    text = need.describe(found, 1e9, "given")
    assert text.splitlines()[0] == f"{found[0]}: in {after[0]:.1f} h" and text.endswith("(given)")


def test_sweep_takes_verdicts_first(empty: Store, plans: dict, monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    """Claim by claim, then all else; it ends where something is left or it is stopped, says how long, and reports the sum."""
    caplog.set_level("INFO")
    monkeypatch.setattr(cost, "rate", lambda store, tasks: (1e12, "given"))
    calls: list[list[Job]] = []

    def sweep(worker, jobs, *, budget, stop, failed, left=()) -> Report:
        """Fails at the first task that is not to be left alone."""
        calls.append(list(jobs(best=worker.store.best)))
        fails = next((task for task in worker.store.missing(calls[-1]) if task not in failed), None)
        return Report(done=[len(calls)], left=list(left), failed=[(fails, "why")] if fails else [])

    monkeypatch.setattr(queue, "sweep", sweep)
    some = {"01": plans["01"]}
    wanted = need.needs(empty, some)
    report = need.sweep(Worker(empty, "cpu"), some)
    assert len(calls) == len(wanted) + 1 and report.done == list(range(1, len(calls) + 1))
    for jobs, one in zip(calls, wanted, strict=False):
        assert {need.key(job) for job in jobs} == {need.key(job) for job in one.jobs}
    assert set(calls[-1]) == set(plans["01"](best=empty.best))
    assert caplog.messages == [*need.describe(wanted, 1e12, "given").splitlines(), *(f"now {one.claim.id}" for one in wanted)]
    calls.clear()
    every = empty.missing(plans["01"](best=empty.best))
    assert len(report.failed) == len({task for task, _ in report.failed}) and set(report.left) < set(every)
    calls.clear()
    report = need.sweep(Worker(empty, "cpu"), some, left=["a task"])  # what is left is that of the whole plan, but what failed
    ((failed, _),) = report.failed
    assert report.left == [task for task in every if task != failed] and len(calls) == 1
    assert report.waiting == empty.waiting(plans["01"](best=empty.best)) > 0
    calls.clear()
    need.sweep(Worker(empty, "cpu"), some, stop=lambda: True)
    assert len(calls) == 1


def test_ledger_says_what_is_left(empty: Store, plans: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of runs and the hours on this machine, in claims that are not tested for want of runs."""
    monkeypatch.setattr(cost, "rate", lambda store, tasks: (1e12, "given"))
    need.write(Worker(empty, "cpu"), need.needs(empty, {"02": plans["02"]}), [])
    claim = next(c for c in rules.claims() if c.id == "E1")
    verdict = claims_ledger.judge(claim, empty, plans["02"](best=empty.best))
    assert verdict.verdict == NOT_TESTED and "; 12 runs are left, about 0." in verdict.why and ", threads: 1)" in verdict.why


def test_committed_hours_are_of_what_is_left(store: Store) -> None:
    """The ledger's numbers of runs and tasks are those that the committed results leave."""
    every = {number: studies_plan.plan("small", number)[0] for number in presets.notebooks()}
    stored = json.loads((SMALL / claims_ledger.WAITING).read_text())
    assert {n.claim.id: (len(n.runs), len(n.tasks)) for n in need.needs(store, every)} == {
        name: (line["runs"], line["tasks"]) for name, line in stored.items()}
    assert all(line["hours"] > 0 and line["on"] for line in stored.values())
