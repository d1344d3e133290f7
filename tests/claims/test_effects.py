"""How bounds and intervals become a verdict: by table, for every rule of the ledger, and in the committed results."""

import dataclasses
import itertools
import json
import math
from pathlib import Path

import pytest

from twinslib.base import stats
from twinslib.claims import ledger, verdict
from twinslib.claims.effects import Effect
from twinslib.claims.verdict import CREDIT, INCONCLUSIVE, NOT, NOT_TESTED, PARTLY, REPRODUCED, VERDICTS, Evidence, decide, judge
from twinslib.evidence import pairs
from twinslib.store.store import Store
from twinslib.studies import plan, rules
from twinslib.studies.rules import Bound, Robust, Rule

LEDGER = {c.id: c.rule for c in rules.claims() if c.rule.measure != "shown"}
SMALL = Path(__file__).parents[2] / "results" / "small" / "claims.json"
ASKED = ((Bound(of=("clean",), above=0.0, claimed=0.02), Bound(of=("robust",), above=0.0, claimed=0.01)),)
RULE = Rule(version=1, measure="gain", text="words", pairs=(("twins_at", "at"),), metrics=("clean", "robust"), chance=0.05,
            robust=Robust(threat="linf", eps=8 / 255, min_images=10), asked=ASKED,
            partly=((Bound(of=("clean",), above=0.0), Bound(of=("robust",), above=-0.01, reach=0.0)),))


def effect(low: float, high: float, metric: str = "clean", **more: object) -> Effect:
    return Effect(**{"method": "twins_at", "baseline": "at", "metric": metric, "attack": "none", "dataset": "mean", "images": 10,
                     "seeds": 3, "value": (low + high) / 2, "low": low, "high": high} | more)


@pytest.mark.parametrize(("made", "text"), [
    (effect(-0.02, 0.032, "gap", dataset="cub64"), "TWINS-AT - AT, gap on CUB-200 (2010): +0.6 [-2.0, +3.2]"),
    (effect(-0.02, 0.032, "gap", method="at", level=0.9), "AT, gap: +0.6 [-2.0, +3.2] at 90 %"),
    (effect(-0.02, 0.032, "robust", attack="pgd10"), "TWINS-AT - AT, PGD-10: +0.6 [-2.0, +3.2]"),
    (effect(0.996, 12, "angle", unit="times", value=1.2345), "TWINS-AT / AT, angle per step: 1.23 [1.00, 12.00]"),
    (effect(-0.5, 0.499, "loss", unit="nats"), "TWINS-AT - AT, PGD loss on training images: +0.00 [-0.50, +0.50] nats"),
    (effect(math.nan, math.nan, "loss", unit="nats", value=0.25), "TWINS-AT - AT, PGD loss on training images: +0.25 nats"),
])
def test_effect_as_text(made, text):
    """Points with one digit, ratios without a sign, losses in nats, no interval where there is none, no negative zero."""
    assert str(made) == text


@pytest.mark.parametrize(("clean", "robust", "expected"), [
    ((0.01, 0.05), (0.001, 0.002), REPRODUCED),  # above 0, if less than claimed
    ((0.01, 0.05), (-0.005, 0.004), PARTLY), ((0.01, 0.05), (-0.02, 0.03), INCONCLUSIVE),
    ((0.01, 0.05), (-0.008, -0.001), NOT),  # does not reach 0
    ((-0.01, 0.03), (-0.005, 0.02), INCONCLUSIVE), ((-0.01, 0.03), (-0.02, 0.009), NOT), ((-0.01, 0.019), (0.001, 0.05), NOT),
    ((0.0, 0.05), (0.01, 0.05), INCONCLUSIVE),  # 0 is not above 0
    ((0.001, 0.01), (-0.02, 0.03), INCONCLUSIVE),  # less than claimed, but not nothing
])
def test_decide(clean, robust, expected) -> None:
    """All bounds of one alternative; an interval below what is claimed and not above what is asked refutes."""
    assert decide(RULE, [effect(*clean), effect(*robust, "robust")]) == expected
    turned = [effect(-clean[1], -clean[0]), effect(-robust[1], -robust[0], "robust")]
    assert decide(dataclasses.replace(RULE, lower=True), turned) == expected


