"""What certification says about a set of images: accuracy over the radius, its envelope over noise levels, averages.

Everything here is a function of a `Certified`, which comes from stored votes (`Votes.certified`); nothing draws or rounds up.
Accuracies are fractions, radii L2 in [0, 1] pixel units.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from . import stats

ABSTAIN = -1


class Certified(NamedTuple):
    """One row per image, arrays of shape (N,).

    index, label: int64, number in the data set and class. prediction: class, or `ABSTAIN`. radius: float64, 0 where it
    abstains. seconds: float64, its share of the time. label_used: draws depended on the label, so some abstentions are not
    real.
    """

    index: np.ndarray
    label: np.ndarray
    prediction: np.ndarray
    radius: np.ndarray
    seconds: np.ndarray
    label_used: bool = False

    @property
    def correct(self) -> np.ndarray:
        """True where the predicted class is the label, whatever the radius."""
        return self.prediction == self.label

    def accuracy(self, radius: float = 0.0) -> "Point":
        """Certified accuracy at a radius, with its interval (`certified_accuracy`)."""
        return certified_accuracy(self, [radius])[0]

    def __repr__(self) -> str:
        if len(self.index) == 0 or (self.label < 0).any():
            return f"radii of {len(self.index)} images, without labels"
        at = ", ".join(f"{self.accuracy(r).accuracy:.1%} {'certified at radius' if not r else 'at'} {r:g}" for r in (0, 0.5, 1))
        return (f"{at}, of {len(self.index)} images (mean radius {average_radius(self).estimate:.3f}, abstained "
                f"{(self.prediction == ABSTAIN).sum()})")


class Point(NamedTuple):
    """Accuracy at one radius: correct and certified at least that far, with standard error and Clopper-Pearson interval
    over n images."""

    radius: float
    accuracy: float
    standard_error: float
    low: float
    high: float
    n: int


class Mean(NamedTuple):
    """A mean over n images with its standard error."""

    estimate: float
    standard_error: float
    n: int


def certified_accuracy(certified: Certified, radii: Sequence[float], level: float = 0.95) -> list[Point]:
    """Share of the images that are classified correctly with a radius of at least r, for each r of `radii`.

    The errors speak about new images. A single certificate may be false with probability alpha; nothing is taken off for
    that. At radius 0: predicted correctly, not abstained. After `sequential_plan` only the requested radii count in full.

    Raises:
        ValueError: no images, or unknown labels.
    """
    radius, correct, n = *_with_radii(certified), len(certified.index)
    points = []
    for r in radii:
        right = int((correct & (radius >= r)).sum())
        interval = stats.clopper_pearson(right, n, level)
        p = interval.estimate
        points.append(Point(float(r), p, math.sqrt(p * (1 - p) / n), interval.low, interval.high, n))
    return points


def average_radius(certified: Certified) -> Mean:
    """ACR: the mean radius, where wrong and abstained images count 0.

    It depends on n through the ceiling of easy images and, after `sequential_plan`, on the requested radii; compare like with
    like, and look at the distribution of votes as well.
    """
    radius, correct = _with_radii(certified)
    values, n = np.where(correct, radius, 0.0), len(radius)
    return Mean(float(np.mean(values)), float(np.std(values, ddof=1)) / math.sqrt(n) if n > 1 else math.nan, n)


def _with_radii(certified: Certified) -> tuple[np.ndarray, np.ndarray]:
    if len(certified.index) == 0:
        raise ValueError("expected at least one image, got none")
    if (certified.label < 0).any():
        raise ValueError("expected a label for each image, got none; pass labels when votes are collected")
    return certified.radius, certified.correct
