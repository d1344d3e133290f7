"""Claims on the learning rate: E1 to E3 on made-up runs at seven rates, and what is asked of the runs."""

import dataclasses
import itertools

import numpy as np
import pytest

from tests.claims.made import LEDGER
from tests.store_made import finish
from twinslib.claims import ledger, rates, verdict
from twinslib.claims.rates import STUDY
from twinslib.claims.verdict import INCONCLUSIVE, NOT, NOT_TESTED, PARTLY, REPRODUCED, Evidence
from twinslib.evidence.frame import Row
from twinslib.specs.jobs import Job
from twinslib.specs.measure import EvalSpec
from twinslib.specs.method import method
from twinslib.specs.run import DataSpec, ModelSpec, OptimSpec, RunSpec

N = 2000
EVALS = (EvalSpec(kind="clean", images=N), EvalSpec(kind="pgd", images=N, eps=8 / 255))
RATES = LEDGER["E2"].rule.rates
SETS = ("cifar10", "caltech64")


def run(name: str, dataset: str = "cifar10", rate: float = 0.003, seed: int = 0, part: str = "grid") -> Job:
    spec = RunSpec(data=DataSpec(name=dataset), model=ModelSpec(arch="tiny_resnet"), method=method(name), seed=seed,
                   optim=OptimSpec(lr=rate))
    return Job(STUDY, spec, EVALS, labels=(("part", part), ("rate", f"{rate:g}")))


def judged(name: str, levels: dict, at=RATES, sets=SETS, seeds=(0, 1, 2), diverged=(), gone=()) -> tuple[str, Evidence]:
    """Verdict and evidence where levels[method] is (clean, robust), or data set, rate, seed -> that; `gone`: runs that
    diverged and left nothing."""
    rows, rule = [], LEDGER[name].rule
    for m, d, r, seed in itertools.product(levels, sets, at, seeds):
        job, level = run(m, d, r, seed), levels[m](d, r, seed) if callable(levels[m]) else levels[m]
        rows += [Row(STUDY, job.spec, job.labels, metric, np.arange(N) < round(N * share), e.attack_name, e.threat, e.eps)
                 for metric, share, e in zip(("clean", "robust"), level, EVALS, strict=True) if job not in gone]
    found = rates.weigh(rows, dict.fromkeys(SETS, 0.01), rule, [*diverged, *gone])
    return verdict.judge(rule, found), found


def seeds_apart(d, r, seed):
    return 0.55, 0.25 + 0.05 * seed


@pytest.mark.parametrize(("name", "ours", "expected"), [
    # at the one rate of the rule TWINS-AT above AT in both, on each data set
    ("E1", (0.55, 0.35), REPRODUCED), ("E1", (0.55, 0.30), PARTLY), ("E1", (0.50, 0.30), NOT), ("E1", (0.55, 0.25), NOT),
    ("E1", seeds_apart, INCONCLUSIVE), ("E1", lambda d, r, seed: (0.55, 0.35) if d == "cifar10" else (0.50, 0.30), NOT),
    # the mean over rates and data sets within a point of AT at the higher rate on either side, and no rate clearly outside
    ("E2", (0.495, 0.30), REPRODUCED), ("E2", (0.47, 0.30), NOT), ("E2", (0.53, 0.30), NOT),
    ("E2", lambda d, r, seed: (0.50, 0.28 + 0.02 * seed), INCONCLUSIVE),
    ("E2", lambda d, r, seed: (0.50, 0.30) if r < 0.3 else (0.54, 0.30), INCONCLUSIVE),  # four points higher at one rate
    ("E2", lambda d, r, seed: (0.50, 0.30) if r != 0.1 or d == "cifar10" else (0.53, 0.30), INCONCLUSIVE),  # and on one data set
    ("E2", lambda d, r, seed: (0.50, 0.30) if r < 0.1 else (0.53, 0.30), NOT),  # at two rates
    # the mean over rates and data sets above AT on the split batch
    ("E3", (0.52, 0.32), REPRODUCED), ("E3", (0.52, 0.30), PARTLY), ("E3", (0.50, 0.30), NOT), ("E3", seeds_apart, INCONCLUSIVE),
])
def test_verdicts(name, ours, expected) -> None:
    """The rival has 50 and 30 % at every rate."""
    method_name, rival = LEDGER[name].rule.pairs[0]
    said, found = judged(name, {method_name: ours, rival: (0.50, 0.30)})
    assert said == expected
    if name == "E1":  # only the rate of the rule is looked at
        assert {(e.where, e.level, e.seeds) for e in found.effects} == {("rate 0.003", 0.975, 3)} and len(found.effects) == 4
    else:
        assert {e.part for e in found.effects} == {"mean"} and len(found.detail) == 2 * 2 * len(RATES)
        assert [e.value for e in found.effects[:2]] == pytest.approx([-e.value for e in found.effects[2:]] or [
            e.value for e in found.effects])  # E2 asks it both ways