def test_alternatives_and_conditions() -> None:
    """One alternative is enough, each must be refuted; a verdict whose condition fails is not given; no effect meets no bound."""
    either = dataclasses.replace(RULE, asked=tuple((b,) for b in ASKED[0]), partly=())
    assert decide(either, [effect(-0.1, -0.05), effect(0.01, 0.02, "robust")]) == REPRODUCED
    assert decide(either, [effect(-0.1, -0.05), effect(-0.1, 0.02, "robust")]) == INCONCLUSIVE
    assert decide(either, [effect(-0.1, -0.05), effect(-0.1, 0.0, "robust")]) == NOT
    good = [effect(0.01, 0.05), effect(0.01, 0.05, "robust")]
    assert decide(RULE, good, {REPRODUCED: False}) == PARTLY
    assert decide(RULE, good, {REPRODUCED: False, PARTLY: False}) == INCONCLUSIVE == decide(RULE, [])
    assert decide(dataclasses.replace(RULE, asked=(), partly=()), good) == INCONCLUSIVE


def test_credit_is_the_lesser_of_two() -> None:
    """What is granted, or denied, without the data sets near chance must be with them; nothing else changes."""
    for a, b in itertools.product(VERDICTS, VERDICTS):
        found = verdict.lesser(a, b)
        assert CREDIT.get(found, 0) == min(CREDIT.get(a, 0), CREDIT.get(b, 0)) and (found == a or a in CREDIT)
    good, bad = [(effect(*x), effect(*x, "robust")) for x in ((0.03, 0.05), (-0.05, -0.03))]
    assert judge(RULE, Evidence(good)) == REPRODUCED and judge(RULE, Evidence(good, everywhere=bad)) == INCONCLUSIVE
    assert judge(RULE, Evidence(bad, everywhere=good)) == INCONCLUSIVE and judge(RULE, Evidence(bad, everywhere=bad)) == NOT
    assert judge(RULE, Evidence(good, lack="no runs")) == NOT_TESTED


def test_near_chance() -> None:
    """Within the distance of guessing with one of both networks; unknown accuracies are not."""
    e = effect(0.0, 0.1, ours=0.3, theirs=0.149, chance=0.1)
    assert e.near_chance(0.05) and not e.near_chance(0.04) and not effect(0.0, 0.1).near_chance(0.5)
    other = effect(0.0, 0.1, "robust", ours=0.5, theirs=0.5, chance=0.1)
    assert verdict.apart([e, other], RULE) == [e, other]  # a data set, not a measure
    assert verdict.apart([other, dataclasses.replace(e, dataset="cub64")], RULE) == [dataclasses.replace(e, dataset="cub64")]


def test_levels_of_intervals_that_decide_together() -> None:
    """Of k intervals one misses on one side with at most 5 %."""
    assert verdict.level(1) == verdict.level(2) == pytest.approx(0.95)
    assert all(k * (1 - verdict.level(k)) / 2 <= 0.05 + 1e-12 for k in range(1, 30))


def named(rule: Rule) -> list[Effect]:
    """One effect for all that the bounds of a rule name, each by itself."""
    out = []
    for pair, metric, part in itertools.product(rule.pairs, rule.metrics, ("", *rules.PARTS)):
        e = effect(0.0, 0.0, metric, method=pair[0], baseline=pair[1], part=part)
        bounds = [b for clause in (*rule.asked, *rule.partly) for b in clause if verdict.names(b, e)]
        if any(part in b.of for b in bounds) if part else bounds and all(not set(b.of) & set(rules.PARTS) for b in bounds):
            out.append(e)
    return out


@pytest.mark.parametrize("name", [n for n, r in LEDGER.items() if r.measure != "spread"])
def test_every_verdict_can_be_reached(name) -> None:
    """Intervals that meet every bound, only those of "partly", none, or exclude the claim lead to four verdicts."""
    rule, made = LEDGER[name], named(LEDGER[name])
    assert made

    def shifted(choose) -> list[Effect]:
        ends = [choose(e) for e in made]
        return [dataclasses.replace(e, low=-b if rule.lower else a, high=-a if rule.lower else b)
                for e, (a, b) in zip(made, ends, strict=True)]

    assert decide(rule, shifted(lambda e: (100.0, 101.0))) == REPRODUCED
    assert decide(rule, shifted(lambda e: (-101.0, -100.0))) == NOT
    assert decide(rule, shifted(lambda e: (-100.0, 100.0))) == INCONCLUSIVE
    reached = set()
    for clause in rule.partly:  # just what it asks for, and nothing is known of the rest
        def just(e: Effect, clause=clause) -> tuple[float, float]:
            mine = [b.above for b in clause if verdict.names(b, e)]
            return (max(mine) + 1e-6, 99.0) if mine else (-99.0, 99.0)
        reached.add(decide(rule, shifted(just)))
    assert reached == ({PARTLY} if rule.partly else set())


