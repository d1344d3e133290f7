"""Verdicts on adversarial fine-tuning: each rule reproduced, partly met, missed, and without enough runs, on made-up networks."""

import dataclasses

import numpy as np
import pytest

from tests.aft_made import N, epochs, finish, network, spec
from twinslib.claims import finetuning, kinds, ledger, verdict
from twinslib.claims.verdict import INCONCLUSIVE, NOT, NOT_TESTED, PARTLY, REPRODUCED
from twinslib.evidence.networks import Network
from twinslib.specs.jobs import Job
from twinslib.studies import rules

SEEDS = (0, 1, 2)
LEDGER = {c.id: c for c in rules.claims() if c.rule.measure in rules.FINETUNED}


def judged(claim: str, found: list[Network]) -> dict:
    """The verdict by the ledger's rule."""
    rule = LEDGER[claim].rule
    e = finetuning.weigh(finetuning.rows(found), {}, rule)
    return {"verdict": verdict.judge(rule, e), "why": e.lack or e.said, "effects": e.effects, "detail": e.detail}


def every(*args: object, seeds=SEEDS, **options: object) -> list[Network]:
    return [network(*args, seed=seed, **options) for seed in seeds]


def at(best: tuple, last: tuple, spent: float = 30_000.0, **options: object) -> list[Network]:
    """AT from random weights: (clean, robust) at its best epoch, which took `spent`, and at its last."""
    return [*every("at_scratch", *best, at="best", spent=spent, **options), *every("at_scratch", *last, **options)]


def aft(clean: float, robust: float, spent: float = 6000.0, before: float | None = 4000.0, **options: object) -> list[Network]:
    return every("aft", clean, robust, start="natural", spent=spent, before=before, **options)


@pytest.mark.parametrize(("ours", "last", "before", "expected"), [
    ((0.80, 0.50), (0.72, 0.30), 4000.0, REPRODUCED),
    ((0.75, 0.402), (0.72, 0.402), 3900.0, PARTLY),  # cheaper, clean higher, robust within a point
    ((0.75, 0.402), (0.72, 0.402), 4000.0, NOT),  # only three times as cheap, robust no more than 0.8 points higher
    ((0.75, 0.402), (0.72, 0.402), None, NOT),
    ((0.75, 0.38), (0.72, 0.30), None, PARTLY),  # better than the last epoch of the rival only
    ((0.75, 0.38), (0.72, 0.38), 3900.0, NOT),  # two points less robust
    ((0.70, 0.45), (0.72, 0.30), 4000.0, NOT),  # clean is not higher
    ((0.80, (0.36, 0.41, 0.46)), (0.72, 0.41), 4000.0, INCONCLUSIVE),  # seeds disagree
])
def test_beats(ours, last, before, expected) -> None:
    """Against the best epoch (0.70 clean, 0.40 robust, three times the passes), then against the last."""
    robust = ours[1] if isinstance(ours[1], tuple) else (ours[1],) * 3
    mine = [network("aft", ours[0], r, start="natural", spent=6000.0, before=before, seed=s)
            for s, r in zip(SEEDS, robust, strict=True)]
    result = judged("AFT-C1", [*mine, *at((0.70, 0.40), last)])
    assert result["verdict"] == expected and result["why"].startswith("of 2 intervals ")
    assert [(e.metric, e.where) for e in result["effects"][:4]] == [
        (metric, where) for where in ("best epoch", "last epoch") for metric in ("clean", "robust")]
    assert str(result["effects"][0]).endswith("(best epoch)") and result["effects"][4].metric == "passes"
    assert all((e.seeds, e.images) == (3, N) for e in result["effects"][:4])
    assert result["why"].endswith("against the last epoch of the rival") == all(e.low > 0 for e in result["effects"][2:4])


