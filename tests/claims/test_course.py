"""Verdicts on courses: from made-up runs against the words of the rules, which runs count, what is written and printed.

Runs of `fill` are tiny: gaps are whole images of N, rates and losses single numbers, so intervals can be had by hand.
"""

import dataclasses
import json
import math
import statistics
from itertools import product

import numpy as np
import pytest
from scipy import stats as reference

from tests.store_made import finish
from twinslib.claims import course, ledger
from twinslib.claims.effects import Effect
from twinslib.claims.verdict import INCONCLUSIVE, NOT, NOT_TESTED, PARTLY, REPRODUCED
from twinslib.specs.jobs import Job
from twinslib.specs.labels import dataset_label
from twinslib.specs.method import method
from twinslib.specs.run import AttackSpec, DataSpec, FollowSpec, ModelSpec, OptimSpec, RunSpec
from twinslib.store.store import Store
from twinslib.studies import rules
from twinslib.studies.rules import Bound, Robust, Rule

N = 1000
T2 = 4.302653  # 97.5 % quantile of Student's t with two degrees of freedom
PLATEAUS = {"at_long_plateau": (0.6,), "at_short_plateau": (0.2,)}  # 4 and 8 of 10 epochs after the drop
FOLLOW = FollowSpec(record_every=5, train_images=2, test_images=N, dense=5, every=5)
EPOCHS = [0, 1, 2, 3, 4, 5, 10]
LEDGER = {claim.id: claim for claim in rules.claims()}
OURS = [name for name, claim in LEDGER.items() if claim.rule.measure in course.MEASURES]
TWO = ("cifar10", "caltech64")


def spec(name, dataset="cifar10", seed=0, follow=FOLLOW, attack=None):
    return RunSpec(data=DataSpec(name=dataset, val_images=10), model=ModelSpec(arch="tiny_resnet"), method=method(name),
                   optim=OptimSpec(epochs=10, milestones=PLATEAUS.get(name, (0.5,))), follow=follow,
                   attack=attack or AttackSpec(), seed=seed)


def made(gap=0, rate=1.0, angle=1.0, losses=(1.0,) * 5, ends=(9.0, 0.1), train=(2.0, 1.0), images=N,
         epochs=EPOCHS):
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


def followed(store, s, stamps, arrays, rows, **record):
    finish(store, s, course=arrays, stamps=stamps, epochs=rows, train_images=100, **record)
    return Job("followed", s, ())


def fill(store, claim, levels, datasets=("cifar10",), seeds=(0, 1, 2), stamps=..., **changes):
    """Finished runs: levels[method] are arguments of `made`, or data set, seed -> arguments, None where none is. Returns jobs."""
    stamps = {claim.id: claim.rule.stamp} if stamps is ... else stamps
    jobs = []
    for dataset, name, seed in product(datasets, levels, seeds):
        level = levels[name](dataset, seed) if callable(levels[name]) else levels[name]
        if level is not None:
            jobs.append(followed(store, spec(name, dataset, seed, **changes), stamps, *made(**level)))
    return jobs


def diverge(store, *keys):
    """Leave what a training leaves that ended without a result."""
    s = spec(*keys)
    (store.root / "provenance").mkdir(exist_ok=True)
    entry = {"seconds": 1.0, "unfinished": True, "diverged": "loss is nan", "rules": rules.stamps()}
    (store.root / "provenance" / f"{s.hash}.json").write_text(json.dumps({"train": entry}))
    return Job("followed", s, ())


@pytest.fixture
def store(tmp_path):
    return Store("small", root=tmp_path)


def crossed(counts, level=0.95):
    """Mean and interval where counts[seed] images of N lose (or, below 0, win) one each, nested from the first image on."""
    values = [[math.copysign(1, c) * (i < abs(c)) for i in range(N)] for c in counts]
    by_seed = [c / N for c in counts]
    by_image = [statistics.fmean(column) for column in zip(*values, strict=True)]
    square = reference.norm.ppf((1 + level) / 2) ** 2 * statistics.variance(by_image) / N
    if len(counts) > 1:
        assert len(counts) == 3
        square += reference.t.ppf((1 + level) / 2, 2) ** 2 * statistics.variance(by_seed) / 3
    mean = statistics.fmean(by_seed)
    return mean, mean - math.sqrt(square), mean + math.sqrt(square)


def by_seed(**values):
    """A level of `fill` whose arguments are lists by seed."""
    return lambda dataset, seed: {key: value[seed] for key, value in values.items()}


def by_dataset(**levels):
    return lambda dataset, seed: levels[dataset]


# -- rates --------------------------------------------------------------------------------------------------------------
HIGH = {"rate": 2.0, "angle": 3.0}


