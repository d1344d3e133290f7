"""Rules on courses, from made-up runs: rates of the weights, early losses, and gaps of whole images of N."""

import dataclasses
import math
from itertools import product

import numpy as np
import pytest
from scipy import stats as reference

from tests import store_made
from tests.claims.made import LEDGER
from tests.store_made import finish
from twinslib.base import stats
from twinslib.claims import course, ledger
from twinslib.claims.verdict import INCONCLUSIVE, NOT, NOT_TESTED, PARTLY, REPRODUCED
from twinslib.specs.jobs import Job
from twinslib.specs.method import method
from twinslib.specs.run import AttackSpec, DataSpec, FollowSpec, ModelSpec, OptimSpec, RunSpec
from twinslib.studies import rules

N = 1000
PLATEAUS = {"at_long_plateau": (0.6,), "at_short_plateau": (0.2,)}  # 4 and 8 of 10 epochs after the drop
FOLLOW = FollowSpec(record_every=5, train_images=2, test_images=N, dense=5, every=5)
EPOCHS = [0, 1, 2, 3, 4, 5, 10]
OURS = [name for name, claim in LEDGER.items() if claim.rule.measure in course.MEASURES]
TWO = ("cifar10", "caltech64")


def spec(name, dataset="cifar10", seed=0, attack=None, epochs=10):
    return RunSpec(data=DataSpec(name=dataset, val_images=10), model=ModelSpec(arch="tiny_resnet"), method=method(name),
                   optim=OptimSpec(epochs=epochs, milestones=PLATEAUS.get(name, (0.5,))), follow=FOLLOW,
                   attack=attack or AttackSpec(), seed=seed)


def made(gap=0, rate=1.0, angle=1.0, losses=(1.0,) * 5, ends=(9.0, 0.1), train=(2.0, 1.0), images=N, epochs=EPOCHS):
    """(arrays, per-epoch rows) of a run: `gap` images fewer robust at all five last epochs than at the best, the second of all;
    lr / ||w||^2 and angle of all convolutions; PGD loss after epochs 1 to 5, before and after those; training losses by
    epoch."""
    robust = np.zeros((len(epochs), images), bool)
    robust[epochs.index(1), :500] = True
    robust[epochs.index(1) + 1:, max(gap, 0):500] = True
    robust[epochs.index(1), :max(-gap, 0)] = False
    layers = np.ones((2, 3))
    arrays = {"epoch": epochs, "test_robust": robust, "test_clean": robust, "layers": ["a", "b", "fc"], "steps": [0, 5],
              "lr": [0.1, 0.1], "w_norm": layers * math.sqrt(0.1 / rate), "angle": layers * angle, "losses": np.ones((2, 2)),
              "train_loss": [[v - 0.5, v + 0.5] for v in (ends[0], *losses, ends[1])][:len(epochs)],
              **{name: layers for name in ("g_norm", "g_first", "g_second", "cos_wg")}}
    rows = [{"epoch": e + 1, "train_loss": loss, "val_robust_acc": 0.5 if e == 0 else 0.4} for e, loss in enumerate(train)]
    return {k: np.array(v) for k, v in arrays.items()}, rows


def fill(store, claim, levels, datasets=("cifar10",), seeds=(0, 1, 2), stamps=None, gone="", record=None, **changes):
    """Finished runs: levels[method] are arguments of `made`, by data set or not, or data set, seed -> arguments; None where none
    is. Returns jobs."""
    jobs = []
    for dataset, name, seed in product(datasets, levels, seeds):
        level = levels[name](dataset, seed) if callable(levels[name]) else levels[name].get(dataset, levels[name])
        if level is not None:
            s, (arrays, rows) = spec(name, dataset, seed, **changes), made(**level)
            arrays.pop(gone, None)
            finish(store, s, course=arrays, stamps=stamps or {claim.id: claim.rule.stamp}, epochs=rows, train_images=100,
                   **(record or {}))
            jobs.append(Job("followed", s, ()))
    return jobs


def judged(store, name, levels, *rest, **options):
    """The verdict on a claim of the ledger; `rest` and `options` as of `fill`."""
    return ledger.judge(LEDGER[name], store, fill(store, LEDGER[name], levels, *rest, **options))


def diverge(store, *keys):
    """Leave what a training leaves that ended without a result."""
    store_made.diverge(store, spec(*keys), "loss is nan", provenance={"rules": rules.stamps()})
    return Job("followed", spec(*keys), ())