@pytest.mark.parametrize(("ours", "spent", "aft_spent", "before", "expected"), [
    ((0.75, 0.402), (81, 81, 81), 10, 60, REPRODUCED),
    ((0.75, 0.402), (80, 80, 80), 10, 60, PARTLY),  # 8 is not above 8
    ((0.75, 0.402), (81, 90, 99), 10, 60, INCONCLUSIVE),  # the interval reaches below 8, and with the start below 1
    ((0.75, 0.402), (70, 70, 70), 10, 60, NOT),  # as much as with the start included
    ((0.75, 0.37), (90, 90, 90), 10, 0, NOT),  # three points less robust
    ((0.75, 0.389), (90, 90, 90), 10, 0, INCONCLUSIVE),  # about one
    ((0.70, 0.40), (90, 90, 90), 10, 0, INCONCLUSIVE),  # clean is not higher
])
def test_cheaper(ours, spent, aft_spent, before, expected) -> None:
    """More than eight times the passes in one accounting, and accuracy within a point; more passes in both is partly."""
    found = aft(*ours, spent=aft_spent, before=before)
    found += [network("at_scratch", 0.70, 0.40, at="best", spent=s, seed=seed) for seed, s in zip(SEEDS, spent, strict=True)]
    result = judged("AFT-C2", found)
    assert result["verdict"] == expected
    given, whole = result["effects"][:2]
    assert given.value == pytest.approx(np.prod(spent) ** (1 / 3) / aft_spent)
    assert whole.value == pytest.approx(np.prod(spent) ** (1 / 3) / (aft_spent + before))
    assert (given.low < given.value) == (len(set(spent)) > 1)
    unknown = [*aft(*ours, spent=aft_spent, before=None), *found[3:]]  # what the start took
    assert judged("AFT-C2", unknown)["verdict"] == NOT_TESTED


@pytest.mark.parametrize(("others", "expected"), [
    ((0.45, 0.45, 0.45, 0.46), REPRODUCED),
    ((0.45, 0.45, 0.45, 0.499), PARTLY),  # above one-cycle, but unclear
    ((0.45, 0.45, 0.501, 0.501), PARTLY),  # about level with two
    ((0.45, 0.45, 0.45, 0.55), NOT),  # below one-cycle
    ((0.499, 0.45, 0.45, 0.45), NOT),  # above constant by no more than 0.8 points
    ((0.45, 0.55, 0.45, 0.45), NOT),
    ((0.45, (0.42, 0.48, 0.54), 0.45, 0.45), INCONCLUSIVE),
])
def test_best_schedule(others, expected) -> None:
    """Clearly above constant and piecewise; clearly above the other two, or at least not behind."""
    names = ("aft_constant", "aft_piecewise", "aft_cosine", "aft_one_cycle")
    found = [network(name, 0.7, share[s] if isinstance(share, tuple) else share, part="schedule", start="natural", seed=s)
             for name, share in zip(names, others, strict=True) for s in SEEDS]
    result = judged("AFT-C3b", [*aft(0.7, 0.5), *found])
    assert result["verdict"] == expected and {e.level for e in result["effects"]} == {0.975}
    assert judged("AFT-C3b", [*aft(0.7, 0.5), *found[:-1]])["verdict"] == NOT_TESTED  # two seeds of the last


@pytest.mark.parametrize(("public", "own", "random", "start", "expected"), [
    (0.40, 0.40, 0.30, 0.02, REPRODUCED), (0.39, 0.40, 0.30, 0.049, REPRODUCED),
    (0.37, 0.40, 0.30, 0.02, PARTLY),  # three points behind, more or less
    (0.40, 0.40, 0.40, 0.02, NOT),  # a natural start is no better than a random one
    (0.30, 0.40, 0.30, 0.02, PARTLY),  # another network gains less, yet gains, and ours beats a random start
    (0.02, 0.40, 0.30, 0.02, NOT),  # nothing gained
    (0.40, 0.40, (0.30, 0.38, 0.46), 0.02, INCONCLUSIVE),
    (0.40, 0.40, 0.30, 0.05, NOT_TESTED),  # a start was not a natural network
])
def test_any_start(public, own, random, start, expected) -> None:
    """The public network ends within three points of our own, ours above a random start; both natural ones began below 5 %."""
    found = [*aft(0.7, own), *aft(0.9, 0.01, at="start"), *every("aft_public", 0.7, public, start="public", before=None),
             *every("aft_public", 0.9, start, at="start", start="public", before=None),
             *(network("aft_random", 0.6, random[s] if isinstance(random, tuple) else random, seed=s) for s in SEEDS)]
    result = judged("AFT-C4", found)
    assert result["verdict"] == expected and f"before at most {100 * start:.1f} %" in result["why"]
    gained = result["effects"][2] if result["effects"] else result["detail"][2]
    assert str(gained).startswith("AFT, public start, PGD-20 on CIFAR-10") and gained.where == "after minus before"
    two = [n for n in found if (n.at, n.spec.method.name, n.spec.seed) != ("start", "aft_public", 2)]
    assert judged("AFT-C4", two)["verdict"] == NOT_TESTED


