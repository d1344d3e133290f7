"""Rules on accuracy, from made-up masks: means over data sets, single data sets, which attack, and the controls."""

import dataclasses
import json

import pytest

from tests.claims.made import CLEAN, DATASETS, LEDGER, PGD, N, by_dataset, claim_of, clear, fill, mask
from twinslib.claims import ledger
from twinslib.claims.verdict import INCONCLUSIVE, NOT, NOT_TESTED, PARTLY, REPRODUCED
from twinslib.evidence.frame import mean_interval
from twinslib.specs.labels import method_label
from twinslib.specs.measure import EvalSpec
from twinslib.studies.rules import Bound

JUDGED = [claim for claim in LEDGER.values() if claim.notebook == "01" and claim.rule.measure != "shown"]
AUTO = EvalSpec(kind="autoattack", images=N, eps=8 / 255)


@pytest.mark.parametrize(("clean", "robust", "verdict"), [
    ((20, 22, 24), (10, 11, 12), REPRODUCED),
    ((20, 22, 24), (10, 20, 60), INCONCLUSIVE),  # one above 0, the other may be a loss of more than the least effect
    ((20, 22, 24), (0, 4, 8), PARTLY),
    ((5, 10, 40), (10, 20, 60), INCONCLUSIVE),  # both means above 0, neither interval
    ((20, 22, 24), (-10, 5, -5), NOT),  # the other has no more than 1.7 points
    ((10, 20, 60), (-5, 0, 5), NOT),
    ((-40, 0, 40), (-40, 0, 40), INCONCLUSIVE),  # nothing is told
])
def test_gain(store, clean, robust, verdict):
    """The mean over three data sets, with the interval that `mean_interval` gives."""
    claim = claim_of()
    found = ledger.judge(claim, store, fill(store, claim, {"twins_at": by_dataset(clean, robust), "at": 0}))
    assert found.verdict == verdict
    for effect, metric in zip(found.effects, ("clean", "robust"), strict=True):
        single = [(e.value, e.low, e.high) for e in found.detail if e.metric == metric]
        assert (effect.value, effect.low, effect.high) == mean_interval(single)
        assert (effect.metric, effect.dataset, effect.images, effect.seeds) == (metric, "mean", N, 3)
    assert [round(N * e.value) for e in found.detail] == [*clean, *robust] and len(found.runs) == 18


FOUR = (*DATASETS, "dogs64")
SURE, UNSURE, LUCKY = (60, 0), (3, 100), (25, 50)  # p about 1e-14, 0.86 and 0.03


def minus(pair):
    return -pair[0], pair[1]


@pytest.mark.parametrize(("clean", "robust", "verdict"), [
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
    ([SURE, SURE, (0, 50)], [SURE, SURE, SURE], PARTLY),  # 0 is not above 0
])
def test_spread(store, clean, robust, verdict):
    """Both means above 0 everywhere and a significant gain on more than half of the data sets."""
    claim, datasets = claim_of("spread"), FOUR[:len(clean)]
    levels = {"twins_at": by_dataset(clean, robust, datasets), "at": 0}
    found = ledger.judge(claim, store, fill(store, claim, levels, datasets))
    assert found.verdict == verdict and [round(N * e.value) for e in found.detail] == [g for g, _ in (*clean, *robust)]


def test_spread_by_the_rule(store):
    """The rule's own level decides what is significant; a data set with clean accuracy alone is none."""
    for alpha, verdict in ((0.05, INCONCLUSIVE), (0.2, REPRODUCED)):
        claim = claim_of("spread", alpha=alpha)
        jobs = fill(store, claim, {"twins_at": by_dataset([LUCKY] * 3, [UNSURE] * 3), "at": 0})
        assert ledger.judge(claim, store, jobs).verdict == verdict
    more = fill(store, claim, {"twins_at": 60, "at": 0}, ["dogs64"], evals=[CLEAN])
    assert "above 0 on 3 of 3 data sets" in ledger.judge(claim, store, jobs + more).why
    assert ledger.judge(claim, store, [j for j in jobs if j.spec.data.name != "cub64"] + more).verdict == NOT_TESTED