@pytest.mark.parametrize(("twins", "fast", "verdict"), [
    (HIGH, {"rate": 1.5, "angle": 1.5}, REPRODUCED),
    (HIGH, {"rate": 2.5, "angle": 1.5}, REPRODUCED),  # lr/||w||^2 of AT with the higher learning rate is not asked for
    (HIGH, {"rate": 1.5, "angle": 3.0}, PARTLY),  # equal is not above
    (HIGH, {"rate": 3.0, "angle": 4.0}, PARTLY),
    ({"rate": 0.95, "angle": 3.0}, {"rate": 0.5, "angle": 1.5}, PARTLY),
    ({"rate": 0.85, "angle": 3.0}, {"rate": 0.5, "angle": 1.5}, NOT),  # lower by more than 10 %
    ({"rate": 1.0, "angle": 1.1}, {"rate": 0.5, "angle": 1.0}, PARTLY),
    ({"rate": 2.0, "angle": 1.0}, {"rate": 1.5, "angle": 0.5}, NOT),
    ({"rate": 2.0, "angle": 0.9}, {"rate": 1.5, "angle": 0.5}, NOT),
    (by_seed(rate=[2.0] * 3, angle=[3.0, 3.0, 1.4]), {"rate": 1.5, "angle": 1.5}, INCONCLUSIVE),  # the interval is wide
    (by_dataset(cifar10=HIGH, caltech64={"rate": 1.4, "angle": 1.5}), {"rate": 1.5, "angle": 1.5}, PARTLY),  # one data set
    (by_dataset(cifar10=HIGH, caltech64={"rate": 2.0, "angle": 0.9}), {"rate": 1.5, "angle": 0.5}, NOT),
])
def test_rate(store, twins, fast, verdict):
    """Both ratios over AT and over AT with the higher rate, in every seed and on every data set; the angle over AT for partly."""
    claim = LEDGER["C5"]
    found = ledger.judge(claim, store, fill(store, claim, {"at": {}, "twins_at": twins, "at_lr": fast}, TWO))
    assert found.verdict == verdict and found.why.endswith("; stable: yes") and len(found.runs) == 18


def test_rate_effects_by_hand(store):
    """Geometric means over the seeds with Student's interval of the logarithms, by data set, pair and metric."""
    claim = LEDGER["C5"]
    twins, fast = {"rate": [2.0, 3.0, 4.5], "angle": [1.5] * 3}, {"rate": 0.5, "angle": 2.0}
    found = ledger.judge(claim, store, fill(store, claim, {"at": {}, "twins_at": by_seed(**twins), "at_lr": fast}))
    half = reference.t.ppf(1 - 0.05 / 3, 2) * math.log(1.5) / math.sqrt(3)  # three intervals decide
    expected = {("at", "lr_over_w2"): (3, 3 / math.exp(half), 3 * math.exp(half)), ("at", "angle"): (1.5, 1.5, 1.5),
                ("at_lr", "lr_over_w2"): (6, 6 / math.exp(half), 6 * math.exp(half)), ("at_lr", "angle"): (0.75,) * 3}
    assert {(e.baseline, e.metric): (e.value, e.low, e.high) for e in found.effects} == {
        key: pytest.approx(value, rel=1e-5) for key, value in expected.items()}
    assert {(e.method, e.dataset, e.seeds, e.unit, e.attack) for e in found.effects} == {
        ("twins_at", "cifar10", 3, "times", "none")} and found.detail == found.effects
    assert found.why == ("of 3 intervals 1 as asked, 1 without the claimed effect; "
                         "angle per step over AT above 1 in every seed: yes; angle per step over AT, lr × (1 + λ) above 1 in "
                         "every seed: no; stable: yes")


@pytest.mark.parametrize(("name", "train", "verdict"), [
    ("twins_at", (2.0, 2.0, 1.0), REPRODUCED), ("twins_at", (2.0, 2.001, 1.0), PARTLY), ("at", (2.0, 3.0, 1.0), REPRODUCED),
    ("at_lr", (2.0, 3.0, 1.0), REPRODUCED), ("twins_at", (2.0, math.nan), PARTLY),
])
def test_rate_needs_a_stable_run(store, name, train, verdict):
    """One epoch of one TWINS run above its first is enough against it; what the baselines do is not asked."""
    claim, levels = LEDGER["C5"], {"at": {}, "twins_at": HIGH, "at_lr": {}}
    jobs = fill(store, claim, levels | {name: lambda d, seed: levels[name] | ({"train": train} if seed == 1 else {})})
    found = ledger.judge(claim, store, jobs)
    assert found.verdict == verdict and found.why.endswith("stable: yes" if verdict == REPRODUCED else "stable: no")


