"""Differences between methods from hand-made masks: by seed, over seeds, over data sets."""

import dataclasses
import math

import numpy as np
import pytest

from tests import store_made
from twinslib.base.stats import paired_difference
from twinslib.evidence import pairs
from twinslib.evidence.frame import mean_interval
from twinslib.specs.jobs import Job
from twinslib.specs.measure import EvalSpec
from twinslib.specs.method import METHODS, method
from twinslib.specs.run import DataSpec, ModelSpec, OptimSpec, RunSpec

CLEAN = EvalSpec(kind="clean", images=10)
PGD = EvalSpec(kind="pgd", images=10, eps=8 / 255)
PART = EvalSpec(kind="autoattack", images=8, eps=8 / 255, attacks=("apgd-ce", "apgd-t"))
SOURCE = RunSpec(data=DataSpec(name="tinyimagenet32"), model=ModelSpec(arch="tiny_resnet"), method=method("at"),
                 optim=OptimSpec())
A = [1, 1, 1, 1, 1, 1, 1, 0, 0, 0]
B = [1, 1, 1, 1, 0, 0, 1, 1, 0, 0]
PAIR = [("twins_at", "at")]


def job(dataset="cifar10", name="at", seed=0, evals=(CLEAN, PGD), settled=True, **data):
    spec = RunSpec(data=DataSpec(name=dataset, **data), model=ModelSpec(arch="tiny_resnet"), source=SOURCE, seed=seed,
                   method=dataclasses.replace(METHODS["twins_at"], name=name) if "lambda" in name else method(name),
                   optim=OptimSpec())
    return Job("transfer", spec, tuple(evals), settled=settled)


def finish(store, job, masks):
    store_made.finish(store, job.spec, masks, split="same")


def pair(store, dataset="cifar10", seed=0, a=A, b=B, evals=(CLEAN, PGD)):
    """A finished TWINS-AT run with mask a and a finished AT run with mask b."""
    jobs = [job(dataset, "at", seed, evals), job(dataset, "twins_at", seed, evals)]
    for j, mask in zip(jobs, (b, a), strict=True):
        finish(store, j, dict.fromkeys(evals, mask))
    return jobs


# -- what is compared -------------------------------------------------------------------------------------------------
def test_comparisons():
    """Main pairs, then baselines, then controls, then weights; only where both are there, whatever the order of jobs."""
    names = ["twins_at_lambda3", "twins_at_lambda0.1", "at_split", "joint_uot", "at_natural", "trades_beta3", "twins_trades",
             "twins_at", "frozen_at", "at", "natural"]
    assert pairs.comparisons([job(name=name) for name in names]) == [
        ("twins_at", "at"), ("joint_uot", "at"), ("frozen_at", "at"), ("at_natural", "at"), ("twins_at", "at_split"),
        ("twins_at", "frozen_at"), ("twins_trades", "trades_beta3"), ("twins_at_lambda3", "twins_at"),
        ("twins_at_lambda0.1", "twins_at")]
    assert pairs.comparisons([job(name=name) for name in ("twins_at_lambda3", "at", "trades", "natural")]) == []


# -- seed by seed -----------------------------------------------------------------------------------------------------
def test_paired_rows(store):
    """Method minus baseline on the same images, with the interval of `stats`; the order of jobs does not matter."""
    jobs = pair(store)
    out = pairs.paired_rows(store, jobs)
    expected = paired_difference(np.array(A, bool), np.array(B, bool))
    assert out["method"].tolist() == ["twins_at"] * 2 and out["attack"].tolist() == ["none", "pgd20"]
    for found in out.itertuples():
        assert (found.value, found.low, found.high, found.n) == expected[:4]
        assert found.value == pytest.approx(0.1)
    assert pairs.paired_rows(store, jobs[::-1]).equals(out)


# -- over seeds and data sets -----------------------------------------------------------------------------------------
def lines_of(found, **where):
    for column, value in where.items():
        found = found[found[column] == value]
    return list(found.itertuples())


def test_only_finished_seeds_count(store):
    """A seed without masks is left out of the interval and of the number of seeds."""
    jobs = [*pair(store), *pair(store, seed=1, a=B, b=A), job(seed=2), job(name="twins_at", seed=2)]
    finish(store, jobs[4], {CLEAN: A, PGD: A})
    for line in pairs.differences(store, jobs, PAIR).itertuples():
        assert (line.seeds, line.value) == (2, 0.0)
    by_seed = pairs.paired_rows(store, jobs)
    assert by_seed["seed"].tolist() == ["0", "0", "1", "1", "2", "2"] and set(by_seed["absent"]) == {"", "not run"}


