"""Claims on the learning rate: E1 to E3 on made-up runs at seven rates, and what is asked of the runs."""

import dataclasses
import itertools
import json

import numpy as np
import pytest

from twinslib.claims import effects, ledger
from twinslib.claims import rates as claims_rates
from twinslib.claims.effects import INCONCLUSIVE, NOT, NOT_TESTED, PARTLY, REPRODUCED, Evidence
from twinslib.claims.rates import STUDY
from twinslib.specs.measure import EvalSpec
from twinslib.specs.method import method
from twinslib.specs.reading import canonical_json
from twinslib.specs.run import DataSpec, ModelSpec, OptimSpec, RunSpec
from twinslib.store.jobs import Job
from twinslib.store.store import Store
from twinslib.studies import rules

N = 2000
LEDGER = {c.id: c for c in rules.claims()}
EVALS = (EvalSpec(kind="clean", images=N), EvalSpec(kind="pgd", images=N, eps=8 / 255))
RATES = LEDGER["E2"].rule.rates
SETS = ("cifar10", "caltech64")


def run(name: str, dataset: str = "cifar10", rate: float = 0.003, seed: int = 0, part: str = "grid") -> Job:
    spec = RunSpec(data=DataSpec(name=dataset), model=ModelSpec(arch="tiny_resnet"), method=method(name), seed=seed,
                   optim=OptimSpec(lr=rate))
    return Job(STUDY, spec, EVALS, labels=(("part", part), ("rate", f"{rate:g}")))


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch):
    """judge(claim, levels): verdict and evidence where levels[method] is (clean, robust), or data set, rate, seed -> that."""
    def judge(name: str, levels: dict, rates=RATES, sets=SETS, seeds=(0, 1, 2), diverged=()) -> tuple[str, Evidence]:
        right: dict[str, dict] = {"clean": {}, "robust": {}}
        for m, d, r, seed in itertools.product(levels, sets, rates, seeds):
            level = levels[m](d, r, seed) if callable(levels[m]) else levels[m]
            for metric, share in zip(right, level, strict=True):
                right[metric].setdefault((d, m, r), {})[seed] = np.arange(N) < round(N * share)
        monkeypatch.setattr(claims_rates, "_masks", lambda store, jobs, rule, metric: right[metric])
        monkeypatch.setattr(claims_rates, "chance", lambda store, jobs: dict.fromkeys(SETS, 0.01))
        jobs, rule = [run("at", d) for d in sets], LEDGER[name].rule
        found = claims_rates.evidence(None, jobs, rule, diverged)
        return effects.judge(rule, found), found

    return judge


@pytest.mark.parametrize(("ours", "verdict"), [
    ((0.55, 0.35), REPRODUCED), ((0.55, 0.30), PARTLY), ((0.50, 0.30), NOT), ((0.55, 0.25), NOT),
    (lambda d, r, seed: (0.55, 0.25 + 0.05 * seed), INCONCLUSIVE),
    (lambda d, r, seed: (0.55, 0.35) if d == "cifar10" else (0.50, 0.30), NOT),  # on every data set
])
def test_at_one_rate(judged, ours, verdict) -> None:
    """E1: AT has 50 and 30 %; only the rate of the rule is looked at."""
    def level(d, rate, seed):
        return (0.1, 0.05) if rate != 0.003 else ours(d, rate, seed) if callable(ours) else ours

    said, found = judged("E1", {"twins_at": level, "at": (0.50, 0.30)}, rates=RATES[:2])
    assert said == verdict
    assert len(found.effects) == 4 and {(e.where, e.level, e.seeds) for e in found.effects} == {("rate 0.003", 0.975, 3)}


@pytest.mark.parametrize(("fast", "verdict"), [
    ((0.505, 0.30), REPRODUCED), ((0.53, 0.30), NOT), ((0.47, 0.30), NOT),
    (lambda d, r, seed: (0.50, 0.30) if r < 0.3 else (0.46, 0.30), INCONCLUSIVE),  # four points lower at one rate
    (lambda d, r, seed: (0.50, 0.30) if r != 0.1 or d == "cifar10" else (0.47, 0.30), INCONCLUSIVE),  # and on one data set
    (lambda d, r, seed: (0.50, 0.30) if r < 0.1 else (0.47, 0.30), NOT),  # at two rates
    (lambda d, r, seed: (0.50, 0.28 + 0.02 * seed), INCONCLUSIVE),
])
def test_the_same_at_every_rate(judged, fast, verdict) -> None:
    """E2: the mean over rates and data sets within a point of 50 and 30 % on either side, and no rate clearly outside."""
    said, found = judged("E2", {"twins_at": (0.50, 0.30), "at_lr": fast})
    assert said == verdict and len(found.effects) == 4 and {e.part for e in found.effects} == {"mean"}
    assert [e.value for e in found.effects[:2]] == pytest.approx([-e.value for e in found.effects[2:]])
    assert len(found.detail) == 2 * 2 * len(RATES)