@pytest.mark.parametrize(("lost", "verdict"), [
    (("twins_at", "cifar10", 3), PARTLY), (("twins_at", "caltech64", 0), PARTLY), (("at", "cifar10", 3), REPRODUCED),
    (("at_lr", "caltech64", 0), REPRODUCED),
], ids=["a further seed", "another data set", "of AT", "of AT elsewhere"])
def test_rate_where_a_run_diverged(store, lost, verdict):
    """A TWINS run without a result is a loss of stability, also where too few runs are left to compare."""
    claim = LEDGER["C5"]
    jobs = fill(store, claim, {"at": {}, "twins_at": HIGH, "at_lr": {}})
    found = ledger.judge(claim, store, [*jobs, diverge(store, *lost)])
    assert found.verdict == verdict and {e.dataset for e in found.effects} == {"cifar10"}


def test_a_diverged_run_is_named_where_nothing_is_judged(store):
    """Two seeds and one that diverged are too few, and the reason says so."""
    claim = LEDGER["C5"]
    jobs = fill(store, claim, {"at": {}, "twins_at": HIGH, "at_lr": {}}, seeds=(0, 1))
    found = ledger.judge(claim, store, [*jobs, diverge(store, "twins_at", "cifar10", 2)])
    assert (found.verdict, found.why) == (NOT_TESTED, "3 seeds of all that is compared are needed on 1 data set, finished of all "
                                          "of it: 2 on CIFAR-10; diverged: TWINS-AT on CIFAR-10")


# -- early losses -------------------------------------------------------------------------------------------------------
def wins(k, than=1.0):
    """Losses half a nat below `than` in the first k of five epochs, equal to it in the others."""
    return [than - 0.5] * k + [than] * (5 - k)


@pytest.mark.parametrize(("against_at", "against_fast", "verdict"), [
    ([5, 5, 5], [5, 5, 5], REPRODUCED), ([4, 4, 4], [4, 5, 4], REPRODUCED),
    ([4, 5, 5], [5, 3, 5], PARTLY),  # one seed in three of five epochs
    ([5, 5, 5], [0, 0, 0], PARTLY),
    ([5, 5, 3], [5, 5, 5], INCONCLUSIVE),  # the interval is below 0, one seed is not in four epochs
    ([0, 0, 0], [0, 0, 0], NOT),  # equal is not below
])
def test_escape(store, against_at, against_fast, verdict):
    """Below AT and below AT with the higher rate in at least four of five epochs of every seed; below AT alone for partly."""
    claim, twins = LEDGER["C6"], {"losses": [1.0] * 5}
    levels = {"twins_at": twins, "at": lambda d, s: {"losses": wins(5 - against_at[s], than=1.5)},
              "at_lr": lambda d, s: {"losses": wins(5 - against_fast[s], than=1.5)}}
    found = ledger.judge(claim, store, fill(store, claim, levels))
    assert found.verdict == verdict
    good = [sum(k >= 4 for k in counts) for counts in (against_at, against_fast)]
    assert found.why.endswith("; ".join(f"TWINS-AT - {name}: lower in at least 4 of 5 epochs in {k} of 3 runs"
                                        for name, k in zip(("AT", "AT, lr × (1 + λ)"), good, strict=True)))
    means = [[-0.5 * k / 5 for k in counts] for counts in (against_at, against_fast)]
    for effect, mean in zip(found.effects, means, strict=True):
        half = T2 * statistics.stdev(mean) / math.sqrt(3)
        center = statistics.fmean(mean)
        assert (effect.value, effect.low, effect.high) == pytest.approx((center, center - half, center + half), abs=1e-6)
        assert (effect.unit, effect.metric, effect.images, effect.seeds) == ("nats", "loss", 2, 3)


def test_escape_on_every_data_set(store):
    """One seed of one data set that stays behind turns the verdict."""
    claim = LEDGER["C6"]
    twins = by_dataset(cifar10={"losses": wins(5)}, caltech64={"losses": wins(3)})
    found = ledger.judge(claim, store, fill(store, claim, {"twins_at": twins, "at": {}, "at_lr": {"losses": [9.0] * 5}}, TWO))
    assert found.verdict == INCONCLUSIVE and "in 3 of 6 runs; " in found.why and found.why.endswith("in 6 of 6 runs")