def test_rates_near_chance_and_runs_that_diverged() -> None:
    """A rate at which a network is near guessing is left out and shown, and nothing is granted that would not be with it; where
    one diverged it is not the same at every rate."""
    def collapsed(d, r, seed):
        return (0.02, 0.01) if (d, r) == ("cifar10", 0.3) else (0.50, 0.30)

    for twins, at_lr, expected in ((collapsed, collapsed, REPRODUCED), ((0.50, 0.30), collapsed, INCONCLUSIVE)):
        said, found = judged("E2", levels := {"twins_at": twins, "at_lr": at_lr})
        assert said == expected and {(e.dataset, e.where) for e in found.flagged} == {("cifar10", "rate 0.3")}
        assert {e.value for e in found.effects} == {0.0}
    ahead = {"twins_at": lambda d, r, seed: (0.02, 0.01) if r > 0.02 else (0.52, 0.32), "at_split": (0.50, 0.30)}
    assert judged("E3", ahead)[0] == INCONCLUSIVE  # ahead where it did not collapse
    said, found = judged("E2", levels, diverged=[run("at_lr", "cifar10", 0.3)])
    assert said == INCONCLUSIVE
    assert found.said.startswith("of 2 intervals 2 within 1 on either side of 0; diverged: CIFAR-10 at 0.3")
    apart = [run("twins_at", "cifar10", r, seed) for seed, r in enumerate((0.03, 0.1, 0.3))]  # no seed is there at every rate
    said, found = judged("E3", {"twins_at": lambda d, r, seed: (0.4, 0.2) if r > 0.02 else (0.55, 0.35), "at_split": (0.5, 0.3)},
                         gone=apart)
    assert [(e.value > 0, e.seeds) for e in found.effects] == [(True, 3)] * 2 and said == INCONCLUSIVE
    assert len(found.detail) == 2 * 2 * len(RATES) and "diverged: CIFAR-10 at 0.03, CIFAR-10 at 0.1" in found.said
    assert "near chance" in judged("E1", {"twins_at": (0.04, 0.03), "at": (0.04, 0.03)})[1].lack


@pytest.mark.parametrize("name", ["E1", "E2", "E3"])
def test_too_little_is_not_tested(name) -> None:
    """Two seeds, one data set, or a rate that is missing."""
    at = LEDGER[name].rule.rates
    levels = {m: (0.5, 0.3) for m in LEDGER[name].rule.pairs[0]}
    for options in ({"seeds": (0, 1)}, {"sets": SETS[:1]}, {"at": at[:-1] or (9.0,)}):
        said, found = judged(name, levels, **{"at": at} | options)
        assert said == NOT_TESTED and "3 seeds of all that is compared are needed on 2 data sets" in found.lack


def test_runs_of_a_store(store) -> None:
    """Runs of the grid that began under the rule are read with their masks; longer ones, at other rates, are none of the rule."""
    claim = LEDGER["E1"]
    jobs = [run(m, d, seed=s) for m, d, s in itertools.product(("twins_at", "at"), SETS, range(3))]
    for job in jobs:
        right = np.arange(N) < N * (0.6 if job.spec.method.name == "twins_at" else 0.5)
        finish(store, job.spec, dict.fromkeys(EVALS, right), stamps={claim.id: claim.rule.stamp}, classes=100)
    found = ledger.judge(claim, store, [*jobs, run("natural")])
    assert (found.verdict, len(found.runs), found.not_counted) == (REPRODUCED, 12, 0)
    assert "accuracies 50.0 to 60.0 %, of guessing 1 %" in found.regime
    for labels in ((("part", "long"), ("rate", "0.003")), (("part", "grid"), ("rate", "0.01"))):
        other = [dataclasses.replace(j, labels=labels) for j in jobs]
        assert ledger.judge(claim, store, other).verdict == NOT_TESTED