def crossed(counts, level=0.95):
    """Mean and interval where counts[seed] images of N lose (or, below 0, win) one each, nested from the first image on."""
    values = np.stack([np.sign(c) * (np.arange(N) < abs(c)) for c in counts])
    return pytest.approx(tuple(stats.crossed_mean(values, level)[:3]), abs=1e-6)


def ends(effect):
    return effect.value, effect.low, effect.high


def by_seed(**values):
    """A level of `fill` whose arguments are lists by seed."""
    return lambda dataset, seed: {key: value[seed] for key, value in values.items()}


HIGH, FAST = {"rate": 2.0, "angle": 3.0}, {"rate": 1.5, "angle": 1.5}


def rates(twins, fast=FAST):
    return {"at": {}, "twins_at": twins, "at_lr": fast}


def wins(k, than=1.0):
    """Losses half a nat below `than` in the first k of five epochs, equal to it in the others."""
    return [than - 0.5] * k + [than] * (5 - k)


def losses(against_at, against_fast):
    """In how many of five epochs each seed of TWINS-AT is below the others."""
    return {"twins_at": {"losses": [1.0] * 5}, **{name: by_seed(losses=[wins(5 - k, than=1.5) for k in counts])
                                                  for name, counts in (("at", against_at), ("at_lr", against_fast))}}


def gaps(**levels):
    """One gap for all, by seed (list) or by data set (tuple)."""
    return {name: by_seed(gap=gap) if isinstance(gap, list) else {"gap": gap} if isinstance(gap, int) else
            {d: {"gap": g} for d, g in zip(TWO, gap, strict=True)} for name, gap in levels.items()}


def schedules(*found):
    return gaps(**dict(zip(("at", "at_cosine", "at_cyclic", "at_slow_fast"), found, strict=True)))


@pytest.mark.parametrize(("name", "levels", "verdict"), [
    # both ratios over AT and over AT with the higher rate, in every seed and on every data set; for partly the angle over AT
    ("C5", rates(HIGH), REPRODUCED),
    ("C5", rates(HIGH, {"rate": 2.5, "angle": 1.5}), REPRODUCED),  # lr/||w||^2 of AT with the higher rate is not asked for
    ("C5", rates(HIGH, {"rate": 1.5, "angle": 3.0}), PARTLY),  # equal is not above
    ("C5", rates({"rate": 0.95, "angle": 3.0}), PARTLY), ("C5", rates({"rate": 0.85, "angle": 3.0}), NOT),  # 10 % lower
    ("C5", rates({"rate": 1.0, "angle": 1.1}), PARTLY), ("C5", rates({"rate": 2.0, "angle": 1.0}), NOT),
    ("C5", rates(by_seed(rate=[2.0] * 3, angle=[3.0, 3.0, 1.4])), INCONCLUSIVE),  # the interval is wide
    ("C5", rates(dict(cifar10=HIGH, caltech64={"rate": 1.4, "angle": 1.5})), PARTLY),  # on one data set
    ("C5", rates(dict(cifar10=HIGH, caltech64={"rate": 2.0, "angle": 0.9})), NOT),
    # below AT and below AT with the higher rate in four of five epochs of every seed; for partly below AT
    ("C6", losses([4, 4, 4], [4, 5, 4]), REPRODUCED), ("C6", losses([4, 5, 5], [5, 3, 5]), PARTLY),
    ("C6", losses([5, 5, 5], [0, 0, 0]), PARTLY), ("C6", losses([5, 5, 3], [5, 5, 5]), INCONCLUSIVE),  # if below on average
    ("C6", losses([0, 0, 0], [0, 0, 0]), NOT),  # equal is not below
    # a smaller gap on each data set, where that of the baseline is at least a point
    ("C7", gaps(at=50, twins_at=46), REPRODUCED), ("C7", gaps(at=50, twins_at=47), NOT),  # four images in a thousand are clear
    ("C7", gaps(at=50, twins_at=60), NOT), ("C7", gaps(at=10, twins_at=5), REPRODUCED),
    ("C7", gaps(at=9, twins_at=0), NOT_TESTED),
    ("C7", gaps(at=(50, 50), twins_at=(40, 40)), REPRODUCED), ("C7", gaps(at=(50, 50), twins_at=(40, 47)), NOT),
    ("C7", gaps(at=(50, 9), twins_at=(10, 0)), NOT_TESTED), ("C7", gaps(at=50, twins_at=[10, 40, 49]), INCONCLUSIVE),
    # against three schedules, or clear against the piecewise one and not behind the others; their own gaps are not asked
    ("AFT-C3", schedules(60, 60, 60, 40), REPRODUCED), ("AFT-C3", schedules(43, 60, 60, 40), NOT),
    ("AFT-C3", schedules(60, 43, 60, 40), PARTLY), ("AFT-C3", schedules(60, 43, 20, 40), NOT),
    ("AFT-C3", schedules(40, 60, 60, 40), NOT), ("AFT-C3", schedules(9, 60, 60, 0), NOT_TESTED),
    ("AFT-C3", schedules(60, 9, 9, 0), REPRODUCED),
    # the interval of the gap itself against 5 points, then against 0
    *(("AFT-C5", gaps(at_random=gap), verdict) for gap, verdict in (
        (70, REPRODUCED), (60, PARTLY), ([60, 70, 80], PARTLY), (4, PARTLY), (3, NOT), ([0, 90, 90], INCONCLUSIVE), (-60, NOT))),
    # long minus short plateau, at equal length and cut at the same time after the drop
    *(("AFT-C6", gaps(at_short_plateau=short, at_long_plateau=long), verdict) for short, long, verdict in (
        (40, 60, REPRODUCED), (40, 40, NOT), (60, 52, NOT), (40, [20, 60, 110], INCONCLUSIVE))),
])
def test_verdicts(store, name, levels, verdict):
    """Runs on one data set or two, by what the words of each rule ask."""
    two = any(not callable(level) and "caltech64" in level for level in levels.values())
    found = judged(store, name, levels, TWO if two else TWO[:1])
    assert found.verdict == verdict and len(found.runs) == 3 * len(levels) * (1 + two)


