"""Intervals and paired tests for accuracies: over images, over independent values, over both at once; Holm's correction."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, special, stats


class Interval(NamedTuple):
    """An estimate with its two-sided interval; n is what it rests on (images, seeds or data sets)."""

    estimate: float
    low: float
    high: float
    n: int


class Difference(NamedTuple):
    """accuracy(a) - accuracy(b) on the same n images, with its interval and the p-value of "no difference"."""

    estimate: float
    low: float
    high: float
    n: int
    p_value: float


def clopper_pearson(successes: int, n: int, level: float = 0.95) -> Interval:
    """Exact interval of a proportion: covers the true one with probability at least `level`, whatever it is.

    Clopper and Pearson 1934, as quantiles of the beta distribution; wider than needed, most of all for small n. ValueError:
    successes outside 0..n, n below 1, or level outside (0, 1).

    >>> [round(x, 3) for x in clopper_pearson(500, 1000)]
    [0.5, 0.469, 0.531, 1000]
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"expected successes in 0..n and n of at least 1, got {successes} of {n}")
    _check_level(level)
    tail = (1 - level) / 2
    low = 0.0 if successes == 0 else float(special.betaincinv(successes, n - successes + 1, tail))
    high = 1.0 if successes == n else float(special.betaincinv(successes + 1, n - successes, 1 - tail))
    return Interval(successes / n, low, high, n)


def paired_difference(mask_a: ArrayLike, mask_b: ArrayLike, level: float = 0.95) -> Difference:
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
    low, high = _tango_limits(only_a, only_b, n, z)
    p_value = stats.binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
    return Difference((only_a - only_b) / n, low, high, n, float(p_value))


def crossed_difference(a: ArrayLike, b: ArrayLike, level: float = 0.95) -> Difference:
    """Mean of accuracy(a) - accuracy(b) over new seeds and new images, from the same seeds and images for both.

    Seeds and images are crossed random effects (Owen 2007). The squared half-width is t(seeds - 1)^2 V_seed plus the
    square of the half-width over images, V_seed being the variance of the means seed by seed over the number of seeds.
    For normal effects this covers with at least `level`, whatever the variances and from two seeds on (Banerjee 1960);
    both parts hold the interaction, so luck with the seeds cannot make it shorter than the images allow. Simulated at
    95 %, 3 seeds, seed effects of 0 to 4 image standard errors: covers 0.95 to 0.998, where Satterthwaite's degrees of
    freedom fall to 0.92 (2 seeds: 0.87) and taking the interaction off V_seed to 0.91. Skewed seed effects, such as a
    run that collapses now and then, are covered less (0.89 if exponential), as by any t interval on three seeds.

    The half-width over images is that of Tango's (1998) score interval with continuity correction on each side of the
    estimate (as in MOVER, Zou and Donner 2008), for an effective number of images (Korn and Graubard 1998): n if the
    seeds agree, up to seeds * n if they err independently. So it holds where few images tell a and b apart: seeds that
    agree on every image give the limits of `paired_difference` or up to 1 / n more, and masks without any disagreement
    +-4.8 / n at 95 % for large n. The p-value inverts the interval: below 1 - level exactly when that excludes 0.

    Args:
        a, b: booleans, shape (seeds, N), True where the network of that seed classifies that image correctly.
    Raises:
        ValueError: shapes differ, fewer than two seeds or images, values that are not boolean, or level outside (0, 1).
    """
    a, b = _seed_masks(a, "a"), _seed_masks(b, "b")
    if a.shape != b.shape:
        raise ValueError(f"expected a and b over the same seeds and images, got shapes {a.shape} and {b.shape}")
    _check_level(level)
    seeds, n = a.shape
    only_a, only_b = int((a & ~b).sum()) / seeds, int((~a & b).sum()) / seeds  # images per seed
    d = a.astype(np.int8) - b.astype(np.int8)
    estimate = (only_a - only_b) / n
    v_seed = float(d.sum(1).var(ddof=1)) / (n * n * seeds)
    one_seed, averaged = (only_a + only_b) / n - estimate ** 2, float(d.sum(0).var()) / seeds ** 2  # variance per image
    gain = min(max(one_seed / averaged, 1.0), seeds) if averaged > 0 else seeds if one_seed > 0 else 1.0
    cells = (only_a * gain, only_b * gain, n * gain)

    tail = (1 - level) / 2
    low, high = _tango_limits(*cells, -special.ndtri(tail), correction=0.5)
    seed_part = special.stdtrit(seeds - 1, tail) ** 2 * v_seed
    low = max(estimate - math.sqrt(seed_part + (estimate - low) ** 2), -1.0)
    high = min(estimate + math.sqrt(seed_part + (high - estimate) ** 2), 1.0)
    return Difference(estimate, low, high, n, _crossed_p_value(*cells, v_seed, seeds))


