"""The frame of evidence: which rows are compared, by which attack, and what a contrast of them is."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.claims.test_ledger import job
from twinslib.base import stats
from twinslib.evidence.frame import Row, contrast, done, most_images, paired, strongest, where

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
