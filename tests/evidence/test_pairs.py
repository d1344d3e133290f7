"""Differences between methods from hand-made masks: by seed, over seeds, over data sets."""

import math

import pytest

from tests.claims.made import CLEAN, DATASETS, by_dataset, fill, job, mask
from twinslib.base.stats import paired_difference
from twinslib.evidence import pairs
from twinslib.evidence.frame import mean_interval

PAIR = [("twins_at", "at")]


def made(store, gains, datasets=DATASETS):
    """Jobs of finished pairs of one seed, with these gains in images (of 1,000), five images lost; clean and attacked."""
    level = by_dataset(*[[(g, 5) for g in gains]] * 2, datasets)
    return fill(store, None, {"at": 0, "twins_at": level}, datasets, [0], None)


def test_paired_rows(store):
    """Method minus baseline on the same images, with the interval of `stats`; the order of jobs does not matter."""
    jobs = made(store, [100], ["cifar10"])
    out = pairs.paired_rows(store, jobs)
    expected = paired_difference(mask(100, 5), mask())
    assert out["method"].tolist() == ["twins_at"] * 2 and out["attack"].tolist() == ["none", "pgd20"]
    for found in out.itertuples():
        assert (found.value, found.low, found.high, found.n) == expected[:4] and found.value == pytest.approx(0.1)
    assert pairs.paired_rows(store, jobs[::-1]).equals(out)


def test_only_finished_seeds_count(store):
    """A seed without masks is left out of the interval and of the number of seeds."""
    jobs = [j for seed, gain in enumerate((50, -50))
            for j in fill(store, None, {"at": 0, "twins_at": gain}, ["cifar10"], [seed], None)]
    jobs += [*fill(store, None, {"at": 0}, ["cifar10"], [2], None), job(name="twins_at", seed=2)]
    for line in pairs.differences(store, jobs, PAIR).itertuples():
        assert (line.seeds, line.value) == (2, 0.0)
    by_seed = pairs.paired_rows(store, jobs)
    assert by_seed["seed"].tolist() == ["0", "0", "1", "1", "2", "2"] and set(by_seed["absent"]) == {"", "not run"}


def test_mean_keeps_the_noise_of_its_parts():
    """Three data sets that agree by chance are not certain: 2 points +- (root of 3 times 1.2 squared) / 3 below, 1.5 above."""
    low, high = math.sqrt(3) * 0.012 / 3, math.sqrt(3) * 0.015 / 3
    assert mean_interval([(0.02, 0.008, 0.035)] * 3) == pytest.approx((0.02, 0.02 - low, 0.02 + high))
    apart = mean_interval([(0.0, -0.001, 0.001), (0.02, 0.019, 0.021), (0.04, 0.039, 0.041)])
    assert apart == pytest.approx((0.02, 0.02 - 4.302653 * 0.02 / math.sqrt(3), 0.02 + 4.302653 * 0.02 / math.sqrt(3)), abs=1e-7)


def test_mean_needs_three_finished_data_sets(store):
    """No line of means over two data sets, or over three of which one is not finished."""
    jobs = made(store, (5, 6), DATASETS[:2])
    assert set(pairs.differences(store, jobs, PAIR)["dataset"]) == set(DATASETS[:2])
    jobs += [job("cub64", name, evals=[CLEAN]) for name in ("at", "twins_at")]
    found = pairs.differences(store, jobs, PAIR)
    assert set(found["dataset"]) == set(DATASETS) and found["seeds"].tolist() == [1, 1, 0, 1, 1]
    assert found.iloc[2][["value", "low", "high", "p_value", "p_holm"]].isna().all()


def test_holm_over_data_sets(store):
    """Corrected over the finished data sets of one comparison and measurement, by hand: times 3, 2, 1, monotone, at most 1."""
    gains = dict(zip(DATASETS, (12, 14, 2), strict=True))
    jobs = [*made(store, gains.values()), *(job("cifar100", name) for name in ("at", "twins_at"))]
    found = pairs.differences(store, jobs, [*PAIR, ("at", "twins_at")])
    p = {d: paired_difference(mask(g, 5), mask()).p_value for d, g in gains.items()}
    assert p["caltech64"] < p["cifar10"] < 0.05 < p["cub64"]
    for key, lines in found.groupby(["method", "metric"]):
        holm = lines.set_index("dataset")["p_holm"]
        assert holm[[*DATASETS]].tolist() == pytest.approx([2 * p["cifar10"], 3 * p["caltech64"], p["cub64"]]), key
        assert math.isnan(holm["cifar100"])
