"""The ledger: verdicts from made-up masks against the words of the rules, which runs count, what is written and printed.

Masks are built so that differences are whole images: `mask(g)` has g more right than `mask(0)`.
"""

import dataclasses
import json
import math
import os
import re
import statistics
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest

from tests.store_made import finish
from twinslib import __main__ as cli
from twinslib.base import paths, stats
from twinslib.base.files import read_json, write_json
from twinslib.claims import ledger
from twinslib.claims.verdict import INCONCLUSIVE, NOT, NOT_TESTED, PARTLY, REPRODUCED, VERDICTS
from twinslib.evidence import frame, public
from twinslib.evidence import pairs as evidence_pairs
from twinslib.specs import labels as specs_labels
from twinslib.specs.jobs import Job
from twinslib.specs.measure import EvalSpec
from twinslib.specs.method import method
from twinslib.specs.run import DataSpec, FollowSpec, ModelSpec, OptimSpec, RunSpec
from twinslib.store.store import Store
from twinslib.studies import plan as studies_plan
from twinslib.studies import presets, rules
from twinslib.studies.rules import Bound, Earlier, Robust, Rule

N = 1000
CLEAN = EvalSpec(kind="clean", images=N)
PGD = EvalSpec(kind="pgd", images=N, eps=8 / 255)
AUTO = EvalSpec(kind="autoattack", images=N, eps=8 / 255)
PART = EvalSpec(kind="autoattack", images=N, eps=8 / 255, attacks=("apgd-ce", "apgd-t"))
SOURCE = RunSpec(data=DataSpec(name="tinyimagenet32"), model=ModelSpec(arch="tiny_resnet"), method=method("at"),
                 optim=OptimSpec())
DATASETS = ("cifar10", "caltech64", "cub64")
LEDGER = {claim.id: claim for claim in rules.claims()}
FIRST = [name for name, claim in LEDGER.items() if claim.notebook == "01"]  # on accuracies; test_course_claims has the others
JUDGED = [LEDGER[name] for name in FIRST if LEDGER[name].rule.measure != "shown"]
LEAST = 0.02  # effect of the rules of this file
T2 = 4.3026527  # 97.5 % quantile of Student's t with two degrees of freedom