def crossed_mean(values: ArrayLike | Sequence[ArrayLike], level: float = 0.95) -> Interval:
    """Mean of real values over seeds and images with its interval; with one seed it speaks about other images only.

    As `crossed_difference`, for values that are not masks (such as a mask minus a mean of masks): the squared half-width is
    t(seeds - 1)^2 V_seed plus z^2 V_image, V_image being the variance over images of their means over seeds, by the number of
    images. Of several arrays with the same seeds, such as data sets, it is the mean over arrays, these ones and no others.

    Args:
        values: shape (seeds, N), or a list of such arrays.
    Raises:
        ValueError: another shape, other seeds, fewer than two images, a value that is not finite, or level outside (0, 1).
    """
    several = isinstance(values, list) and len(values) > 0 and np.ndim(values[0]) == 2
    blocks = [np.asarray(v, dtype=np.float64) for v in (values if several else [values])]
    _check_level(level)
    for block in blocks:
        if block.ndim != 2 or len(block) == 0 or block.shape[1] < 2 or len(block) != len(blocks[0]):
            hint = f" beside {blocks[0].shape}; give all the same seeds" if len(blocks) > 1 else ""
            raise ValueError("expected values of shape (seeds, N) with at least one seed and two images, got shape "
                             f"{block.shape}{hint}")
        if not np.isfinite(block).all():
            raise ValueError("expected finite values, got NaN or infinity")
    seeds, k, tail = len(blocks[0]), len(blocks), (1 - level) / 2
    image_part = stats.norm.isf(tail) ** 2 * sum(b.mean(0).var(ddof=1) / b.shape[1] for b in blocks) / k ** 2
    by_seed = np.mean([b.mean(1) for b in blocks], axis=0)
    seed_part = stats.t.isf(tail, seeds - 1) ** 2 * by_seed.var(ddof=1) / seeds if seeds > 1 else 0.0
    half = math.sqrt(image_part + seed_part)
    mean = float(by_seed.mean())
    return Interval(mean, mean - half, mean + half, min(b.shape[1] for b in blocks))


def student_interval(values: Sequence[float] | ArrayLike, level: float = 0.95) -> Interval:
    """Mean with Student's t interval, for values that vary independently around one mean.

    Such are the differences of two methods seed by seed, or their means data set by data set: the interval then speaks
    about new seeds, or about data sets like these. Covers with probability `level` when the values are normal, for any
    number of them, and for levels from 0.92 with at least that when their variances differ (Bakirov and Szekely
    2006). A bootstrap of three values that says 95 % covers about 75 %.

    >>> [round(x, 3) for x in student_interval([0.50, 0.52, 0.51])]
    [0.51, 0.485, 0.535, 3]

    Raises:
        ValueError: fewer than two values, a value that is not finite, or level outside (0, 1).
    """
    values = np.asarray(values, dtype=np.float64)
    _check_level(level)
    if values.ndim != 1 or len(values) < 2:
        raise ValueError(f"expected at least two values, shape (N,), got shape {values.shape}; add a seed or data set")
    if not np.isfinite(values).all():
        raise ValueError(f"expected finite values, got {values.tolist()}")
    n = len(values)
    half = stats.t.isf((1 - level) / 2, n - 1) * values.std(ddof=1) / math.sqrt(n)
    return Interval(float(values.mean()), float(values.mean() - half), float(values.mean() + half), n)