@pytest.mark.parametrize(("natural", "random", "verdict"), [
    ((100, 0), (120, 10), REPRODUCED),
    ((100, 0), (60, 0), PARTLY),  # the mean is beyond 5 points, its interval is not
    ((100, 0), UNSURE, NOT),
    ((100, 0), (30, 200), INCONCLUSIVE),
    ((-100, 0), (-100, 0), NOT),
])
def test_margin(store, natural, random, verdict):
    """Each interval by itself against the margin, on the named data set alone."""
    claim = claim_of("margin", pairs=(("at", "at_natural"), ("at", "at_random")), metrics=("robust",), datasets=("cifar10",),
                     min_datasets=1, asked=((Bound(above=0.05, claimed=0.05),),), partly=((Bound(above=0.0),),))
    levels = {"at": 0} | {name: by_dataset([0], [minus(gain)], ["cifar10"])
                          for name, gain in (("at_natural", natural), ("at_random", random))}
    jobs = fill(store, claim, levels, ["cifar10"]) + fill(store, claim, dict.fromkeys(levels, 0), ["cub64"])
    found = ledger.judge(claim, store, jobs)
    assert found.verdict == verdict and {e.dataset for e in found.detail} == {"cifar10"} and len(found.runs) == 9


@pytest.mark.parametrize(("levels", "why"), [
    ({}, "none of the stand-ins has been run"),
    ({"distill": 30, "joint": -40, "l2sp": 30}, "of 3 stand-ins of ours 2 have both intervals above 0"),
])
def test_shown(store, levels, why):
    """Where the paper's rivals are not public there is no verdict, however clear the numbers."""
    claim = LEDGER["C1"]
    found = ledger.judge(claim, store, fill(store, claim, levels | {"at": 0}, seeds=[0], stamps=None))
    assert (found.verdict, found.not_counted) == (NOT_TESTED, 0) and why in found.why
    assert {e.method: round(N * e.value) for e in found.effects} == levels


@pytest.mark.parametrize("claim", JUDGED, ids=lambda claim: claim.id)
def test_exchanged_methods_turn_the_verdict(store, claim):
    """Every claim is reproduced by masks made for it, and refuted where method and baseline are exchanged."""
    datasets = claim.rule.datasets or DATASETS
    jobs = fill(store, claim, clear(claim), datasets)
    assert ledger.judge(claim, store, jobs).verdict == REPRODUCED
    last = claim.rule.pairs[-1][1], datasets[-1]
    kept = {"seeds": [j for j in jobs if j.spec.seed < 2], "data sets": [j for j in jobs if j.spec.data.name != datasets[-1]],
            "one seed": [j for j in jobs if (j.spec.method.name, j.spec.data.name) != last or j.spec.seed < 2],
            "runs": [dataclasses.replace(j, spec=dataclasses.replace(j.spec, seed=j.spec.seed + 10)) for j in jobs],
            "attack": [dataclasses.replace(j, evals=(CLEAN,)) for j in jobs],
            "images": [dataclasses.replace(j, evals=(CLEAN, dataclasses.replace(PGD, images=N - 1))) for j in jobs]}
    for lack, some in kept.items():
        found = ledger.judge(claim, store, some)
        assert found.verdict == NOT_TESTED and found.remark == "", lack
        assert found.why.startswith("3 seeds are needed, finished are: ") and "data sets" in found.why
    found = ledger.judge(claim, store, fill(store, claim, clear(claim, -100), datasets))
    assert found.verdict == NOT and all(e.high < 0 for e in found.effects)


def test_gain_over_two_data_sets_is_no_gain(store):
    """There is no interval worth its name over fewer than three data sets, even if a rule asks for no more."""
    claim, jobs = claim_of(min_datasets=1, min_seeds=1), []
    for i, dataset in enumerate(DATASETS):
        jobs += fill(store, claim, {"twins_at": 100 + i, "at": 0}, [dataset], [0])
        found = ledger.judge(claim, store, jobs)
        assert found.verdict == (REPRODUCED if i == 2 else NOT_TESTED)
        assert i == 2 or found.why.endswith(f"on {i + 1} of 3 data sets")


def test_data_sets_near_chance_are_shown_and_left_out(store):
    """A data set on which one network is near guessing decides nothing, and leaving it out grants nothing."""
    claim = claim_of(chance=0.05)
    jobs = fill(store, claim, {m: by_dataset(gains, gains) for m, gains in (("twins_at", [40, 40, -445]), ("at", [0, 0, -450]))})

    def judged(**classes):
        for j in jobs:
            path = store.root / "runs" / f"{j.spec.hash}.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | {"classes": classes[j.spec.data.name]}))
        return ledger.judge(claim, store, jobs)

    found = judged(cifar10=10, caltech64=101, cub64=200)
    assert {e.dataset for e in found.flagged} == {"cub64"} and "near chance and left out: CUB-200 (2010)" in found.why
    assert found.verdict == INCONCLUSIVE and all(e.low > 0 for e in found.effects)  # with the third, Student's interval is wide
    assert "CUB-200" in ledger.to_table([found])["near chance, left out"][0]
    assert "accuracies 50.0 to 54.0 %" in found.regime  # of what decides
    found = judged(cifar10=10, caltech64=2, cub64=200)
    assert found.verdict == NOT_TESTED and "near chance: Caltech-101, CUB-200 (2010); too few data sets are left" in found.why