def mask(gain=0, churn=0, images=N):
    """Half of the images and `gain` more, of which `churn` others than `mask(0)` has."""
    out = np.zeros(images, bool)
    out[churn:images // 2 + churn + gain] = True
    return out


def job(dataset="cifar10", name="at", seed=0, evals=(CLEAN, PGD), **more):
    spec = RunSpec(data=DataSpec(name=dataset), model=ModelSpec(arch="tiny_resnet"), method=method(name), optim=OptimSpec(),
                   seed=seed, source=SOURCE)
    return Job("transfer", spec, tuple(evals), **more)


def mask_path(store, job):
    return store.root / "masks" / f"{job.spec.hash}.npz"


def claim_of(rule, name="X1"):
    return dataclasses.replace(LEDGER["C1"], id=name, rule=rule)


def rule_of(measure="gain", **changes):
    """A rule for TWINS-AT against AT on three data sets and seeds, in clean and robust accuracy at 8/255."""
    fields = {"version": 1, "measure": measure, "text": "words", "pairs": (("twins_at", "at"),), "metrics": ("clean", "robust"),
              "robust": Robust(threat="linf", eps=8 / 255, min_images=N), "min_datasets": 3, "min_seeds": 3} | changes
    names = [(m,) for m in fields["metrics"]] if len(fields["pairs"]) == 1 else [(b,) for _, b in fields["pairs"]]
    bounds = tuple(Bound(of=of, above=0.0, claimed=LEAST) for of in names)
    rest = tuple(dataclasses.replace(b, above=-LEAST, reach=0.0, claimed=None) for b in bounds)
    one = tuple(tuple(b if i == j else r for j, (b, r) in enumerate(zip(bounds, rest, strict=True))) for i in range(len(names)))
    return Rule(**{"asked": (bounds,), "partly": one} | fields)


def fill(store, claim, levels, datasets=DATASETS, seeds=(0, 1, 2), stamps=..., evals=(CLEAN, PGD)):
    """Finished runs: levels[method] is the gain of its masks, or dataset, evaluation -> mask. Returns their jobs."""
    stamps = {claim.id: claim.rule.stamp} if stamps is ... else stamps
    jobs = []
    for dataset, name, seed in product(datasets, levels, seeds):
        level = levels[name]
        masks = {e: level(dataset, e) if callable(level) else mask(level, images=e.images) for e in evals}
        jobs.append(job(dataset, name, seed, evals))
        finish(store, jobs[-1].spec, masks, stamps=stamps)
    return jobs


def from_lists(clean, robust, datasets=DATASETS):
    """A level of `fill`: (gain, churn) or gain by data set, for clean and for attacked images."""
    def level(dataset, e):
        found = (clean if e.kind == "clean" else robust)[datasets.index(dataset)]
        return mask(*(found if isinstance(found, tuple) else (found,)), images=e.images)
    return level


@pytest.fixture
def store(tmp_path):
    (tmp_path / "small").mkdir()
    return Store("small", root=tmp_path / "small")


def student(values):
    """Textbook interval of the mean of three values."""
    mean, half = statistics.mean(values), T2 * statistics.stdev(values) / math.sqrt(3)
    return mean, mean - half, mean + half


def not_narrower(interval, parts):
    """The interval, but on each side at least as far from the mean as the root of the parts' summed squared distances over 3."""
    mean, low, high = interval
    return (mean, min(low, mean - math.hypot(*(p.value - p.low for p in parts)) / 3),
            max(high, mean + math.hypot(*(p.high - p.value for p in parts)) / 3))


# -- gain -------------------------------------------------------------------------------------------------------------
def words_of_gain(intervals):
    """Reproduced: both intervals lie above 0. Partly: one does, and the other lies above minus the least effect and reaches 0.
    Not: one lies below the least effect and not above 0."""
    (_, a_low, a_high), (_, b_low, b_high) = intervals
    if a_low > 0 and b_low > 0:
        return REPRODUCED
    if (a_low > 0 and b_low > -LEAST and b_high >= 0) or (b_low > 0 and a_low > -LEAST and a_high >= 0):
        return PARTLY
    return NOT if a_high < LEAST and not a_low > 0 or b_high < LEAST and not b_low > 0 else INCONCLUSIVE


@pytest.mark.parametrize(("clean", "robust", "verdict"), [
    ((20, 22, 24), (10, 11, 12), REPRODUCED),
    ((20, 22, 24), (10, 20, 60), INCONCLUSIVE),  # one above 0, the other may be a loss of more than the least effect
    ((20, 22, 24), (0, 4, 8), PARTLY),
    ((5, 10, 40), (10, 20, 60), INCONCLUSIVE),  # both means above 0, neither interval
    ((20, 22, 24), (-10, 5, -5), NOT),  # the other has no more than 1.7 points
    ((20, 22, 24), (-20, -22, -24), NOT),  # one above, the other below
    ((10, 20, 60), (-5, 0, 5), NOT),
    ((-20, -22, -24), (-20, -22, -24), NOT),
    ((-40, 0, 40), (-40, 0, 40), INCONCLUSIVE),  # nothing is told
])
def test_gain(store, clean, robust, verdict):
    """The mean of three data sets with its interval by hand, each way round; the verdict is that of the rule's words."""
    claim = claim_of(rule_of())
    found = ledger.judge(claim, store, fill(store, claim, {"twins_at": from_lists(clean, robust), "at": 0}))
    by_hand = [not_narrower(student([g / N for g in gains]), [e for e in found.detail if e.metric == metric])
               for gains, metric in ((clean, "clean"), (robust, "robust"))]
    assert found.verdict == verdict == words_of_gain(by_hand)
    for effect, metric, expected in zip(found.effects, ("clean", "robust"), by_hand, strict=True):
        assert (effect.value, effect.low, effect.high) == pytest.approx(expected, abs=1e-8)
        assert (effect.metric, effect.dataset, effect.images, effect.seeds) == (metric, "mean", N, 3)
    assert [round(N * e.value) for e in found.detail] == [*clean, *robust] and len(found.runs) == 18


def test_gain_of_two_pairs(store):
    """With two comparisons in one measure the words are about their two intervals."""
    claim = claim_of(rule_of(pairs=(("twins_at", "two_adaptive"), ("twins_at", "frozen_at")), metrics=("robust",)))
    for frozen, verdict in ((0, REPRODUCED), (40, NOT), (30, PARTLY)):
        found = ledger.judge(claim, store, fill(store, claim, {"twins_at": 30, "two_adaptive": 0, "frozen_at": frozen}))
        assert [(e.baseline, round(e.value, 3)) for e in found.effects] == [("two_adaptive", 0.03),
                                                                            ("frozen_at", (30 - frozen) / N)]
        assert found.verdict == verdict


def test_seeds_are_averaged(store):
    """The value of a data set is the mean over its seeds, whatever one of them says."""
    claim = claim_of(rule_of())
    jobs = [j for seed, gain in enumerate((30, 40, -10))
            for j in fill(store, claim, {"twins_at": gain, "at": 0}, seeds=[seed])]
    found = ledger.judge(claim, store, jobs)
    assert [e.value for e in found.detail] == pytest.approx([0.02] * 6) and {e.seeds for e in found.detail} == {3}
    crossed = stats.crossed_difference(np.stack([mask(g) for g in (30, 40, -10)]), np.stack([mask()] * 3))
    assert all((e.low, e.high, e.p_value) == (crossed.low, crossed.high, crossed.p_value) for e in found.detail)


# -- spread -----------------------------------------------------------------------------------------------------------
FOUR = (*DATASETS, "dogs64")
SURE, UNSURE, LUCKY = (60, 0), (3, 100), (25, 50)  # p about 1e-14, 0.86 and 0.03


def minus(pair):
    return -pair[0], pair[1]


def words_of_spread(clean, robust):
    """Reproduced: both means are above 0 on every data set, and more than half of the data sets have a significant gain in
    clean or robust accuracy. Partly: on more than half of the data sets both means are above 0, one has a significant gain, and
    nothing is significantly below 0. Not: on half or more an interval lies below the least effect. Holm, 5 %."""
    found = [stats.crossed_difference(np.stack([mask(*g)] * 3), np.stack([mask()] * 3)) for g in (*clean, *robust)]
    p = [f.p_value for f in found]
    significant, rest = [False] * len(p), len(p)
    for i in sorted(range(len(p)), key=p.__getitem__):
        if p[i] > 0.05 / rest:
            break
        significant[i], rest = True, rest - 1
    k = len(clean)
    both = sum(c[0] > 0 and r[0] > 0 for c, r in zip(clean, robust, strict=True))
    gains = sum((significant[i] and clean[i][0] > 0) or (significant[k + i] and robust[i][0] > 0) for i in range(k))
    losses = any(s and g[0] < 0 for s, g in zip(significant, (*clean, *robust), strict=True))
    if both == k and gains > k / 2:
        return REPRODUCED
    without = sum(found[i].high < LEAST or found[k + i].high < LEAST for i in range(k))
    return PARTLY if both > k / 2 and gains and not losses else NOT if without >= k / 2 else INCONCLUSIVE


@pytest.mark.parametrize(("clean", "robust", "verdict"), [
    ([SURE, SURE, UNSURE], [SURE, SURE, UNSURE], REPRODUCED),
    ([SURE, UNSURE, UNSURE], [UNSURE, SURE, UNSURE], REPRODUCED),  # in clean here, in robust there
    ([SURE, UNSURE, UNSURE], [SURE, UNSURE, UNSURE], PARTLY),  # all above 0, significant on one of three
    ([SURE, LUCKY, UNSURE], [UNSURE, UNSURE, UNSURE], PARTLY),  # p of 0.03 is not significant among six
    ([SURE, SURE, minus(UNSURE)], [SURE, SURE, SURE], PARTLY),
    ([SURE, SURE, minus(SURE)], [SURE, SURE, SURE], INCONCLUSIVE),  # a significant loss, on one of three
    ([SURE, SURE, minus(LUCKY)], [SURE, SURE, SURE], INCONCLUSIVE),  # significant too: five others are more so
    ([SURE, minus(SURE), minus(SURE)], [SURE, SURE, SURE], NOT),
    ([SURE, minus(UNSURE), UNSURE], [SURE, SURE, minus(UNSURE)], INCONCLUSIVE),  # both above 0 on one of three
    ([UNSURE, UNSURE, UNSURE], [UNSURE, UNSURE, UNSURE], INCONCLUSIVE),  # all above 0, nothing significant
    ([SURE, SURE, UNSURE, UNSURE], [SURE, SURE, UNSURE, UNSURE], PARTLY),  # half is not more than half
    ([SURE, SURE, minus(UNSURE), UNSURE], [SURE, SURE, UNSURE, minus(UNSURE)], INCONCLUSIVE),
    ([SURE, SURE, (0, 50)], [SURE, SURE, SURE], PARTLY),  # 0 is not above 0
])
def test_spread(store, clean, robust, verdict):
    """Each branch of the rule, with Holm's steps made apart from the code."""
    claim, datasets = claim_of(rule_of("spread")), FOUR[:len(clean)]
    levels = {"twins_at": from_lists(clean, robust, datasets), "at": 0}
    found = ledger.judge(claim, store, fill(store, claim, levels, datasets=datasets))
    assert found.verdict == verdict == words_of_spread(clean, robust)
    assert [round(N * e.value) for e in found.detail] == [g for g, _ in (*clean, *robust)]


def test_spread_needs_both_measures_on_a_data_set(store):
    """A data set with clean accuracy alone is no data set on which both means are above 0."""
    claim = claim_of(rule_of("spread"))
    jobs = fill(store, claim, {"twins_at": 60, "at": 0})
    more = fill(store, claim, {"twins_at": 60, "at": 0}, ["dogs64"], evals=[CLEAN])
    assert "above 0 on 3 of 3 data sets" in ledger.judge(claim, store, jobs + more).why
    assert ledger.judge(claim, store, [j for j in jobs if j.spec.data.name != "cub64"] + more).verdict == NOT_TESTED


def test_alpha_of_the_rule(store):
    """The rule's own level decides what is significant."""
    for alpha, verdict in ((0.05, INCONCLUSIVE), (0.2, REPRODUCED)):
        claim = claim_of(rule_of("spread", alpha=alpha))
        levels = {"twins_at": from_lists([LUCKY] * 3, [UNSURE] * 3), "at": 0}
        assert ledger.judge(claim, store, fill(store, claim, levels)).verdict == verdict


# -- margin and shown -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("natural", "random", "verdict"), [
    ((100, 0), (120, 10), REPRODUCED),
    ((100, 0), (60, 0), PARTLY),  # the mean is beyond 5 points, its interval is not
    ((100, 0), (30, 0), PARTLY),
    ((100, 0), UNSURE, NOT),
    ((100, 0), (30, 200), INCONCLUSIVE),
    ((100, 0), (-100, 0), NOT),
    ((-100, 0), (-100, 0), NOT),
])
def test_margin(store, natural, random, verdict):
    """Each interval by itself against the margin, on the named data set alone."""
    pairs = (("at", "at_natural"), ("at", "at_random"))
    claim = claim_of(rule_of("margin", pairs=pairs, metrics=("robust",), datasets=("cifar10",), min_datasets=1,
                             asked=((Bound(above=0.05, claimed=0.05),),), partly=((Bound(above=0.0),),)))
    levels = {"at": 0, "at_natural": from_lists([0], [minus(natural)], ["cifar10"]),
              "at_random": from_lists([0], [minus(random)], ["cifar10"])}
    jobs = fill(store, claim, levels, ["cifar10"]) + fill(store, claim, dict.fromkeys(levels, 0), ["cub64"])
    found = ledger.judge(claim, store, jobs)
    assert found.verdict == verdict and {e.dataset for e in found.detail} == {"cifar10"} and len(found.runs) == 9
    intervals = [stats.crossed_difference(np.stack([mask()] * 3), np.stack([mask(*minus(g))] * 3)) for g in (natural, random)]
    assert [(e.value, e.low, e.high) for e in found.effects] == [i[:3] for i in intervals]
    lows, highs = [i.low for i in intervals], [i.high for i in intervals]
    assert verdict == (REPRODUCED if min(lows) > 0.05 else PARTLY if min(lows) > 0 else
                       NOT if min(highs) < 0.05 else INCONCLUSIVE)