def test_epochs_of_escape(store):
    """The network before training and epochs after the fifth are not looked at; a run without one of the five does not count."""
    claim, others = LEDGER["C6"], {"at": {}, "at_lr": {}}
    for k, end, verdict in ((4, 20.0, REPRODUCED), (3, 0.0, INCONCLUSIVE)):
        jobs = fill(store, claim, others | {"twins_at": {"losses": wins(k), "ends": (end, end)}})
        found = ledger.judge(claim, store, jobs)
        assert found.verdict == verdict and found.effects[0].value == pytest.approx(-0.1 * k)
    short = {"losses": wins(4), "epochs": [0, 1, 2, 3, 4, 10]}
    found = ledger.judge(claim, store, fill(store, claim, others | {"twins_at": short}))
    assert (found.verdict, found.detail) == (NOT_TESTED, ())


# -- gaps ---------------------------------------------------------------------------------------------------------------
def words_of_less(own, first, others, margin=0.01):
    """No verdict where the baseline's own gap is under the margin. Reproduced: all intervals below 0. Partly, with several
    baselines: the first one is, and all lie below the margin. Not: one lies above minus the margin, and not below 0."""
    if min(own) < margin:
        return NOT_TESTED
    if all(high < 0 for _, _, high in (*first, *others)):
        return REPRODUCED
    if others and all(high < 0 for *_, high in first) and all(high < margin for *_, high in others):
        return PARTLY
    return NOT if any(low > -margin and not high < 0 for _, low, high in (*first, *others)) else INCONCLUSIVE


@pytest.mark.parametrize(("at", "twins", "verdict"), [
    ([50], [46], REPRODUCED),  # four images in a thousand are just clear
    ([50], [47], NOT), ([50], [50], NOT), ([50], [60], NOT), ([10], [5], REPRODUCED), ([9], [-100], NOT_TESTED),
    ([50, 50], [40, 40], REPRODUCED), ([50, 50], [40, 47], NOT), ([50, 50], [40, 50], NOT), ([50, 9], [10, 0], NOT_TESTED),
    ([-20], [-50], NOT_TESTED),
])
def test_less_overfitting(store, at, twins, verdict):
    """Each data set's interval by hand, with the same gap in every seed."""
    claim, datasets = LEDGER["C7"], TWO[:len(at)]
    levels = {name: by_dataset(**{d: {"gap": g} for d, g in zip(datasets, gaps, strict=True)})
              for name, gaps in (("at", at), ("twins_at", twins))}
    found = ledger.judge(claim, store, fill(store, claim, levels, datasets))
    by_hand = [crossed([t - a] * 3) for a, t in zip(at, twins, strict=True)]
    assert found.verdict == verdict == words_of_less([a / N for a in at], by_hand, [])
    for effect, expected in zip(found.effects, by_hand, strict=True):
        if min(twins) >= 0 and min(at) >= 0:  # nested, as `crossed` has it
            assert (effect.value, effect.low, effect.high) == pytest.approx(expected, abs=1e-6)
        assert (effect.metric, effect.attack, effect.unit, effect.images, effect.seeds) == ("gap", "pgd10", "points", N, 3)
    if verdict == NOT_TESTED:
        (first,) = [d for d, a in zip(datasets, at, strict=True) if a < 10]
        assert found.why == f"the gap of AT on {dataset_label(first)} is {min(at) / 10:.1f} points: no overfitting to reduce"
        assert not found.remark


def test_gap_differences_over_seeds(store):
    """Seeds that disagree widen the interval: what is clear in each may not be clear over all."""
    claim = LEDGER["C7"]
    for twins, verdict in (([40, 40, 40], REPRODUCED), ([10, 40, 49], INCONCLUSIVE), ([20, 60, 80], INCONCLUSIVE)):
        found = ledger.judge(claim, store, fill(store, claim, {"at": {"gap": 50}, "twins_at": by_seed(gap=twins)}))
        assert found.verdict == verdict
        if max(twins) <= 50:
            effect, = found.effects
            assert (effect.value, effect.low, effect.high) == pytest.approx(crossed([t - 50 for t in twins]), abs=1e-6)