def test_effects(store):
    """Geometric means of rates over the seeds, means of losses, gaps by image."""
    twins, fast = {"rate": [2.0, 3.0, 4.5], "angle": [1.5] * 3}, {"rate": 0.5, "angle": 2.0}
    found = judged(store, "C5", rates(by_seed(**twins), fast))
    half = math.exp(reference.t.ppf(1 - 0.05 / 3, 2) * math.log(1.5) / math.sqrt(3))  # three intervals decide
    assert {(e.baseline, e.metric): ends(e) for e in found.effects} == {key: pytest.approx(value, rel=1e-5) for key, value in {
        ("at", "lr_over_w2"): (3, 3 / half, 3 * half), ("at", "angle"): (1.5, 1.5, 1.5),
        ("at_lr", "lr_over_w2"): (6, 6 / half, 6 * half), ("at_lr", "angle"): (0.75,) * 3}.items()}
    assert found.detail == found.effects and found.why == (
        "of 3 intervals 1 as asked, 1 without the claimed effect; angle per step over AT above 1 in every seed: yes; angle per "
        "step over AT, lr × (1 + λ) above 1 in every seed: no; stable: yes")
    found = judged(store, "C6", losses([4, 5, 3], [5, 5, 5]))
    half = reference.t.ppf(0.975, 2) * 0.1 / math.sqrt(3)
    assert ends(found.effects[0]) == pytest.approx((-0.4, -0.4 - half, -0.4 + half), abs=1e-6)
    assert found.why.endswith("TWINS-AT - AT: lower in at least 4 of 5 epochs in 2 of 3 runs; TWINS-AT - AT, lr × (1 + λ): lower "
                              "in at least 4 of 5 epochs in 3 of 3 runs")
    found = judged(store, "AFT-C3", schedules(60, [43, 50, 53], 60, 40))
    assert [ends(e) for e in found.effects] == [crossed(c, 1 - 0.1 / 3) for c in ([-20] * 3, [-3, -10, -13], [-20] * 3)]
    found = judged(store, "AFT-C6", gaps(at_short_plateau=40, at_long_plateau=60))
    assert {e.part: e.value for e in found.effects} == pytest.approx({  # of the last five epochs up to the cut, one is the best
        "equal length": 0.02, "equal epochs after the drop": 0.028})
    assert judged(store, "C7", gaps(at=9, twins_at=0)).why == "the gap of AT on CIFAR-10 is 0.9 points: no overfitting to reduce"


@pytest.mark.parametrize(("name", "train", "verdict"), [
    ("twins_at", (2.0, 2.0, 1.0), REPRODUCED), ("twins_at", (2.0, 2.001, 1.0), PARTLY), ("at", (2.0, 3.0, 1.0), REPRODUCED),
    ("at_lr", (2.0, 3.0, 1.0), REPRODUCED),
])
def test_rate_needs_a_stable_run(store, name, train, verdict):
    """One epoch of one TWINS run above its first is enough against it; what the baselines do is not asked."""
    levels = {"at": {}, "twins_at": HIGH, "at_lr": {}}
    found = judged(store, "C5", levels | {name: lambda d, seed: levels[name] | ({"train": train} if seed == 1 else {})})
    assert found.verdict == verdict and found.why.endswith("stable: yes" if verdict == REPRODUCED else "stable: no")