@pytest.mark.parametrize(("levels", "why"), [
    ({}, "none of the stand-ins has been run"),
    ({"distill": 0, "joint": -40}, "of 2 stand-ins of ours 0 have both intervals above 0"),
    ({"distill": 30, "joint": -40, "l2sp": 30}, "of 3 stand-ins of ours 2 have both intervals above 0"),
])
def test_shown(store, levels, why):
    """Where the paper's rivals are not public there is no verdict, however clear the numbers; one seed is enough to show them."""
    claim = LEDGER["C1"]
    found = ledger.judge(claim, store, fill(store, claim, levels | {"at": 0}, seeds=[0]))
    assert found.verdict == NOT_TESTED and why in found.why
    assert {e.method: round(N * e.value) for e in found.effects} == levels


# -- exchanged methods ------------------------------------------------------------------------------------------------
def level_of_pairs(claim, gain):
    return {m: gain for m, _ in claim.rule.pairs} | {b: 0 for _, b in claim.rule.pairs}


def exchange(store, jobs, claim):
    """Give the method the masks of its baselines and each baseline those of the method."""
    files = {(j.spec.data.name, j.spec.seed, j.spec.method.name): mask_path(store, j) for j in jobs}
    content = {key: path.read_bytes() for key, path in files.items()}
    for (dataset, seed, name), (m, b) in product(files, claim.rule.pairs):
        if name in (m, b):
            files[dataset, seed, name].write_bytes(content[dataset, seed, b if name == m else m])