def holm(p_values: Sequence[float] | ArrayLike) -> np.ndarray:
    """Adjusted p-values, shape (M,), in the given order: rejecting those of at most alpha errs in any with at most alpha.

    Holm 1979: the i-th smallest of M is multiplied by M - i + 1, made monotone and capped at 1. Holds whatever the dependence
    between the tests. ValueError: not of shape (M,), empty, or a value outside [0, 1] (NaN too).

    >>> holm([0.01, 0.04, 0.03]).round(3).tolist()
    [0.03, 0.06, 0.06]
    """
    p = np.asarray(p_values, dtype=np.float64)
    if p.ndim != 1 or len(p) == 0:
        raise ValueError(f"expected p-values of shape (M,), M of at least 1, got shape {p.shape}")
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"expected p-values in [0, 1], got {p.tolist()}; leave out tests that were not run")
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1.0)
    return adjusted


def _tango_limits(only_a: float, only_b: float, n: float, z: float, correction: float = 0.0) -> tuple[float, float]:
    """Where the score of the difference is z and -z, with `correction` images to the safe side."""
    estimate, end = (only_a - only_b) / n, 1 - 1e-12

    def excess(delta: float, sign: int) -> float:
        return sign * _tango_score(delta, only_a, only_b, n, sign * correction) - z

    low = -1.0 if only_b == n or excess(-end, 1) <= 0 else optimize.brentq(excess, -end, estimate, args=(1,))
    high = 1.0 if only_a == n or excess(end, -1) <= 0 else optimize.brentq(excess, estimate, end, args=(-1,))
    return low, high


def _crossed_p_value(only_a: float, only_b: float, n: float, v_seed: float, seeds: int) -> float:
    """1 - level of the `crossed_difference` interval that ends at 0, found by its limit over images."""
    only_a, only_b = max(only_a, only_b), min(only_a, only_b)
    estimate = (only_a - only_b) / n
    top = estimate - 0.5 / n  # limit at level 0

    def tail(limit: float) -> float:
        return min(float(special.ndtr(-_tango_score(limit, only_a, only_b, n, 0.5))), 0.5)

    def excess(limit: float) -> float:  # decreasing in limit
        seed_part = special.stdtrit(seeds - 1, max(tail(limit), 1e-100)) ** 2 * v_seed
        return seed_part + (estimate - limit) ** 2 - estimate ** 2

    if top <= 0:
        return 1.0
    return 2 * tail(optimize.bisect(excess, 0.0, top, xtol=1e-15) if v_seed > 0 else 0.0)


def _tango_score(delta: float, only_a: float, only_b: float, n: float, correction: float = 0.0) -> float:
    """Score statistic of "the difference is delta"; standard normal under it, decreasing in delta."""
    linear = (2 * n - only_a + only_b) * delta - only_a - only_b
    root = math.sqrt(max(linear ** 2 + 8 * n * only_b * delta * (1 - delta), 0.0))
    share = (root - linear) / (4 * n)  # most likely share of "only b right", given delta
    variance = n * (2 * share + delta * (1 - delta))
    numerator = only_a - only_b - n * delta - correction
    return 0.0 if numerator == 0 else numerator / math.sqrt(max(variance, 1e-300))


def _mask(values: ArrayLike, name: str) -> np.ndarray:
    values = np.asarray(values)
    if values.dtype != bool or values.ndim != 1 or len(values) == 0:
        raise ValueError(f"expected {name} to be booleans of shape (N,), N of at least 1, got shape {values.shape} of "
                         f"{values.dtype}")
    return values


def _seed_masks(values: ArrayLike, name: str) -> np.ndarray:
    values = np.asarray(values)
    if values.dtype != bool or values.ndim != 2:
        raise ValueError(f"expected {name} to be booleans of shape (seeds, N), got shape {values.shape} of {values.dtype}")
    if len(values) < 2:
        raise ValueError(f"expected {name} from at least two seeds, got {len(values)}; for one use paired_difference")
    if values.shape[1] < 2:
        raise ValueError(f"expected {name} over at least two images, got {values.shape[1]}")
    return values


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        hint = f"; write {level / 100:g}" if 1 < level < 100 else ""
        raise ValueError(f"expected level in (0, 1), got {level:g}{hint}")