@pytest.mark.parametrize(("gaps", "verdict"), [
    ({"at": 60, "at_cosine": 60, "at_cyclic": 60, "at_slow_fast": 40}, REPRODUCED),
    ({"at": 43, "at_cosine": 60, "at_cyclic": 60, "at_slow_fast": 40}, NOT),  # not clear against the piecewise schedule
    ({"at": 60, "at_cosine": 43, "at_cyclic": 60, "at_slow_fast": 40}, PARTLY),
    ({"at": 60, "at_cosine": 43, "at_cyclic": 20, "at_slow_fast": 40}, NOT),
    ({"at": 40, "at_cosine": 60, "at_cyclic": 60, "at_slow_fast": 40}, NOT),
    ({"at": 30, "at_cosine": 60, "at_cyclic": 60, "at_slow_fast": 40}, NOT),
    ({"at": 9, "at_cosine": 60, "at_cyclic": 60, "at_slow_fast": 0}, NOT_TESTED),
    ({"at": 60, "at_cosine": 9, "at_cyclic": 9, "at_slow_fast": 0}, REPRODUCED),  # their own gaps are not asked
])
def test_schedules(store, gaps, verdict):
    """Against three schedules: clear against all, or against the piecewise one and not behind the others; each at 96.7 %."""
    claim = LEDGER["AFT-C3"]
    found = ledger.judge(claim, store, fill(store, claim, {name: {"gap": g} for name, g in gaps.items()}))
    first, *others = [crossed([gaps["at_slow_fast"] - gaps[b]] * 3, 1 - 0.1 / 3) for b in ("at", "at_cosine", "at_cyclic")]
    assert found.verdict == verdict == words_of_less([gaps["at"] / N], [first], others)
    assert [e.baseline for e in found.effects] == ["at", "at_cosine", "at_cyclic"] and found.remark == ""
    if verdict in (REPRODUCED, PARTLY, NOT):
        assert found.why.startswith(f"of 3 intervals {sum(high < 0 for *_, high in (first, *others))} as asked")


@pytest.mark.parametrize(("gaps", "verdict"), [
    ([70, 70, 70], REPRODUCED), ([60, 60, 60], PARTLY), ([65, 70, 75], REPRODUCED), ([60, 70, 80], PARTLY),
    ([4, 4, 4], PARTLY), ([3, 3, 3], NOT), ([0, 90, 90], INCONCLUSIVE), ([0, 0, 0], NOT), ([-60, -60, -60], NOT),
])
def test_overfits(store, gaps, verdict):
    """The interval of the gap itself against 5 points, then against 0; other data sets are not asked."""
    claim = LEDGER["AFT-C5"]
    jobs = fill(store, claim, {"at_random": by_seed(gap=gaps)}) + fill(store, claim, {"at_random": {"gap": -50}}, ["cub64"])
    found = ledger.judge(claim, store, jobs)
    expected = crossed(gaps)
    assert found.verdict == verdict
    assert verdict == (REPRODUCED if expected[1] > 0.05 else PARTLY if expected[1] > 0 else NOT if expected[2] < 0.05
                       else INCONCLUSIVE)
    effect, = found.effects
    assert (effect.value, effect.low, effect.high) == pytest.approx(expected, abs=1e-6) and len(found.runs) == 3
    assert str(effect).startswith("AT, random start, gap on CIFAR-10: ")


@pytest.mark.parametrize(("short", "long", "verdict"), [
    (40, 60, REPRODUCED), (40, 40, NOT), (60, 0, NOT), (60, 52, NOT),  # as much of a gap, cut at the same time after the drop
    (40, by_seed(gap=[20, 60, 110]), INCONCLUSIVE),
])
def test_plateau(store, short, long, verdict):
    """Long minus short plateau, at equal length and with the short one cut where it has had as many epochs after its drop."""
    claim = LEDGER["AFT-C6"]
    levels = {"at_short_plateau": {"gap": short}, "at_long_plateau": long if callable(long) else {"gap": long}}
    found = ledger.judge(claim, store, fill(store, claim, levels))
    assert found.verdict == verdict and [e.part for e in found.effects] == ["equal length", "equal epochs after the drop"]
    if not callable(long):  # of the last five epochs up to the cut, one is the best
        assert [e.value for e in found.effects] == pytest.approx([(long - short) / N, (long - 0.8 * short) / N])


def test_plateaus_of_other_lengths_are_not_compared(store, monkeypatch):
    """A run that trains in all for longer is not one with a longer plateau only."""
    claim, jobs = LEDGER["AFT-C6"], []
    for name, epochs in (("at_long_plateau", 12), ("at_short_plateau", 10)):
        for seed in range(3):
            s = dataclasses.replace(spec(name, seed=seed), optim=OptimSpec(epochs=epochs, milestones=(0.5,)))
            jobs.append(followed(store, s, {claim.id: claim.rule.stamp}, *made(gap=50)))
    assert ledger.judge(claim, store, jobs).verdict == NOT_TESTED


def test_gaps_that_end_at_chance_are_no_gaps(store):
    """Where robust accuracy is near that of guessing at either end nothing is judged, and the reason says so."""
    for name in ("C7", "AFT-C3", "AFT-C5", "AFT-C6"):
        claim, jobs = LEDGER[name], []
        for (method_name, level), seed in product(CLEAR[name].items(), range(3)):
            jobs.append(followed(store, spec(method_name, seed=seed), {name: claim.rule.stamp}, *made(**level), classes=2))
        found = ledger.judge(claim, store, jobs)
        assert found.verdict == NOT_TESTED and found.why.startswith("near chance: CIFAR-10; ") and found.flagged