@pytest.mark.parametrize("claim", JUDGED, ids=lambda claim: claim.id)
def test_exchanged_methods_turn_the_verdict(store, claim):
    """Every claim of the ledger is reproduced by masks made for it, and not with the masks of method and baseline exchanged."""
    datasets = claim.rule.datasets or DATASETS
    jobs = fill(store, claim, level_of_pairs(claim, 100), datasets)
    assert ledger.judge(claim, store, jobs).verdict == REPRODUCED
    exchange(store, jobs, claim)
    found = ledger.judge(claim, store, jobs)
    assert found.verdict == NOT and all(e.high < 0 for e in found.effects)


# -- too little to judge ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("claim", JUDGED, ids=lambda claim: claim.id)
@pytest.mark.parametrize("lack", ["seeds", "one seed", "data sets", "images", "attack", "runs"])
def test_too_little_is_not_tested(store, claim, lack):
    """Clear gains from too few seeds (also of one method alone), data sets or images, or clean ones alone: no verdict."""
    seeds, datasets, evals = [0, 1, 2], list(claim.rule.datasets or DATASETS), [CLEAN, PGD]
    seeds = seeds[:2] if lack == "seeds" else seeds
    datasets = datasets[:claim.rule.min_datasets - 1] if lack == "data sets" else datasets
    evals = {"images": [CLEAN, dataclasses.replace(PGD, images=N - 1)], "attack": [CLEAN]}.get(lack, evals)
    jobs = fill(store, claim, level_of_pairs(claim, 100), datasets, seeds, evals=evals)
    if lack == "one seed":
        baseline = claim.rule.pairs[-1][1]
        (gone,) = (j for j in jobs if (j.spec.data.name, j.spec.method.name, j.spec.seed) == (datasets[-1], baseline, 2))
        (store.root / "runs" / f"{gone.spec.hash}.json").unlink()
    if lack == "runs":
        jobs = [dataclasses.replace(j, spec=dataclasses.replace(j.spec, seed=j.spec.seed + 10)) for j in jobs]
    found = ledger.judge(claim, store, jobs)
    assert found.verdict == NOT_TESTED and found.remark == ""
    assert found.why.startswith("3 seeds are needed, finished are: ") and "data sets" in found.why


@pytest.mark.parametrize("preset", ["toy", "test"])
def test_toy_is_never_a_verdict(tmp_path, preset):
    """Runs of a toy preset judge nothing, however many and clear they are."""
    store = Store(preset, root=tmp_path)
    for claim in (LEDGER["C2"], LEDGER["C9"]):
        found = ledger.judge(claim, store, fill(store, claim, level_of_pairs(claim, 100), claim.rule.datasets or DATASETS))
        assert (found.verdict, found.why) == (NOT_TESTED, f"a {preset} run only checks that everything works")


def test_gain_over_two_data_sets_is_no_gain(store):
    """There is no interval worth its name over fewer than three data sets, even if a rule asks for no more."""
    claim, jobs = claim_of(rule_of(min_datasets=1, min_seeds=1)), []
    for i, dataset in enumerate(DATASETS):
        jobs += fill(store, claim, {"twins_at": 100 + i, "at": 0}, [dataset], [0])
        found = ledger.judge(claim, store, jobs)
        assert found.verdict == (REPRODUCED if i == 2 else NOT_TESTED)
        assert i == 2 or found.why.endswith(f"on {i + 1} of 3 data sets")


def test_runs_that_are_no_runs_of_the_claim(store):
    """Source networks, unsettled runs, other methods, candidates of the tuning and runs whose course is followed neither count
    nor get in the way."""
    claim = claim_of(rule_of())
    jobs = fill(store, claim, {"twins_at": 100, "at": 0})
    source = Job("transfer", dataclasses.replace(SOURCE, data=DataSpec(name="cifar10")), (CLEAN,), ship=True)
    unsettled = [dataclasses.replace(j, settled=False) for j in fill(store, claim, {"twins_at": -100, "at": 0}, ["dogs64"])]
    tuning = Job("tuning", dataclasses.replace(jobs[0].spec, optim=OptimSpec(lr=0.5)), ())
    followed = Job("followed", dataclasses.replace(jobs[0].spec, follow=FollowSpec(test_images=N)), ())
    for j in (source, tuning, followed):
        finish(store, j.spec, {CLEAN: mask()})
    found = ledger.judge(claim, store, [source, tuning, followed, *unsettled, *jobs, job(name="natural")])
    assert found == ledger.judge(claim, store, jobs) and found.verdict == REPRODUCED
    assert found.runs == tuple(sorted(j.spec.hash for j in jobs)) and found.not_counted == 0


# -- which runs began under the rule ----------------------------------------------------------------------------------
@pytest.mark.parametrize("stamps", [None, {}, {"C9": "1:000000000000"}, {"X1": "1:000000000000"}],
                         ids=["before there were rules", "none then", "of other claims", "of an older version"])
def test_runs_from_before_the_rule_do_not_count(store, stamps):
    """They are counted as such, their numbers are not used; runs under the rule beside them are."""
    claim = claim_of(rule_of(version=2, changes="because"))
    jobs = fill(store, claim, {"twins_at": 100, "at": 0}, stamps=stamps)
    found = ledger.judge(claim, store, jobs)
    assert (found.verdict, found.not_counted, found.runs, found.detail) == (NOT_TESTED, 18, (), ())
    more = fill(store, claim, {"twins_at": -100, "at": 0}, ("dogs64", "cifar100", "caltech256"))
    found = ledger.judge(claim, store, jobs + more)
    assert (found.verdict, found.not_counted) == (NOT, 18) and found.runs == tuple(sorted(j.spec.hash for j in more))
    shown = ledger.to_table([found]).iloc[0]
    assert shown["n"] == "data sets: 3, seeds: 3, images: 1,000; began before the rule: 18" and shown["rule"] == "version 2"