def test_rate_where_a_run_diverged(store):
    """A TWINS run without a result is a loss of stability, also where too few runs are left to compare."""
    jobs = fill(store, LEDGER["C5"], {"at": {}, "twins_at": HIGH, "at_lr": {}})
    for lost, verdict in ((("twins_at", "cifar10", 3), PARTLY), (("twins_at", "caltech64", 0), PARTLY),
                          (("at", "cifar10", 3), REPRODUCED), (("at_lr", "caltech64", 0), REPRODUCED)):
        found = ledger.judge(LEDGER["C5"], store, [*jobs, diverge(store, *lost)])
        assert found.verdict == verdict and {e.dataset for e in found.effects} == {"cifar10"}, lost
    found = ledger.judge(LEDGER["C5"], store, [*(j for j in jobs if j.spec.seed < 2), diverge(store, "twins_at", "cifar10", 3)])
    assert (found.verdict, found.why) == (NOT_TESTED, "3 seeds of all that is compared are needed on 1 data set, finished of all "
                                          "of it: 2 on CIFAR-10; diverged: TWINS-AT on CIFAR-10")


def test_epochs_of_escape(store):
    """On every data set; the network before training and epochs after the fifth are not looked at."""
    others = {"at": {}, "at_lr": {"losses": [9.0] * 5}}
    twins = dict(cifar10={"losses": wins(5)}, caltech64={"losses": wins(3)})
    found = judged(store, "C6", others | {"twins_at": twins}, TWO)
    assert found.verdict == INCONCLUSIVE and "in 3 of 6 runs; " in found.why and found.why.endswith("in 6 of 6 runs")
    for k, end, verdict in ((4, 20.0, REPRODUCED), (3, 0.0, INCONCLUSIVE)):
        jobs = fill(store, LEDGER["C6"], others | {"twins_at": {"losses": wins(k), "ends": (end, end)}})
        found = ledger.judge(LEDGER["C6"], store, jobs)
        assert found.verdict == verdict and found.effects[0].value == pytest.approx(-0.1 * k)
    four = dataclasses.replace(LEDGER["C6"], id="X1", rule=dataclasses.replace(LEDGER["C6"].rule, epochs=4))
    assert ledger.judge(four, store, fill(store, four, others | {"twins_at": {"losses": wins(3)}})).verdict == REPRODUCED
    found = judged(store, "C6", others | {"twins_at": {"losses": wins(4), "epochs": [0, 1, 2, 3, 4, 10]}})
    assert (found.verdict, found.detail) == (NOT_TESTED, ())


def test_plateaus_of_other_lengths_are_not_compared(store):
    """A run that trains in all for longer is not one with a longer plateau only."""
    jobs = [j for name, epochs in (("at_long_plateau", 12), ("at_short_plateau", 10))
            for j in fill(store, LEDGER["AFT-C6"], {name: {"gap": 50}}, epochs=epochs)]
    assert ledger.judge(LEDGER["AFT-C6"], store, jobs).why == "the runs that are compared differ in their length"


# -- controls -----------------------------------------------------------------------------------------------------------
LESS, AS_MUCH = {"gap": 20}, {"gap": 50}
DOUBT = "explanation not supported: no clear difference in TWINS-AT - AT, lr × (1 + λ)"
LACK = "controls without enough runs: TWINS-AT - AT, lr × (1 + λ)"


@pytest.mark.parametrize(("fast", "remark"), [
    (AS_MUCH, "the difference stands against all controls"), (LESS, DOUBT), ({"gap": 10}, DOUBT), ({"gap": 23}, DOUBT),
    (lambda d, seed: AS_MUCH if seed < 2 else None, LACK), (dict(cifar10=AS_MUCH, caltech64=LESS), DOUBT),
    (dict(cifar10=AS_MUCH, caltech64=None), LACK), (dict(cifar10=LESS, caltech64=None), DOUBT),
], ids=["stands", "gone", "turned", "not clear", "two seeds", "gone on one", "runs on one", "gone on one, no others"])
def test_controls(store, fast, remark):
    """A difference that AT with the higher rate shows as well is not explained by TWINS."""
    found = judged(store, "C7", {"at": AS_MUCH, "twins_at": LESS, "at_lr": fast}, TWO)
    assert (found.verdict, found.remark) == (REPRODUCED, remark) and {e.pair for e in found.effects} == {("twins_at", "at")}
    found = judged(store, "C7", {"at": AS_MUCH, "twins_at": {"gap": 48}, "at_lr": fast}, TWO)
    assert (found.verdict, found.remark) == (NOT, "")


