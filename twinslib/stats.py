"""Intervals and paired tests for accuracies: over test images (binomial, paired) and over seeds (Student's t)."""
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, special, stats


class Interval(NamedTuple):
    """An estimate with its two-sided interval; n is what it rests on (images or seeds)."""

    estimate: float
    low: float
    high: float
    n: int


class PairedDifference(NamedTuple):
    """accuracy(a) - accuracy(b) on the same n images, with its interval and the exact McNemar p-value."""

    estimate: float
    low: float
    high: float
    n: int
    p_value: float
    only_a: int
    only_b: int


def clopper_pearson(successes: int, n: int, level: float = 0.95) -> Interval:
    """Exact interval of a proportion: covers the true one with probability at least `level`, whatever it is.

    Clopper and Pearson 1934, as quantiles of the beta distribution; wider than needed, most of all for small n.

    Raises:
        ValueError: successes outside 0..n, n below 1, or level outside (0, 1).
    """
    _check_counts(successes, n, level)
    tail = (1 - level) / 2
    low = 0.0 if successes == 0 else float(special.betaincinv(successes, n - successes + 1, tail))
    high = 1.0 if successes == n else float(special.betaincinv(successes + 1, n - successes, 1 - tail))
    return Interval(successes / n, low, high, n)


def paired_difference(mask_a: ArrayLike, mask_b: ArrayLike, level: float = 0.95) -> PairedDifference:
    """accuracy(a) - accuracy(b) where both judge the same images in the same order.

    The interval is the score interval of Tango (1998) and covers with probability close to `level`, also near 0, near
    1 and for few images; the p-value is the exact McNemar test, binomial on the images where a and b disagree. Both
    speak about new images of the same kind, not about new seeds.

    Args:
        mask_a, mask_b: booleans, shape (N,), True where the image is classified correctly.
    Raises:
        ValueError: shapes differ or are empty, values that are not boolean, or level outside (0, 1).
    """
    a, b = _mask(mask_a, "mask_a"), _mask(mask_b, "mask_b")
    if a.shape != b.shape:
        raise ValueError(f"expected masks over the same images, got {len(a)} and {len(b)} of them")
    _check_level(level)
    n, only_a, only_b = len(a), int((a & ~b).sum()), int((~a & b).sum())
    z = stats.norm.isf((1 - level) / 2)
    estimate = (only_a - only_b) / n

    def excess(delta: float, sign: int) -> float:
        return sign * _tango_score(delta, only_a, only_b, n) - z

    low = -1.0 if only_b == n else optimize.brentq(excess, -1 + 1e-12, estimate, args=(1,))
    high = 1.0 if only_a == n else optimize.brentq(excess, estimate, 1 - 1e-12, args=(-1,))
    p_value = stats.binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
    return PairedDifference(estimate, low, high, n, float(p_value), only_a, only_b)


def seed_interval(values: Sequence[float] | ArrayLike, level: float = 0.95) -> Interval:
    """Mean over seeds with Student's t interval; for pairs of methods pass the differences seed by seed.

    Covers with probability `level` when the values are normal, for any number of seeds (a bootstrap of three seeds
    that says 95 % covers about 75 %).

    Raises:
        ValueError: fewer than two values, a value that is not finite, or level outside (0, 1).
    """
    values = np.asarray(values, dtype=np.float64)
    _check_level(level)
    if values.ndim != 1 or len(values) < 2:
        raise ValueError(f"expected at least two values, one per seed, got shape {values.shape}; run another seed")
    if not np.isfinite(values).all():
        raise ValueError(f"expected finite values, got {values.tolist()}")
    n = len(values)
    half = stats.t.isf((1 - level) / 2, n - 1) * values.std(ddof=1) / math.sqrt(n)
    return Interval(float(values.mean()), float(values.mean() - half), float(values.mean() + half), n)


def _tango_score(delta: float, only_a: int, only_b: int, n: int) -> float:
    """Score statistic of "the difference is delta"; standard normal under it, decreasing in delta."""
    linear = (2 * n - only_a + only_b) * delta - only_a - only_b
    root = math.sqrt(max(linear ** 2 + 8 * n * only_b * delta * (1 - delta), 0.0))
    share = (root - linear) / (4 * n)  # most likely share of "only b right", given delta
    variance = n * (2 * share + delta * (1 - delta))
    numerator = only_a - only_b - n * delta
    return 0.0 if numerator == 0 else numerator / math.sqrt(max(variance, 1e-300))


def _mask(values: ArrayLike, name: str) -> np.ndarray:
    values = np.asarray(values)
    if values.dtype != bool or values.ndim != 1 or len(values) == 0:
        raise ValueError(f"expected {name} to be booleans of shape (N,), N of at least 1, got shape {values.shape} of "
                         f"{values.dtype}")
    return values


def _check_counts(successes: int, n: int, level: float) -> None:
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"expected successes in 0..n and n of at least 1, got {successes} of {n}")
    _check_level(level)


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        hint = f"; write {level / 100:g}" if 1 < level < 100 else ""
        raise ValueError(f"expected level in (0, 1), got {level:g}{hint}")