def test_runs_of_an_earlier_rule_count_where_it_withholds(store):
    """A rule that can only withhold accepts the stamp of the one before, up to the verdict that such runs can give."""
    old = claim_of(rule_of())
    jobs = fill(store, old, {"twins_at": 100, "at": 0})
    before = Earlier(stamp=old.rule.stamp, text="words", changed="2026-11-30", withholds=True)
    for earlier, verdict in ((before, REPRODUCED), (dataclasses.replace(before, at_most=PARTLY), PARTLY),
                             (dataclasses.replace(before, withholds=False), NOT_TESTED)):
        claim = claim_of(rule_of(version=2, changes="because", chance=0.01, earlier=(earlier,)))
        found = ledger.judge(claim, store, jobs)
        assert found.verdict == verdict and found.not_counted == (18 if verdict == NOT_TESTED else 0)
        assert ("changed on 2026-11-30, can only withhold" in ledger.to_table([found])["rule"][0]) is (verdict != NOT_TESTED)
    assert "give no more" in ledger.judge(claim_of(rule_of(version=2, changes="because", earlier=(
        dataclasses.replace(before, at_most=PARTLY),))), store, jobs).why


def classes(store, jobs, **numbers):
    """Enter the number of classes of each data set into the records of its runs."""
    for j in jobs:
        path = store.root / "runs" / f"{j.spec.hash}.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"classes": numbers[j.spec.data.name]}))


def test_data_sets_near_chance_are_shown_and_left_out(store):
    """A data set on which one network is near guessing decides nothing, and leaving it out grants nothing: with it no less may
    hold; the last two data sets must be away from chance."""
    def low(dataset, e):
        return mask(-450, images=e.images) if dataset == "cub64" else mask(0, images=e.images)  # 5 % right

    claim = claim_of(rule_of(chance=0.05))
    levels = {"twins_at": lambda d, e: mask(-445 if d == "cub64" else 40, images=e.images), "at": low}
    jobs = fill(store, claim, levels)
    classes(store, jobs, cifar10=10, caltech64=101, cub64=200)
    found = ledger.judge(claim, store, jobs)
    assert {e.dataset for e in found.flagged} == {"cub64"} and "near chance and left out: CUB-200 (2010)" in found.why
    assert found.verdict == INCONCLUSIVE and all(e.low > 0 for e in found.effects)  # with the third, Student's interval is wide
    assert "CUB-200" in ledger.to_table([found])["near chance, left out"][0]
    classes(store, jobs, cifar10=10, caltech64=101, cub64=100_000)
    assert ledger.judge(claim_of(dataclasses.replace(claim.rule, chance=0.0), "X1"), store, []).verdict == NOT_TESTED
    classes(store, jobs, cifar10=10, caltech64=2, cub64=200)
    found = ledger.judge(claim, store, jobs)
    assert found.verdict == NOT_TESTED and "near chance: Caltech-101, CUB-200 (2010); too few data sets are left" in found.why


def test_over_two_data_sets_only_their_own_intervals_count():
    """Two values say nothing of other data sets, so their mean has the interval that theirs combine to."""
    found = [(0.02, 0.01, 0.03), (0.04, 0.01, 0.07)]
    half = math.hypot(0.01, 0.03) / 2
    assert frame.mean_interval(found) == pytest.approx((0.03, 0.03 - half, 0.03 + half))


def test_an_unfinished_training_has_no_stamp_yet(store):
    """Provenance of a stopped training is none; a record beside it that says finished is not believed to be of this rule."""
    claim = claim_of(rule_of())
    jobs = fill(store, claim, {"twins_at": 100, "at": 0})
    path = store.root / "provenance" / f"{jobs[0].spec.hash}.json"
    path.write_text(json.dumps({"train": json.loads(path.read_text())["train"] | {"unfinished": True}}))
    assert ledger.judge(claim, store, jobs).not_counted == 1


@pytest.mark.parametrize("change", [{"text": "words, otherwise"}, {"min_seeds": 2}, {"margin": 0.01}, {"alpha": 0.1},
                                    {"metrics": ("clean",)}, {"asked": ((Bound(above=0.0, claimed=0.01),),)},
                                    {"robust": Robust(threat="linf", eps=8 / 255, min_images=999)}],
                         ids=lambda change: next(iter(change)))
def test_a_rule_edited_after_the_runs_is_refused(store, change):
    """Any word or number changed under the same version: an error with claim, run, both stamps and what to do."""
    old, new = claim_of(rule_of()), claim_of(rule_of(**change))
    jobs = fill(store, old, {"twins_at": 100, "at": 0}, ["cifar10"], [0])
    assert ledger.judge(old, store, jobs).not_counted == 0
    with pytest.raises(ValueError, match="expected the rule of X1 as it was when run") as error:
        ledger.judge(new, store, jobs)
    message = str(error.value)
    assert any(j.spec.hash in message for j in jobs) and old.rule.stamp in message and new.rule.stamp in message
    for step in ("restore it", "raise its version", "`changes`", "run again"):
        assert step in message


def test_a_raised_version_with_a_reason_is_accepted(store):
    """The same change in a new version: earlier runs no longer count, nothing is refused; without a reason it is no rule."""
    jobs = fill(store, claim_of(rule_of()), {"twins_at": 100, "at": 0})
    found = ledger.judge(claim_of(rule_of(version=2, changes="a slip", min_seeds=2)), store, jobs)
    assert (found.verdict, found.not_counted, found.runs) == (NOT_TESTED, 18, ())
    with pytest.raises(ValueError, match="expected `changes` to say why the rule is in version 2, got nothing"):
        rule_of(version=2)


@pytest.mark.parametrize("stamps", [None, {"C1": "0:000000000000"}])
def test_what_is_only_shown_needs_no_stamp(store, stamps):
    """Where nothing is judged, runs from before the rule are shown like all others, and still give no verdict."""
    found = ledger.judge(LEDGER["C1"], store, fill(store, LEDGER["C1"], {"distill": 30, "at": 0}, stamps=stamps))
    assert (found.verdict, found.not_counted, len(found.runs)) == (NOT_TESTED, 0, 18)
    assert {round(N * e.value) for e in found.effects} == {30}


# -- which attack -----------------------------------------------------------------------------------------------------
WEAK = dataclasses.replace(PGD, steps=10)