@pytest.mark.parametrize("claim", LEDGER)
def test_too_few_seeds(claim: str) -> None:
    """No runs, or two seeds, are no verdict; what two seeds show is kept as detail."""
    assert judged(claim, [])["why"].endswith("finished of all of it: none")
    methods = {name for pair in LEDGER[claim].rule.pairs for name in pair}
    found = [n for name in methods for place in ("start", "best", "last")
             for n in every(name, 0.7, 0.01 if place == "start" else 0.5, at=place, seeds=SEEDS[:2])]
    result = judged(claim, found)
    assert (result["verdict"], result["effects"]) == (NOT_TESTED, ()) and result["detail"]
    assert "3 seeds of all that is compared are needed on 1 data set" in result["why"] and "2 on CIFAR-10" in result["why"]


@pytest.mark.parametrize(("claim", "concerned"), [("AFT-C1", {("main", "aft"), ("main", "at_scratch")}),
                                                  ("AFT-C3b", {("main", "aft"), ("schedule", "aft_cosine")})])
def test_runs_that_a_rule_compares(claim: str, concerned: set) -> None:
    """Its methods in the main part, of C3b also the schedules; neither fractions, widths, candidates nor start networks."""
    jobs = [network(name, 0.5, part=part).job for part, name in (
        ("main", "aft"), ("main", "at_scratch"), ("schedule", "aft_cosine"), ("fraction", "aft"), ("width", "aft"))]
    jobs += [Job("aft_tuning", spec("aft"), ()), Job("aft", spec("natural"), (), labels=(("part", "start"), ("start", "random")))]
    found = {(dict(j.labels)["part"], j.spec.method.name) for j in jobs if kinds.concerns(j, LEDGER[claim].rule)}
    assert found == concerned


def test_ledger_from_a_store(store) -> None:
    """A whole store: runs that began under the rule are judged, others are counted apart."""
    masks, jobs = {}, {}
    for n in [*aft(0.8, 0.5), *at((0.7, 0.4), (0.72, 0.3))]:
        masks[n.spec] = masks.get(n.spec, {}) | n.masks
        jobs[n.spec] = dataclasses.replace(n.job, evals=tuple(masks[n.spec]))
    for run in masks:
        finish(store, run, epochs(10, 600, [0.1] * 4 + [0.4] + [0.2] * 5), masks[run], rules=rules.stamps())
        if run.source:
            finish(store, run.source, epochs(3, 100))
    found, cheap = (ledger.judge(LEDGER[name], store, list(jobs.values())) for name in ("AFT-C1", "AFT-C2"))
    assert (found.verdict, len(found.runs), found.not_counted) == (REPRODUCED, 6, 0)
    first, second = ledger.to_table([found, cheap]).to_dict("records")
    assert first["n"] == "data sets: 1, seeds: 3, images: 1,000" and "+10.0 [" in first["effect"]
    assert second["verdict"] == NOT and "passes on CIFAR-10: 0.50 [0.50, 0.50] at 97.5 % (start given)" in second["effect"]
    finish(store, run, epochs(10, 600), masks[run])
    found = ledger.judge(LEDGER["AFT-C1"], store, list(jobs.values()))
    assert (found.verdict, found.not_counted) == (NOT_TESTED, 1)