def test_rules_name_what_would_refute_them() -> None:
    """An interval that meets a bound never excludes what is claimed, and the text says what leads to which verdict."""
    for name, rule in LEDGER.items():
        for b in (b for clause in rule.asked for b in clause):
            assert b.claimed is not None and b.claimed >= b.above, name
        words = rule.text if name != "C3" else rule.text + "Reproduced Not: Else inconclusive"  # as C2
        assert "Reproduced" in words and "Not:" in words and "lse inconclusive" in words
        assert ("Partly" in words) == bool(rule.partly) or name in ("C3", "C4")


def test_committed_verdicts_follow_from_their_effects() -> None:
    """Each verdict of `small` is one of the five, by the present rule."""
    stamps = rules.stamps()
    for name, record in json.loads(SMALL.read_text()).items():
        assert record["verdict"] in VERDICTS and record["stamp"] == stamps[name]
        for e in record["effects"] if record["verdict"] != NOT_TESTED else ():
            assert record["notebook"] == "01" or record["runs_before_the_rule"] == 0
            both = (e["ours"],) if "/" in e["method"] else (e["ours"], e["theirs"])  # that a rival certifies nothing is a result
            known = [x for x in both if x is not None]
            before = e["where"] == "after minus before"  # a start that is not robust is what is asked for
            assert not known or before or min(known) > e["chance"] + 0.02, (name, e)


def test_ledger_and_tables_stand_on_the_same_runs() -> None:
    """Table and figure of differences of `small` show the numbers of the ledger, with one correction."""
    stored, by_number = json.loads(SMALL.read_text()), {}
    store = Store("small", root=SMALL.parent)
    jobs = plan.plan("small", "01")[0](best=store.best)
    tunes = [job for job in jobs if job.study == "transfer" and not job.ship]
    standing = ledger.standing(store, jobs, "01")
    frame = pairs.differences(store, tunes, list(standing), standing)
    for line in frame[frame["attack"].isin(["none", "pgd20"]) & frame["eps"].isin([0.0, 8 / 255])].itertuples():
        by_number[line.method, line.baseline, "clean" if line.attack == "none" else "robust", line.dataset] = line
    for name in ("C2", "C4"):
        assert stored[name]["detail"] and stored[name]["verdict"] != NOT_TESTED
        for e in [e for e in (*stored[name]["detail"], *stored[name]["effects"]) if e["baseline"] == "at"]:
            line = by_number[e["method"], e["baseline"], e["metric"], e["dataset"]]
            assert (line.value, line.low, line.high) == pytest.approx((e["value"], e["low"], e["high"]), rel=1e-5), (name, e)
            assert (line.seeds, line.n) == (e["seeds"], e["images"])
        near = {d for (m, b, _, d), line in by_number.items() if line.near and (m, b) == ("twins_at", "at")}
        assert {e["dataset"] for e in stored[name]["flagged"]} == near
    assert pairs.left_out(standing) == {"cub64"} and pairs.left_out({}) == frozenset()  # which other comparisons leave out too
    other = pairs.differences(store, tunes, [("frozen_at", "at")], standing).query("attack == 'none'").set_index("dataset")
    assert other["near"].to_dict() == {"cifar10": False, "caltech64": False, "cub64": True, "mean": False, "mean of all": False}
    assert other.loc["mean", "value"] == pytest.approx(other.loc[["cifar10", "caltech64"], "value"].mean())
    family = [e for e in stored["C4"]["effects"]]
    assert [by_number["twins_at", "at", e["metric"], e["dataset"]].p_holm for e in family] == pytest.approx(
        stats.holm([e["p_value"] for e in family]), rel=1e-4)