# -- controls -----------------------------------------------------------------------------------------------------------
LESS, AS_MUCH = {"gap": 20}, {"gap": 50}
DOUBT = "explanation not supported: no clear difference in TWINS-AT - AT, lr × (1 + λ)"
LACK = "controls without enough runs: TWINS-AT - AT, lr × (1 + λ)"


@pytest.mark.parametrize(("fast", "remark"), [
    (AS_MUCH, "the difference stands against all controls"), (LESS, DOUBT), ({"gap": 10}, DOUBT), ({"gap": 23}, DOUBT),
    (lambda d, seed: AS_MUCH if seed < 2 else None, LACK), (lambda d, seed: None, LACK),
    (by_dataset(cifar10=AS_MUCH, caltech64=LESS), DOUBT), (by_dataset(cifar10=AS_MUCH, caltech64=None), LACK),
    (by_dataset(cifar10=LESS, caltech64=None), DOUBT),
], ids=["stands", "gone", "turned", "not clear", "two seeds", "no runs", "gone on one", "runs on one", "gone on one, no others"])
def test_controls(store, fast, remark):
    """A difference that AT with the higher rate shows as well is not explained by TWINS; on every data set that is judged."""
    claim = LEDGER["C7"]
    found = ledger.judge(claim, store, fill(store, claim, {"at": AS_MUCH, "twins_at": LESS, "at_lr": fast}, TWO))
    assert (found.verdict, found.remark) == (REPRODUCED, remark)
    assert {(e.method, e.baseline) for e in found.effects} == {("twins_at", "at")}
    assert {(e.method, e.baseline) for e in found.detail} >= {("twins_at", "at")}


@pytest.mark.parametrize(("twins", "verdict", "remark"), [
    ({"gap": 48}, NOT, ""), ({"gap": 40}, REPRODUCED, "the difference stands against all controls")])
def test_nothing_is_explained_that_is_not_there(store, twins, verdict, remark):
    """Controls are read where the claim is reproduced, if only partly."""
    claim = LEDGER["C7"]
    found = ledger.judge(claim, store, fill(store, claim, {"at": AS_MUCH, "twins_at": twins, "at_lr": AS_MUCH}))
    assert (found.verdict, found.remark) == (verdict, remark)


# -- too little to judge ------------------------------------------------------------------------------------------------
CLEAR = {
    "C5": {"at": {}, "at_lr": {}, "twins_at": HIGH}, "C6": {"at": {}, "at_lr": {}, "twins_at": {"losses": wins(5)}},
    "C7": {"at": AS_MUCH, "twins_at": LESS},
    "AFT-C3": {"at": AS_MUCH, "at_cosine": AS_MUCH, "at_cyclic": AS_MUCH, "at_slow_fast": LESS},
    "AFT-C5": {"at_random": {"gap": 80}}, "AFT-C6": {"at_long_plateau": AS_MUCH, "at_short_plateau": LESS},
}
TURNED = {
    "C5": {"twins_at": {"rate": 0.5, "angle": 0.5}}, "C6": {"twins_at": {"losses": [2.0] * 5}}, "C7": {"twins_at": {"gap": 80}},
    "AFT-C3": {"at_slow_fast": {"gap": 80}}, "AFT-C5": {"at_random": {"gap": -80}}, "AFT-C6": {"at_short_plateau": {"gap": 80}},
}


@pytest.mark.parametrize("name", OURS)
def test_clear_runs(store, name):
    """Each claim is reproduced by runs made for it and not by runs made against it; all of them are its runs."""
    claim = LEDGER[name]
    jobs = fill(store, claim, CLEAR[name])
    found = ledger.judge(claim, store, jobs)
    assert (found.verdict, found.not_counted) == (REPRODUCED, 0) and found.runs == tuple(sorted(j.spec.hash for j in jobs))
    assert ledger.judge(claim, store, fill(store, claim, CLEAR[name] | TURNED[name])).verdict == NOT


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("lack", ["seeds", "one seed", "runs", "data set"])
def test_too_little_is_not_tested(store, name, lack):
    """Two seeds, two of one method alone, runs that are not finished, or another data set than the rule's: no verdict."""
    claim, levels = LEDGER[name], dict(CLEAR[name])
    if lack == "data set":
        claim = dataclasses.replace(claim, rule=dataclasses.replace(claim.rule, datasets=("cub64",)))
    if lack == "one seed":
        last, level = levels.popitem()
        levels[last] = lambda d, seed: level if seed < 2 else None
    jobs = fill(store, claim, levels, seeds=(0, 1) if lack == "seeds" else (0, 1, 2))
    if lack == "runs":
        jobs = [dataclasses.replace(j, spec=dataclasses.replace(j.spec, seed=j.spec.seed + 10)) for j in jobs]
    found = ledger.judge(claim, store, jobs)
    there = "none" if lack in ("runs", "data set") else "2 on CIFAR-10"
    assert (found.verdict, found.effects, found.remark) == (NOT_TESTED, (), "")
    assert found.why == f"3 seeds of all that is compared are needed on 1 data set, finished of all of it: {there}"