@pytest.mark.parametrize(("some", "everywhere", "used"), [
    ([AUTO], True, AUTO), ([AUTO], False, PGD), ([PART], True, PART), ([PART], False, PGD), ([PART, AUTO], True, AUTO),
    ([WEAK], True, PGD), ([dataclasses.replace(PGD, steps=100)], True, dataclasses.replace(PGD, steps=100)),
    ([dataclasses.replace(PGD, steps=10, restarts=5)], True, dataclasses.replace(PGD, steps=10, restarts=5)),
    ([dataclasses.replace(AUTO, eps=4 / 255)], True, PGD), ([dataclasses.replace(AUTO, threat="l2")], True, PGD),
    ([dataclasses.replace(AUTO, images=N - 1)], True, PGD), ([dataclasses.replace(AUTO, eps=0.0314)], True, PGD),
], ids=["AutoAttack", "AutoAttack on one seed", "its part", "its part on one seed", "AutoAttack beside its part", "weaker PGD",
        "more steps", "restarts", "other radius", "other norm", "too few images", "almost the radius"])
def test_strongest_attack_that_all_runs_have(store, some, everywhere, used):
    """The gain in robust accuracy is that under the strongest attack of all compared runs, at the rule's radius and images."""
    claim = claim_of(rule_of())
    evals = [CLEAN, PGD, *some]
    gains = {e: 10 * (i + 1) for i, e in enumerate(evals)}
    levels = {"twins_at": lambda d, e: mask(gains[e], images=e.images), "at": 0}
    jobs = [j for seed in range(3) for j in fill(store, claim, levels, seeds=[seed],
                                                 evals=evals if everywhere or seed == 0 else [CLEAN, PGD])]
    found = ledger.judge(claim, store, jobs)
    assert found.effects[1].attack == used.attack_name and found.effects[1].value == pytest.approx(gains[used] / N)
    assert found.effects[0].value == pytest.approx(gains[CLEAN] / N) and {e.seeds for e in found.detail} == {3}


def test_no_attack_at_the_radius(store):
    """Only other radii, norms or fewer images: the robust half is missing, and so is the verdict."""
    claim = claim_of(rule_of())
    others = [(PGD, {"eps": 4 / 255}), (PGD, {"threat": "l2"}), (AUTO, {"images": 9})]
    evals = [CLEAN, *(dataclasses.replace(e, **change) for e, change in others)]
    found = ledger.judge(claim, store, fill(store, claim, {"twins_at": 100, "at": 0}, evals=evals))
    assert found.verdict == NOT_TESTED and {e.metric for e in found.detail} == {"clean"}


# -- the mechanism ----------------------------------------------------------------------------------------------------
def with_controls(claim, gone):
    """Levels for a claim with controls: a clear gain everywhere, but none against the controls in `gone`."""
    (m, b), = claim.rule.pairs
    levels = {m: 40, b: 0}
    for method_, baseline in claim.rule.controls:
        if method_ == m:
            levels[baseline] = 40 if (method_, baseline) in gone else 0
        else:
            levels[method_] = 0 if (method_, baseline) in gone else 40
    return levels


@pytest.mark.parametrize("name", ["C2", "C3"])
@pytest.mark.parametrize("case", ["stands", "one gone", "all gone", "all missing", "one gone, the others missing"])
def test_controls(store, name, case):
    """The gain stands against all controls, vanishes against one or more by name, or they have not enough runs."""
    claim = LEDGER[name]
    labels = [f"{specs_labels.method_label(m)} - {specs_labels.method_label(b)}" for m, b in claim.rule.controls]
    gone = claim.rule.controls[:{"stands": 0, "all gone": 9}.get(case, 1)]
    levels = with_controls(claim, gone)
    run = {"all missing": [], "one gone, the others missing": claim.rule.controls[0]}.get(case, levels)
    levels = {name: gain for name, gain in levels.items() if name in (*claim.rule.pairs[0], *run)}
    found = ledger.judge(claim, store, fill(store, claim, levels))
    doubt, lack = "number reproduced, explanation not supported: no clear gain in ", "controls without enough runs: "
    assert (found.verdict, found.remark) == (REPRODUCED, {
        "stands": "the gain stands against all controls", "one gone": doubt + labels[0], "all gone": doubt + ", ".join(labels),
        "all missing": lack + ", ".join(labels),
        "one gone, the others missing": f"{doubt}{labels[0]}; {lack}{', '.join(labels[1:])}"}[case])
    assert {(e.method, e.baseline) for e in found.effects} == {claim.rule.pairs[0]}


@pytest.mark.parametrize(("changed", "verdict", "remark"), [
    ({"trades_beta3": ([40] * 3, [0] * 3)}, REPRODUCED, "number reproduced, explanation not supported: no clear gain"),
    ({"twins_trades": ([40] * 3, [0, 3, 6])}, PARTLY, "number reproduced, explanation not supported: no clear gain"),
    ({"twins_trades": ([-40] * 3, [-40] * 3)}, NOT, ""),
], ids=["gone in one measure", "partly", "not"])
def test_controls_where_the_number_is_less_clear(store, changed, verdict, remark):
    """A gain that a control removes in one measure is in doubt too; nothing is explained that is not there."""
    claim = LEDGER["C3"]
    levels = with_controls(claim, []) | {name: from_lists(*gains) for name, gains in changed.items()}
    found = ledger.judge(claim, store, fill(store, claim, levels))
    assert found.verdict == verdict and found.remark[:len(remark) or None] == remark


# -- table and file ---------------------------------------------------------------------------------------------------
def stamped(levels, store, evals=(CLEAN, PGD)):
    """Runs under the rules of the whole ledger."""
    return fill(store, SimpleNamespace(id="", rule=None), levels, stamps=rules.stamps(), evals=evals)