@pytest.mark.parametrize(("ours", "verdict"), [
    ((0.52, 0.32), REPRODUCED), ((0.52, 0.30), PARTLY), ((0.50, 0.30), NOT),
    (lambda d, r, seed: (0.52, 0.28 + 0.02 * seed), INCONCLUSIVE),
])
def test_above_the_split_batch(judged, ours, verdict) -> None:
    """E3: the mean over rates and data sets against 50 and 30 %."""
    said, found = judged("E3", {"twins_at": ours, "at_split": (0.50, 0.30)})
    assert said == verdict and [e.metric for e in found.effects] == ["clean", "robust"]


def test_rates_near_chance_and_runs_that_diverged(judged) -> None:
    """A rate at which a network is near guessing is left out and shown; where one diverged it is not the same at every rate."""
    levels = {"twins_at": (0.50, 0.30),
              "at_lr": lambda d, r, seed: (0.02, 0.01) if (d, r) == ("cifar10", 0.3) else (0.50, 0.30)}
    said, found = judged("E2", levels)
    assert said == REPRODUCED and {(e.dataset, e.where) for e in found.flagged} == {("cifar10", "rate 0.3")}
    said, found = judged("E2", levels, diverged=[run("at_lr", "cifar10", 0.3)])
    assert said == INCONCLUSIVE and "diverged: CIFAR-10 at 0.3" in found.said
    assert "near chance" in judged("E1", {"twins_at": (0.04, 0.03), "at": (0.04, 0.03)})[1].lack


@pytest.mark.parametrize("name", ["E1", "E2", "E3"])
def test_too_little_is_not_tested(judged, name) -> None:
    """Two seeds, one data set, or a rate that is missing."""
    rates = LEDGER[name].rule.rates
    levels = {m: (0.5, 0.3) for m in LEDGER[name].rule.pairs[0]}
    for options in ({"seeds": (0, 1)}, {"sets": SETS[:1]}, {"rates": rates[:-1] or (9.0,)}):
        said, found = judged(name, levels, **{"rates": rates} | options)
        assert said == NOT_TESTED and "3 seeds of all that is compared are needed on 2 data sets" in found.lack


def test_runs_of_a_store(tmp_path) -> None:
    """Runs of the grid that began under the rule are read with their masks; longer ones, at other rates, are none of the rule."""
    store, claim = Store("small", root=tmp_path), LEDGER["E1"]
    jobs = [run(m, d, seed=s) for m, d, s in itertools.product(("twins_at", "at"), SETS, range(3))]
    for folder in ("runs", "provenance", "masks"):
        (store.root / folder).mkdir()
    for job in jobs:
        record = {"spec": json.loads(canonical_json(job.spec)), "split": job.spec.data.name, "classes": 100}
        (store.root / "runs" / f"{job.spec.hash}.json").write_text(json.dumps(record))
        entry = {"train": {"seconds": 1.0, "rules": {claim.id: claim.rule.stamp}}}
        (store.root / "provenance" / f"{job.spec.hash}.json").write_text(json.dumps(entry))
        share = 0.6 if job.spec.method.name == "twins_at" else 0.5
        np.savez(store.root / "masks" / f"{job.spec.hash}.npz",
                 **{f"{e.hash}/{e.attack_name}": np.arange(N) < N * share for e in EVALS})
    found = ledger.judge(claim, store, [*jobs, run("natural")])
    assert (found.verdict, len(found.runs), found.not_counted) == (REPRODUCED, 12, 0)
    assert "accuracies 50.0 to 60.0 %, of guessing 1 %" in found.regime
    for labels in ((("part", "long"), ("rate", "0.003")), (("part", "grid"), ("rate", "0.01"))):
        other = [dataclasses.replace(j, labels=labels) for j in jobs]
        assert ledger.judge(claim, store, other).verdict == NOT_TESTED