@pytest.mark.parametrize(("some", "everywhere", "used"), [
    ({}, True, True), ({}, False, False), ({"attacks": ("apgd-ce", "apgd-t")}, True, True), ({"eps": 4 / 255}, True, False),
    ({"threat": "l2"}, True, False), ({"images": N - 1}, True, False), ({"eps": 0.0314}, True, False),
    ({"kind": "pgd", "steps": 10}, True, False), ({"kind": "pgd", "steps": 10, "restarts": 5}, True, True),
    ({"kind": "pgd", "steps": 100}, True, True),
], ids=["AutoAttack", "on one seed", "its part", "other radius", "other norm", "few images", "almost the radius", "weaker PGD",
        "restarts", "more steps"])
def test_strongest_attack_that_all_runs_have(store, some, everywhere, used):
    """The gain in robust accuracy is that under the strongest attack of all compared runs, at the rule's radius and images."""
    claim, other = claim_of(), dataclasses.replace(AUTO, **some)
    gains = {CLEAN: 10, PGD: 20, other: 30}
    levels = {"twins_at": lambda d, e: mask(gains[e], images=e.images), "at": 0}
    jobs = [j for seed in range(3) for j in fill(store, claim, levels, seeds=[seed],
                                                 evals=gains if everywhere or seed == 0 else [CLEAN, PGD])]
    found, decides = ledger.judge(claim, store, jobs), other if used else PGD
    assert found.effects[1].attack == decides.attack_name and found.effects[1].value == pytest.approx(gains[decides] / N)
    assert found.effects[0].value == pytest.approx(gains[CLEAN] / N) and {e.seeds for e in found.detail} == {3}


def with_controls(claim, gone):
    """Levels for a claim with controls: a clear gain everywhere, but none against the controls in `gone`."""
    (m, b), = claim.rule.pairs
    levels = {m: 40, b: 0}
    for pair in claim.rule.controls:
        levels[pair[1] if pair[0] == m else pair[0]] = 40 if (pair in gone) == (pair[0] == m) else 0
    return levels


@pytest.mark.parametrize("name", ["C2", "C3"])
def test_controls(store, name):
    """The gain stands against all controls, vanishes against one or more by name, or they have not enough runs."""
    claim = LEDGER[name]
    (m, b), controls = claim.rule.pairs[0], claim.rule.controls
    labels = [f"{method_label(a)} - {method_label(c)}" for a, c in controls]
    doubt, lack = "number reproduced, explanation not supported: no clear gain in ", "controls without enough runs: "
    for gone, run, remark in (
            ((), None, "the gain stands against all controls"), (controls[:1], None, doubt + labels[0]),
            (controls, None, doubt + ", ".join(labels)), ((), (), lack + ", ".join(labels)),
            (controls[:1], controls[0], f"{doubt}{labels[0]}; {lack}{', '.join(labels[1:])}")):
        jobs = fill(store, claim, with_controls(claim, gone))
        found = ledger.judge(claim, store, [j for j in jobs if run is None or j.spec.method.name in (m, b, *run)])
        assert (found.verdict, found.remark) == (REPRODUCED, remark) and {e.pair for e in found.effects} == {(m, b)}


@pytest.mark.parametrize(("changed", "verdict", "remark"), [
    ({"trades_beta3": ([40] * 3, [0] * 3)}, REPRODUCED, "number reproduced, explanation not supported"),
    ({"twins_trades": ([40] * 3, [0, 3, 6])}, PARTLY, "number reproduced, explanation not supported"),
    ({"twins_trades": ([-40] * 3, [-40] * 3)}, NOT, ""),
], ids=["gone in one measure", "partly", "not"])
def test_controls_where_the_number_is_less_clear(store, changed, verdict, remark):
    """A gain that a control removes in one measure is in doubt too; nothing is explained that is not there."""
    claim = LEDGER["C3"]
    levels = with_controls(claim, []) | {name: by_dataset(*gains) for name, gains in changed.items()}
    found = ledger.judge(claim, store, fill(store, claim, levels))
    assert found.verdict == verdict and found.remark[:len(remark) or None] == remark