def test_table(store):
    """One line per claim with verdict, reason, effects in points, numbers, source and what to type."""
    jobs = stamped({"twins_at": from_lists([(20, 0), (22, 0), (24, 0)], [(10, 0), (11, 0), (12, 0)]), "at": 0}, store)
    table = ledger.to_table(ledger.judge_all(store, jobs, "01")).set_index("claim")
    assert table.index.tolist() == FIRST and not table.isna().any(axis=None)
    line = table.loc["C2"]
    assert line["verdict"] == REPRODUCED and line["robust at"] == "8/255"
    assert line["effect"] == "TWINS-AT - AT, clean: +2.2 [+1.7, +2.9]; TWINS-AT - AT, PGD-20: +1.1 [+0.8, +1.6]"
    assert line["n"] == "data sets: 3, seeds: 3, images: 1,000"
    assert line["why"].startswith("of 2 intervals 2 as asked, 0 without the claimed effect. controls without enough runs: TWINS")
    assert line["elsewhere"] == f"{public.reported('twins_at', 'at')} points" and "one start network" in line["regime"]
    order = ["effect", "regime", "verdict", "elsewhere"]
    assert sorted(order, key=list(table.columns).index) == order
    assert table.loc["C3", ["verdict", "effect", "n"]].tolist() == [NOT_TESTED, "none yet", "no run"]
    assert ledger.judge_all(store, jobs, "09") == []


def test_detail_is_shown_where_nothing_decides(store):
    """Without a verdict the table shows the single data sets that there are."""
    claim = LEDGER["C2"]
    levels = {"twins_at": 20, "at": 0}
    jobs = fill(store, claim, levels, ["cifar10"], [0]) + fill(store, claim, levels, ["cub64"])
    (line,) = ledger.to_table([ledger.judge(claim, store, jobs)]).to_dict("records")
    assert line["n"] == "data sets: 2, seeds: 1 to 3, images: 1,000"
    assert "TWINS-AT - AT, clean on CIFAR-10: +2.0 [" in line["effect"]


def refuse(name):
    raise AssertionError(f"{name} is no JSON")


def test_file_is_complete(store):
    """claims.json is strict JSON with everything behind a verdict: rule, stamp, effects, data sets, runs, commands."""
    jobs = stamped({"twins_at": 20, "at": 0, "two_adaptive": 0}, store)
    verdicts = ledger.judge_all(store, jobs, "01")
    ledger.write(store, verdicts)
    path = store.root / "claims.json"
    stored = json.loads(path.read_text(), parse_constant=refuse)
    assert list(stored) == FIRST
    for name, record in stored.items():
        claim = LEDGER[name]
        assert (record["sentence"], record["rule"], record["stamp"]) == (claim.sentence, claim.rule.text, claim.rule.stamp)
        assert record["preset"] == "small" and record["verdict"] in VERDICTS and record["why"]
    found = stored["C2"]
    assert found["verdict"] == REPRODUCED and found["remark"] and found["runs_before_the_rule"] == 0
    used = ("at", "twins_at", "two_adaptive")
    assert found["runs"] == sorted(j.spec.hash for j in jobs if j.spec.method.name in used)
    assert [(e["metric"], e["dataset"], e["value"], e["p_value"]) for e in found["effects"]] == [
        ("clean", "mean", pytest.approx(0.02), None), ("robust", "mean", pytest.approx(0.02), None)]
    assert {(e["baseline"], e["dataset"]) for e in found["detail"]} == set(product(("at", "two_adaptive"), DATASETS))
    before = path.read_bytes()
    path.unlink()
    ledger.write(store, ledger.judge_all(store, jobs, "01")[::-1])
    assert path.read_bytes() == before


def test_file_is_written_whole_or_not_at_all(store, monkeypatch):
    """A write that fails leaves the file of before and nothing beside it; a damaged file is named, not replaced."""
    path = store.root / "claims.json"
    ledger.write(store, [ledger.judge(LEDGER["C2"], store, [])])
    before = path.read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("no more")))
        with pytest.raises(OSError, match="no more"):
            ledger.write(store, [ledger.judge(LEDGER["C3"], store, [])])
    assert path.read_bytes() == before and [p.name for p in store.root.iterdir()] == ["claims.json"]
    path.write_text("{")
    with pytest.raises(ValueError, match="expected JSON in .*claims.json, .* delete the file"):
        ledger.write(store, [ledger.judge(LEDGER["C2"], store, [])])


# -- the verdicts in a text -------------------------------------------------------------------------------------------
def test_summary_is_put_between_the_marks(store):
    """The text around stays, what was between the marks goes; doing it twice changes nothing."""
    text = "# A\n<!-- claims -->\nold\n<!-- /claims -->\nend | of text\n"
    assert "old" not in ledger.put_into(text, store)
    ledger.write(store, ledger.judge_all(store, stamped({"twins_at": 20, "at": 0}, store), "01"))
    once = ledger.put_into(text, store)
    assert once.startswith("# A\n<!-- claims -->\n| claim ") and once.endswith("<!-- /claims -->\nend | of text\n")
    assert re.search(r"\| C2 +\| TWINS-AT has higher clean and robust accuracy than AT. +\| reproduced +\|", once)
    assert all(f"| {name} " in once for name in FIRST) and ledger.put_into(once, store) == once


@pytest.mark.parametrize("text", ["", "<!-- claims -->", "<!-- /claims -->", "<!-- claims --><!-- claims --><!-- /claims -->",
                                  "<!-- /claims --> <!-- claims -->"])
def test_marks_are_needed(store, text):
    """Each mark once, in order."""
    with pytest.raises(ValueError, match="expected the marks <!-- claims --> and <!-- /claims -->, each once"):
        ledger.put_into(text, store)


# -- commands ---------------------------------------------------------------------------------------------------------
def test_commands_exist(capsys):
    """What the ledger says to type is accepted: preset and notebook number by run_all.sh, the rest by the command line."""
    script = paths.notebooks_dir().parent / "run_all.sh"
    legal = re.search(r"usage: \./run_all\.sh \[([a-z|]+)\] \[NN…\]", script.read_text())[1].split("|")
    assert os.access(script, os.X_OK)
    for claim, preset in product(LEDGER.values(), presets.PRESETS):
        run_all, judge = ledger.commands(claim, Store(preset))
        program, one, number = run_all.split()
        assert program == "./run_all.sh" and one in legal and presets.notebook(number).name.startswith(number)
        python, *arguments = judge.split()
        assert [python, *arguments[:2]] == ["python", "-m", "twinslib"]
    assert cli.main(arguments[2:]) == 0  # the last, of preset paper
    assert capsys.readouterr().out.splitlines()[0] == f"{claim.id}  {claim.sentence}"