def shifted(gain, images=400, lost=0):
    """A mask that has `gain` more right than `shifted(0)`, `lost` images of which it loses."""
    mask = np.zeros(images, bool)
    mask[lost:images // 2 + lost + gain] = True
    return mask


def gains(store, sizes, lost=5):
    """Jobs of finished pairs with these gains, in images of 400: (dataset, evaluation) -> gain, one seed."""
    jobs = []
    for dataset in dict.fromkeys(d for d, _ in sizes):
        evals = [e for d, e in sizes if d == dataset]
        jobs += [job(dataset, name, evals=evals) for name in ("at", "twins_at")]
        finish(store, jobs[-2], {e: shifted(0) for e in evals})
        finish(store, jobs[-1], {e: shifted(sizes[dataset, e], lost=lost) for e in evals})
    return jobs


WIDE = EvalSpec(kind="clean", images=400)
ATTACKED = EvalSpec(kind="pgd", images=400, eps=8 / 255)


def test_mean_over_data_sets(store):
    """The line "mean": Student's interval by hand, 3 points +- 4.303 * sqrt(3.0625) / sqrt(3); no p-values."""
    jobs = gains(store, {("cifar10", WIDE): 5, ("cub64", WIDE): 12, ("dogs64", WIDE): 19})
    *_, mean = pairs.differences(store, jobs, PAIR).itertuples()
    half = 4.302653 * 0.0175 / math.sqrt(3)
    assert (mean.dataset, mean.n, mean.seeds) == ("mean", 400, 1)
    assert (mean.value, mean.low, mean.high) == pytest.approx((0.03, 0.03 - half, 0.03 + half), abs=1e-7)
    assert math.isnan(mean.p_value) and math.isnan(mean.p_holm)


def test_mean_keeps_the_noise_of_its_parts():
    """Three data sets that agree by chance are not certain: 2 points +- (root of 3 times 1.2 squared) / 3 below, 1.5 above."""
    low, high = math.sqrt(3) * 0.012 / 3, math.sqrt(3) * 0.015 / 3
    assert mean_interval([(0.02, 0.008, 0.035)] * 3) == pytest.approx((0.02, 0.02 - low, 0.02 + high))
    apart = mean_interval([(0.0, -0.001, 0.001), (0.02, 0.019, 0.021), (0.04, 0.039, 0.041)])
    assert apart == pytest.approx((0.02, 0.02 - 4.302653 * 0.02 / math.sqrt(3), 0.02 + 4.302653 * 0.02 / math.sqrt(3)), abs=1e-7)


def test_mean_needs_three_finished_data_sets(store):
    """No line of means over two data sets, or over three of which one is not finished."""
    jobs = gains(store, {("cifar10", WIDE): 5, ("dogs64", WIDE): 6})
    assert pairs.differences(store, jobs, PAIR)["dataset"].tolist() == ["cifar10", "dogs64"]
    jobs += [job("cub64", name, evals=[WIDE]) for name in ("at", "twins_at")]
    found = pairs.differences(store, jobs, PAIR)
    assert found["dataset"].tolist() == ["cifar10", "dogs64", "cub64"] and found["seeds"].tolist() == [1, 1, 0]
    assert found.iloc[2][["value", "low", "high", "p_value", "p_holm"]].isna().all()


def test_holm_over_data_sets(store):
    """Corrected over the finished data sets of one comparison and measurement, by hand: times 3, 2, 1, monotone, at most 1."""
    sizes = {"cifar10": 12, "cub64": 14, "dogs64": 2}
    jobs = gains(store, {(d, e): g for d, g in sizes.items() for e in (WIDE, ATTACKED)})
    jobs += [job("cifar100", name, evals=[WIDE, ATTACKED]) for name in ("at", "twins_at")]
    found = pairs.differences(store, jobs, [*PAIR, ("at", "twins_at")])
    for method_, measured in (("twins_at", "clean_acc"), ("twins_at", "robust_acc"), ("at", "clean_acc")):
        at = {line.dataset: line for line in lines_of(found, method=method_, metric=measured)}
        p = {d: paired_difference(shifted(g, lost=5), shifted(0)).p_value for d, g in sizes.items()}
        assert p["cub64"] < p["cifar10"] < 0.05 < p["dogs64"]
        assert at["cub64"].p_holm == pytest.approx(3 * p["cub64"])
        assert at["cifar10"].p_holm == pytest.approx(2 * p["cifar10"])
        assert at["dogs64"].p_holm == pytest.approx(p["dogs64"]) and math.isnan(at["cifar100"].p_holm)
