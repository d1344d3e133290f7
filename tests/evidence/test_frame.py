"""The frame of evidence: which rows are compared, by which attack, what a contrast of them is; differences between methods."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.claims.made import CLEAN, DATASETS, by_dataset, fill, job, mask
from twinslib.base import stats
from twinslib.base.stats import paired_difference
from twinslib.evidence import pairs
from twinslib.evidence.frame import Row, contrast, done, mean_interval, most_images, paired, strongest, where

SHAPES = st.tuples(st.integers(1, 3), st.integers(2, 12), st.integers(0, 2**32 - 1))  # seeds, images, of the generator


def row(method="at", seed=0, images=10, attack="pgd20", hits=True, metric="robust", **more) -> Row:
    return Row("transfer", job("cifar10", method, seed).spec, more.pop("labels", ()), metric,
               np.ones(images, bool) if hits else None, attack, "linf", 8 / 255, images=images, **more)


@settings(deadline=None, max_examples=40)
@given(SHAPES)
def test_contrast(shape) -> None:
    """Of masks as `stats` says, of numbers per image as their mean."""
    seeds, images, number = shape
    rng = np.random.default_rng(number)
    a, b = rng.random((2, seeds, images)) < 0.5
    found, turned = contrast(a, b), contrast(b, a)
    expected = stats.crossed_difference(a, b) if seeds > 1 else stats.paired_difference(a[0], b[0])
    assert found == (images, seeds, *expected[:3], expected.p_value)
    assert (turned.value, turned.low, turned.high) == pytest.approx((-found.value, -found.high, -found.low), abs=1e-6)
    longer = [np.concatenate([mask, rng.random(number % 5) < 0.5]) for mask in a]
    assert contrast(longer, b) == found
    assert contrast(a.astype(float), b)[:5] == (images, seeds, *stats.crossed_mean(a.astype(float) - b)[:3])


@settings(deadline=None, max_examples=40)
@given(SHAPES)
def test_contrast_of_numbers(shape) -> None:
    """Student's interval over seeds, none for one seed; ratios are geometric means, whose inverse is that of the inverse."""
    seeds, _, number = shape
    a, b = np.random.default_rng(number).uniform(1, 2, (2, seeds))
    found, ratio, inverse = contrast(a, b, over="seeds"), contrast(a, b, over="ratios"), contrast(b, a, over="ratios")
    assert found.value == pytest.approx(np.mean(a - b)) and ratio.value == pytest.approx(np.exp(np.mean(np.log(a / b))))
    assert ratio.value * inverse.value == pytest.approx(1) and (found.images, found.seeds) == (0, seeds)
    assert math.isnan(found.low) if seeds == 1 else ratio.low * inverse.high == pytest.approx(1)


def test_nothing_to_contrast() -> None:
    """No seed, no number."""
    found = contrast([], [])
    assert (found.images, found.seeds) == (0, 0) and math.isnan(found.value)


def test_what_is_paired() -> None:
    """Same seed, attack, radius and learning rate; of each network what is done, on the most images; other images are refused."""
    ours = [row(images=5), row(), row(images=20, hits=False), row(seed=1), row(attack="pgd10"),
            row(labels=(("rate", "0.1"),))]
    theirs = [row("twins_at", images=7), row("twins_at", seed=2), row("twins_at", labels=(("rate", "0.2"),))]
    ((a, b),) = paired(ours, theirs)
    assert (a.images, b.images, a.seed, a.attack, a.rate) == (10, 7, 0, "pgd20", 0.0)
    assert done(paired([row(hits=False)], theirs)) == [] and [r.images for r in most_images(ours[:3])] == [10]
    moved = dataclasses.replace(theirs[0].spec.data, split_seed=1)
    other = dataclasses.replace(theirs[0], spec=dataclasses.replace(theirs[0].spec, data=moved))
    with pytest.raises(ValueError, match="expected at and twins_at on the same test images of cifar10"):
        paired(ours, [other])
    with pytest.raises(ValueError, match="got two for cifar10, twins_at, 0"):
        paired(ours, [theirs[0], other])


@pytest.mark.parametrize(("attacks", "used"), [
    ({"pgd20": 3, "apgd-ce": 3}, "apgd-ce"), ({"pgd20": 3, "apgd-ce": 2}, "pgd20"), ({"pgd10x5": 2, "pgd20": 2}, "pgd10x5"),
    ({"apgd-ce+apgd-t+fab-t+square": 1, "apgd-ce+apgd-t": 1}, "apgd-ce+apgd-t+fab-t+square")])
def test_strongest_attack_that_most_have(attacks, used) -> None:
    """More seeds first, then strength (`specs.strength`)."""
    both = [(row(seed=s, attack=name), row("twins_at", seed=s, attack=name)) for name, k in attacks.items() for s in range(k)]
    assert {a.attack for a, _ in strongest(both)} == {used} and strongest([]) == []


def test_cells_are_methods() -> None:
    """A network of the grid of smoothing is known by its cell; rows are found by any of their labels."""
    labels = (("pretraining", "mixed"), ("finetuning", "clean"), ("norm", "group"))
    rows = [row(labels=labels), row()]
    assert [r.method for r in rows] == ["mixed/clean/group", "at"] and where(rows, method="at", seed=0) == rows[1:]


PAIR = [("twins_at", "at")]


def pairs_made(store, gains, datasets=DATASETS):
    """Jobs of finished pairs of one seed, with these gains in images (of 1,000), five images lost; clean and attacked."""
    level = by_dataset(*[[(g, 5) for g in gains]] * 2, datasets)
    return fill(store, None, {"at": 0, "twins_at": level}, datasets, [0], None)


def test_paired_rows(store):
    """Method minus baseline on the same images, with the interval of `stats`; the order of jobs does not matter."""
    jobs = pairs_made(store, [100], ["cifar10"])
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
    jobs = pairs_made(store, (5, 6), DATASETS[:2])
    assert set(pairs.differences(store, jobs, PAIR)["dataset"]) == set(DATASETS[:2])
    jobs += [job("cub64", name, evals=[CLEAN]) for name in ("at", "twins_at")]
    found = pairs.differences(store, jobs, PAIR)
    assert set(found["dataset"]) == set(DATASETS) and found["seeds"].tolist() == [1, 1, 0, 1, 1]
    assert found.iloc[2][["value", "low", "high", "p_value", "p_holm"]].isna().all()


def test_holm_over_data_sets(store):
    """Corrected over the finished data sets of one comparison and measurement, by hand: times 3, 2, 1, monotone, at most 1."""
    gains = dict(zip(DATASETS, (12, 14, 2), strict=True))
    jobs = [*pairs_made(store, gains.values()), *(job("cifar100", name) for name in ("at", "twins_at"))]
    found = pairs.differences(store, jobs, [*PAIR, ("at", "twins_at")])
    p = {d: paired_difference(mask(g, 5), mask()).p_value for d, g in gains.items()}
    assert p["caltech64"] < p["cifar10"] < 0.05 < p["cub64"]
    for key, lines in found.groupby(["method", "metric"]):
        holm = lines.set_index("dataset")["p_holm"]
        assert holm[[*DATASETS]].tolist() == pytest.approx([2 * p["cifar10"], 3 * p["caltech64"], p["cub64"]]), key
        assert math.isnan(holm["cifar100"])