def test_number_of_data_sets(store):
    """All of the compared methods on as many data sets as the rule asks for; what each has is counted."""
    claim = dataclasses.replace(LEDGER["C5"], rule=dataclasses.replace(LEDGER["C5"].rule, min_datasets=2))
    levels = CLEAR["C5"] | {"at_lr": lambda d, seed: {} if d == "cifar10" or seed < 1 else None}
    found = ledger.judge(claim, store, fill(store, claim, levels, TWO))
    assert (found.verdict, found.why) == (NOT_TESTED, "3 seeds of all that is compared are needed on 2 data sets, finished of "
                                          "all of it: 3 on CIFAR-10, 1 on Caltech-101")
    assert found.effects == () and {e.dataset for e in found.detail} == set(TWO)
    assert ledger.judge(claim, store, fill(store, claim, CLEAR["C5"], TWO)).verdict == REPRODUCED


def test_a_data_set_with_too_few_seeds_does_not_decide(store):
    """Only whole data sets are judged; the others are detail."""
    claim = LEDGER["C7"]
    good = fill(store, claim, CLEAR["C7"])
    more = fill(store, claim, {"at": {"gap": 5}, "twins_at": {"gap": 90}}, ["cub64"], (0, 1))
    found = ledger.judge(claim, store, good + more)
    assert found.verdict == REPRODUCED and [e.dataset for e in found.effects] == ["cifar10"]
    assert [e.dataset for e in found.detail] == ["cifar10", "cub64"]


@pytest.mark.parametrize(("changes", "level", "counts"), [
    ({}, {}, True), ({"attack": AttackSpec(eps=8 / 255 * (1 + 1e-9))}, {}, True),
    ({"attack": AttackSpec(eps=4 / 255)}, {}, False), ({"attack": AttackSpec(threat="l2")}, {}, False),
    ({}, {"images": N - 1}, False), ({}, {"images": N + 1}, True),
], ids=["as asked", "rounding", "other radius", "other norm", "too few images", "more images"])
def test_robust_at_the_rules_radius_and_images(store, changes, level, counts):
    """Gaps at another radius or norm, or on fewer images than the rule asks for, are not looked at."""
    claim = LEDGER["C7"]
    levels = {name: CLEAR["C7"][name] | level for name in CLEAR["C7"]}
    found = ledger.judge(claim, store, fill(store, claim, levels, **changes))
    assert (found.verdict == REPRODUCED) == counts and bool(found.detail) == counts


@pytest.mark.parametrize(("name", "gone"), [("C5", "w_norm"), ("C6", "train_loss"), ("C7", "test_robust")])
def test_runs_without_the_measurement_do_not_count(store, name, gone):
    """A run that did not record what the rule reads is as good as none."""
    claim, jobs = LEDGER[name], []
    for method_name, seed in product(CLEAR[name], range(3)):
        arrays, rows = made(**CLEAR[name][method_name])
        del arrays[gone]
        jobs.append(followed(store, spec(method_name, "cifar10", seed), {claim.id: claim.rule.stamp}, arrays, rows))
    found = ledger.judge(claim, store, jobs)
    assert (found.verdict, found.detail) == (NOT_TESTED, ()) and "none" in found.why


# -- table and file -----------------------------------------------------------------------------------------------------
def stamped(store, names=tuple(CLEAR), seeds=(0, 1, 2)):
    """Runs under all rules; a later claim's level of a method adds to that of an earlier one."""
    levels = {}
    for name in names:
        for method_name, level in CLEAR[name].items():
            levels[method_name] = levels.get(method_name, {}) | level
    return fill(store, LEDGER["C5"], levels, seeds=seeds, stamps=rules.stamps())