def test_commands_name_the_threads_of_the_runs(store):
    """The number of threads that a claim's runs were made with, since numbers repeat with that one only; others are counted."""
    jobs = stamped({"twins_at": 20, "at": 0}, store)
    done = [job for job in jobs if store.run(job.spec)]
    for i, job in enumerate(done):
        path = store.root / "provenance" / f"{job.spec.hash}.json"
        record = read_json(path)
        record["train"] |= {"threads": 2 if i == 0 else 1, "device": "cpu"}
        write_json(path, record)
    compute, _ = ledger.commands(LEDGER["C2"], store, done)
    assert compute == (f"python -m twinslib sweep --preset {store.preset} --only 01 --threads 1 "
                       f"(1 of {len(done)} runs: --threads 2)")


def test_command_prints_all_claims(capsys):
    """Every claim, notebook by notebook, with its verdict and the columns of the table, stored as well; nothing is trained."""
    assert cli.main(["claims", "--preset", "toy"]) == 0
    out = capsys.readouterr().out
    blocks = out.strip().split("\n\n")
    notebooks = list(dict.fromkeys(c.notebook for c in LEDGER.values()))
    expected = sorted(LEDGER.values(), key=lambda c: notebooks.index(c.notebook))
    assert [block.splitlines()[0] for block in blocks] == [f"{c.id}  {c.sentence}" for c in expected]
    for block in blocks:
        assert [line.split(":")[0].strip() for line in block.splitlines()[1:]] == [
            "effect", "near chance, left out", "regime", "verdict", "why", "elsewhere", "could show", "robust at", "n", "rule",
            "stated by", "reproduce"]
        assert "    verdict: not tested at this scale\n" in block
    stored = json.loads((paths.results_dir() / "toy" / "claims.json").read_text())
    assert set(stored) == set(LEDGER)
    assert [p.name for p in (paths.results_dir() / "toy").iterdir()] == ["claims.json"]


def test_command_says_why(capsys, monkeypatch, tmp_path):
    """--why prints rule, runs, intervals against their bounds, and the calculation."""
    (tmp_path / "small").mkdir()
    store = Store("small", root=tmp_path / "small")
    jobs = fill(store, LEDGER["C2"], {"twins_at": 40, "at": 0})
    monkeypatch.setattr(cli, "Store", lambda *_, **__: store)
    monkeypatch.setattr(studies_plan, "plan", lambda *_: (lambda best: jobs, {}))
    assert cli.main(["claims", "--preset", "small", "--why", "C2"]) == 0
    out = capsys.readouterr().out
    rule = LEDGER["C2"].rule
    for piece in (rule.text, rule.stamp, rule.earlier[0].text, f"before {rule.earlier[0].changed}", jobs[0].spec.hash,
                  "TWINS-AT on CIFAR-10, seed 0", "TWINS-AT - AT, clean: +4.0 [",
                  "asked: above 0, yes; claimed 2.18, not excluded",
                  "TWINS-AT - AT, clean on CIFAR-10: +4.0 [", "of 2 intervals 2 as asked", "  reproduced"):
        assert piece in out, piece
    assert [line for line in out.splitlines() if not line.startswith(" ")][1:] == [
        "rule", "runs", "intervals", "behind them", "calculation", "conditions", ""]


def test_command_for_some_claims(capsys):
    """Only the claims asked for are printed, in the order of the ledger, and stored beside those that are there."""
    assert cli.main(["claims", "--preset", "toy", "C8"]) == cli.main(["claims", "--preset", "toy", "C4", "C2"]) == 0
    assert re.findall(r"^(C\d)  ", capsys.readouterr().out, re.M) == ["C8", "C2", "C4"]
    assert set(json.loads((paths.results_dir() / "toy" / "claims.json").read_text())) == {"C2", "C4", "C8"}


@pytest.mark.parametrize(("arguments", "message"), [
    (["--preset", "toy", "C10"], f"expected claim to be one of {', '.join(LEDGER)}, got 'C10'"),
    (["--preset", "toy", "C2", "c3"], "got 'c3'"),
    (["--preset", "smal"], "did you mean 'small'?"),
    (["--preset", "toy", "--into", "absent.md"], "absent.md"), (["C2"], "expected --preset, got none"),
])
def test_command_refuses(capsys, arguments, message):
    """An unknown claim, preset or file: status 2, one line, no verdict printed."""
    assert cli.main(["claims", *arguments]) == 2
    out, err = capsys.readouterr()
    assert message in err and err.startswith("error: ") and err.count("\n") == 1
    assert out == "" or "--into" in arguments


def test_command_puts_the_verdicts_into_a_file(tmp_path, capsys):
    """--into replaces what stands between the marks of a Markdown file."""
    path = tmp_path / "page.md"
    path.write_text("before\n<!-- claims -->\n<!-- /claims -->\nafter\n")
    assert cli.main(["claims", "--preset", "toy", "--into", str(path)]) == 0
    text = path.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and all(f"| {name} " in text for name in LEDGER)


def test_refused_rule_reaches_the_command_line(monkeypatch, capsys):
    """A rule edited after the runs ends the command with status 2 and the error's one line."""
    def edited(*_):
        raise ValueError("expected the rule of C2 as it was when run abc began")

    monkeypatch.setattr(ledger, "judge", edited)
    assert cli.main(["claims", "--preset", "toy"]) == 2
    assert capsys.readouterr().err == "error: expected the rule of C2 as it was when run abc began\n"


def test_reported_effect():
    """The effect that the ledger sets beside C2, and none for what nobody reported."""
    assert [c.id for c in LEDGER.values() if c.reported] == ["C2"]
    assert public.reported(*LEDGER["C2"].reported) == "reported, second-hand: +2.18 clean, +1.21 robust"
    assert set(evidence_pairs.PAIRS) >= {LEDGER["C2"].reported}
