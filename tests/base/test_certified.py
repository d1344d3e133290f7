"""Tables from radii: counted by hand, errors against simulation, what is refused."""

import math

import numpy as np
import pytest
from scipy import stats

from twinslib.base.certified import ABSTAIN, Certified, average_radius, certified_accuracy


def rows(label, prediction, radius, **rest):
    n = len(label)
    return Certified(np.arange(n), np.array(label), np.array(prediction), np.array(radius, dtype=float), np.zeros(n), **rest)


TEN = rows([0, 1, 2, 3, 4, 5, 6, 7, 8, 9], [0, 1, 2, 3, 4, 5, 0, 0, -1, -1], [0.1, 0.25, 0.25, 0.5, 0.7, 1.0, 0.9, 0.3, 0, 0])


def test_accuracy_by_hand():
    """Right and far enough, of all images; a radius that is hit exactly counts."""
    points = certified_accuracy(TEN, [0, 0.25, 0.26, 0.5, 0.95, 1.01])
    assert [p.accuracy for p in points] == pytest.approx([0.6, 0.5, 0.3, 0.3, 0.1, 0.0])
    assert points[0].standard_error == pytest.approx(math.sqrt(0.6 * 0.4 / 10)) and points[0].n == 10
    reference = stats.binomtest(6, 10).proportion_ci(0.95, "exact")
    assert (points[0].low, points[0].high) == pytest.approx((reference.low, reference.high))
    assert certified_accuracy(TEN, [0], level=0.5)[0].low > points[0].low
    counted = [0.1, 0.25, 0.25, 0.5, 0.7, 1, 0, 0, 0, 0]
    assert average_radius(TEN) == pytest.approx((0.28, np.std(counted, ddof=1) / 10 ** 0.5, 10))
    assert math.isnan(average_radius(rows([1], [1], [0.5])).standard_error)


def test_standard_errors_are_those_of_new_images():
    """Over 3,000 draws of 200 images, the spread of both estimates is what one draw says, within 10 %."""
    rng, said, got = np.random.default_rng(0), [], []
    for _ in range(3000):
        prediction, radius = rng.integers(-1, 2, 200), rng.exponential(0.3, 200)
        c = rows(np.zeros(200, int), prediction, np.where(prediction == ABSTAIN, 0, radius))
        point, mean = certified_accuracy(c, [0.2])[0], average_radius(c)
        got.append((point.accuracy, mean.estimate))
        said.append((point.standard_error, mean.standard_error))
    assert np.std(got, axis=0) == pytest.approx(np.mean(said, axis=0), rel=0.1)


def test_refused():
    """No image, or an image without a label."""
    for make, message in ((lambda: certified_accuracy(rows([], [], []), [0]), "at least one image"),
                          (lambda: average_radius(rows([], [], [])), "at least one image"),
                          (lambda: average_radius(rows([-1], [0], [0.5])), "a label for each image")):
        with pytest.raises(ValueError, match=message):
            make()