def test_one_seed_in_table_and_file(store):
    """Of ratios and losses one seed gives no interval, of gaps one over images; the file stays strict JSON."""
    jobs = stamped(store, ("C5", "C6", "C7"), seeds=[0])
    verdicts = [ledger.judge(LEDGER[name], store, jobs) for name in ("C5", "C6", "C7")]
    rate, loss, gap = ledger.to_table(verdicts)["effect"]
    assert rate.startswith("TWINS-AT / AT, lr/||w||² on CIFAR-10: 2.00; ") and "nan" not in rate + loss + gap
    assert loss.endswith("on CIFAR-10: -0.50 nats") and gap == "TWINS-AT - AT, gap on CIFAR-10: -3.0 [-4.1, -1.9]"
    ledger.write(store, verdicts)
    stored = json.loads((store.root / "claims.json").read_text(), parse_constant=pytest.fail)
    assert {c["verdict"] for c in stored.values()} == {NOT_TESTED}
    first = stored["C5"]["detail"][0]
    assert first["value"] == pytest.approx(2) and (first["low"], first["high"], first["unit"]) == (None, None, "times")
    assert stored["C6"]["detail"][0]["unit"] == "nats" and stored["C7"]["detail"][0]["unit"] == "points"
    assert stored["C7"]["detail"][0]["low"] == pytest.approx(crossed([-30])[1], abs=1e-6)


def effect(*pair, metric="gap", unit="points", value=0.0123, low=-0.02, high=0.031, attack="pgd10", dataset="cub64"):
    return Effect(*pair, metric, attack, dataset, N, 3, value, low, high, unit=unit)


@pytest.mark.parametrize(("made", "text"), [
    (effect("twins_at", "at"), "TWINS-AT - AT, gap on CUB-200 (2010): +1.2 [-2.0, +3.1]"),
    (effect("at", "at"), "AT, gap on CUB-200 (2010): +1.2 [-2.0, +3.1]"),
    (effect("twins_at", "at", metric="robust", dataset="mean"), "TWINS-AT - AT, PGD-10: +1.2 [-2.0, +3.1]"),
    (effect("twins_at", "at", metric="clean", attack="none", dataset="mean"), "TWINS-AT - AT, clean: +1.2 [-2.0, +3.1]"),
    (effect("twins_at", "at", metric="angle", unit="times", value=1.2345, low=0.996, high=12),
     "TWINS-AT / AT, angle per step on CUB-200 (2010): 1.23 [1.00, 12.00]"),
    (effect("twins_at", "at", metric="angle", unit="times", value=1.5, low=math.nan, high=math.nan),
     "TWINS-AT / AT, angle per step on CUB-200 (2010): 1.50"),
    (effect("twins_at", "at", metric="loss", unit="nats", value=-0.001, low=-0.5, high=0.499),
     "TWINS-AT - AT, PGD loss on training images on CUB-200 (2010): +0.00 [-0.50, +0.50] nats"),
    (effect("twins_at", "at", metric="loss", unit="nats", value=0.25, low=math.nan, high=math.nan),
     "TWINS-AT - AT, PGD loss on training images on CUB-200 (2010): +0.25 nats"),
])
def test_effect_as_text(made, text):
    """Points with one digit, ratios without a sign, losses in nats, no interval where there is none, no negative zero."""
    assert str(made) == text


def test_rule_of_another_pair(store):
    """The pairs, metrics, epochs and margin are those of the rule, not of the ledger's claims."""
    robust = Robust(threat="linf", eps=8 / 255, min_images=N)
    rule = Rule(version=1, measure="rate", text="words", pairs=(("trades", "at"),), metrics=("angle",), min_seeds=3,
                asked=((Bound(above=1.0, claimed=1.1),),))
    claim = dataclasses.replace(LEDGER["C5"], id="X1", rule=rule)
    found = ledger.judge(claim, store, fill(store, claim, {"at": {}, "trades": {"rate": 2.0, "angle": 2.0}}))
    assert found.verdict == REPRODUCED and [(e.metric, e.value) for e in found.effects] == [("angle", pytest.approx(2.0))]
    rule = dataclasses.replace(rule, measure="escape", metrics=("loss",), epochs=3, lower=True,
                               asked=((Bound(above=0.0, claimed=0.01),),))
    claim = dataclasses.replace(claim, rule=rule)
    for k, verdict in ((2, REPRODUCED), (1, INCONCLUSIVE)):
        jobs = fill(store, claim, {"at": {}, "trades": {"losses": wins(k)}})
        assert ledger.judge(claim, store, jobs).verdict == verdict
    claim = dataclasses.replace(claim, rule=dataclasses.replace(
        rule, measure="overfits", metrics=("gap",), robust=robust, pairs=(("trades", "trades"),), lower=False,
        asked=((Bound(above=0.02, claimed=0.02),),), partly=((Bound(above=0.0),),)))
    for gap, verdict in ((40, REPRODUCED), (25, PARTLY)):
        assert ledger.judge(claim, store, fill(store, claim, {"trades": {"gap": gap}})).verdict == verdict