# -- too little to judge ------------------------------------------------------------------------------------------------
CLEAR = {
    "C5": {"at": {}, "at_lr": {}, "twins_at": HIGH}, "C6": {"at": {}, "at_lr": {}, "twins_at": {"losses": wins(5)}},
    "C7": {"at": AS_MUCH, "twins_at": LESS},
    "AFT-C3": {"at": AS_MUCH, "at_cosine": AS_MUCH, "at_cyclic": AS_MUCH, "at_slow_fast": LESS},
    "AFT-C5": {"at_random": {"gap": 80}}, "AFT-C6": {"at_long_plateau": AS_MUCH, "at_short_plateau": LESS},
}
MEASURED = {"C5": "w_norm", "C6": "train_loss"}  # of the others robust accuracies


@pytest.mark.parametrize("name", OURS)
def test_clear_runs(store, name):
    """Each claim is reproduced by runs made for it, which all are its runs; too few or other ones are no verdict."""
    claim = LEDGER[name]
    jobs = fill(store, claim, CLEAR[name])
    found = ledger.judge(claim, store, jobs)
    assert (found.verdict, found.not_counted) == (REPRODUCED, 0) and found.runs == tuple(sorted(j.spec.hash for j in jobs))
    last, other = [*CLEAR[name]][-1], dataclasses.replace(claim, rule=dataclasses.replace(claim.rule, datasets=("cub64",)))
    for one, some, there in (
            (claim, [j for j in jobs if j.spec.seed < 2], "2 on CIFAR-10"), (other, jobs, "none"),
            (claim, [j for j in jobs if j.spec.seed < 2 or j.spec.method.name != last], "2 on CIFAR-10"),
            (claim, [dataclasses.replace(j, spec=dataclasses.replace(j.spec, seed=j.spec.seed + 10)) for j in jobs], "none")):
        found = ledger.judge(one, store, some)
        assert (found.verdict, found.effects, found.remark) == (NOT_TESTED, (), "")
        assert found.why == f"3 seeds of all that is compared are needed on 1 data set, finished of all of it: {there}"
    found = judged(store, name, CLEAR[name], gone=MEASURED.get(name, "test_robust"))
    assert (found.verdict, found.detail) == (NOT_TESTED, ()) and "none" in found.why
    if claim.rule.robust:
        found = judged(store, name, CLEAR[name], record={"classes": 2})
        assert found.verdict == NOT_TESTED and found.why.startswith("near chance: CIFAR-10; ") and found.flagged


def test_number_of_data_sets(store):
    """All of the compared methods on as many data sets as the rule asks for, what each has is counted."""
    claim = dataclasses.replace(LEDGER["C5"], rule=dataclasses.replace(LEDGER["C5"].rule, min_datasets=2))
    levels = CLEAR["C5"] | {"at_lr": lambda d, seed: {} if d == "cifar10" or seed < 1 else None}
    jobs = fill(store, claim, levels, TWO)
    found = ledger.judge(claim, store, jobs)
    assert (found.verdict, found.effects) == (NOT_TESTED, ()) and {e.dataset for e in found.detail} == set(TWO)
    assert found.why.endswith("needed on 2 data sets, finished of all of it: 3 on CIFAR-10, 1 on Caltech-101")
    jobs = fill(store, LEDGER["C5"], levels, TWO)
    found = ledger.judge(LEDGER["C5"], store, jobs)
    assert {e.dataset for e in found.effects} == {"cifar10"} and {e.dataset for e in found.detail} == set(TWO)


@pytest.mark.parametrize(("changes", "level", "counts"), [
    ({"attack": AttackSpec(eps=8 / 255 * (1 + 1e-9))}, {}, True), ({"attack": AttackSpec(eps=4 / 255)}, {}, False),
    ({"attack": AttackSpec(threat="l2")}, {}, False), ({}, {"images": N - 1}, False), ({}, {"images": N + 1}, True),
], ids=["rounding", "other radius", "other norm", "too few images", "more images"])
def test_robust_at_the_rules_radius_and_images(store, changes, level, counts):
    """Gaps at another radius or norm, or on fewer images than the rule asks for, are not looked at."""
    found = judged(store, "C7", {name: gap | level for name, gap in CLEAR["C7"].items()}, **changes)
    assert (found.verdict == REPRODUCED) == counts and bool(found.detail) == counts
