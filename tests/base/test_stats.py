"""Intervals: published examples, exact or simulated coverage, and error messages; Holm against closed testing."""

import itertools
import math
import statistics

import numpy as np
import pytest
from scipy import stats

from twinslib.base.stats import (
    Interval,
    clopper_pearson,
    crossed_difference,
    crossed_mean,
    holm,
    paired_difference,
    student_interval,
)


def masks(both, only_a, only_b, neither):
    a = np.repeat([True, True, False, False], [both, only_a, only_b, neither])
    return a, np.repeat([True, False, True, False], [both, only_a, only_b, neither])


def coverage(interval, n, p):
    """Exact probability that the interval of a binomial count covers p."""
    rows = [interval(k, n) for k in range(n + 1)]
    return sum(stats.binom.pmf(k, n, p) for k, r in enumerate(rows) if r.low <= p <= r.high)


def test_clopper_pearson():
    """The interval agrees with scipy's to 1e-9, at the ends of the range too."""
    for k, n in ((0, 20), (1, 20), (10, 20), (19, 20), (20, 20), (500, 1000)):
        reference = stats.binomtest(k, n).proportion_ci(0.95, "exact")
        assert clopper_pearson(k, n) == pytest.approx((k / n, reference.low, reference.high, n), abs=1e-9)
    for n, level in itertools.product((10, 40), (0.8, 0.95)):
        for p in np.arange(1, 100) / 100:
            assert coverage(lambda k, m, level=level: clopper_pearson(k, m, level), n, p) >= level
    widths = [clopper_pearson(n // 2, n) for n in (100, 500, 1000, 5000, 10_000)]
    assert [round(50 * (w.high - w.low), 1) for w in widths] == [10.2, 4.5, 3.1, 1.4, 1.0]


def test_paired_difference_of_the_literature():
    """Airway reactivity before and after transplantation (1, 1, 7, 12): the published Tango interval and McNemar p."""
    d = paired_difference(*masks(1, 1, 7, 12))
    assert d.estimate == pytest.approx(-6 / 21)
    assert (round(d.low, 3), round(d.high, 3)) == (-0.517, -0.026)
    assert d.p_value == pytest.approx(2 * (1 + 8) / 2 ** 8)
    assert d.n == 21


@pytest.mark.parametrize("cells", [(0, 0), (0, 6), (6, 0), (4, 1), (30, 0), (0, 30), (15, 15)])
def test_paired_difference_is_antisymmetric(cells):
    """Exchanging the methods mirrors the interval; it holds the estimate and stays within [-1, 1]."""
    a, b = masks(0, *cells, 30 - sum(cells))
    there, back = paired_difference(a, b), paired_difference(b, a)
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low), abs=1e-9)
    assert there.p_value == back.p_value and -1 <= there.low <= there.estimate <= there.high <= 1
    assert there.low < there.high


def test_paired_coverage_and_false_alarms():
    """Exact, over all outcomes of 30 images: coverage in 93..98 %, McNemar's false alarms at most 5 %."""
    n = 30
    rows = {(k, m): paired_difference(*masks(0, k, m, n - k - m)) for k in range(n + 1) for m in range(n + 1 - k)}
    for p_a, p_b in [(0.05, 0.05), (0.1, 0.1), (0.3, 0.3), (0.2, 0.05), (0.4, 0.1), (0.1, 0.02), (0.05, 0.5)]:
        weight = stats.multinomial(n, [p_a, p_b, 1 - p_a - p_b])
        share = {cell: weight.pmf([*cell, n - sum(cell)]) for cell in rows}
        covered = sum(share[c] for c, r in rows.items() if r.low <= p_a - p_b <= r.high)
        assert 0.93 <= covered <= 0.98, (p_a, p_b, covered)
        if p_a == p_b:
            assert sum(share[c] for c, r in rows.items() if r.p_value <= 0.05) <= 0.05


@pytest.mark.parametrize(("n", "factor"), [(2, 9.0), (3, 2.5), (5, 1.24), (10, 0.72)])
def test_student_interval(n, factor):
    """The t half-width in units of the standard deviation over seeds."""
    values = np.random.default_rng(n).normal(0.4, 0.02, (4000, n))
    found = [student_interval(row) for row in values]
    r = found[0]
    assert (r.high - r.low) / 2 / values[0].std(ddof=1) == pytest.approx(factor, rel=0.02)
    assert r.estimate == pytest.approx(values[0].mean()) and r.n == n
    assert np.mean([r.low <= 0.4 <= r.high for r in found]) == pytest.approx(0.95, abs=0.012)


def bootstrap_of_values(values, level=0.95):
    """Percentile bootstrap of the mean, over all resamples; values of shape (..., k)."""
    k = values.shape[-1]
    means = values[..., list(itertools.product(range(k), repeat=k))].mean(-1)
    return np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=-1)


@pytest.mark.parametrize("heterogeneity", [0.5, 2.0])
@pytest.mark.parametrize("data_sets", [3, 5])
def test_student_interval_covers_data_sets_like_these(data_sets, heterogeneity):
    """Means over data sets of unequal noise (variances 1 to 4): covers their population mean; z and a bootstrap do not."""
    rng, reps, target = np.random.default_rng([data_sets, int(2 * heterogeneity)]), 3000, 0.03
    noise = 0.01 * np.sqrt(np.linspace(1, 4, data_sets))  # per data set, half its variance from 3 seeds, half from images
    effects = target + 0.01 * heterogeneity * rng.normal(size=(reps, data_sets))
    seeds = rng.normal(size=(reps, data_sets, 3)).mean(-1) * noise * math.sqrt(1.5)
    values = effects + seeds + rng.normal(size=(reps, data_sets)) * noise / math.sqrt(2)
    rows = np.array([student_interval(row)[1:3] for row in values])
    half = 1.96 * values.std(1, ddof=1) / math.sqrt(data_sets)

    def covered(low, high):
        return np.mean((low <= target) & (target <= high))

    assert covered(*rows.T) >= 0.94  # 2.5 standard errors of the simulation below 0.95
    assert covered(values.mean(1) - half, values.mean(1) + half) < 0.9
    assert covered(*bootstrap_of_values(values[:500])) < 0.9


def crossed_counts(rng, reps, seeds, n, types, seed_sd=0.0):
    """Simulated counts of images, shape (reps, 3^seeds), by pattern of a - b over the seeds; the patterns; the truth.

    types: rows of (share of the images, probability that only a is right, the same for b), independent by seed. Seed
    effects change the accuracy by N(0, seed_sd^2), on images of the last type.
    """
    share, only_a, only_b = np.array(types).T
    shift = rng.normal(size=(reps, seeds)) * seed_sd / share[-1]
    cells = np.empty((reps, seeds, len(types), 3))
    cells[..., 0], cells[..., 1] = only_a, only_b
    cells[..., -1, 0] += np.maximum(shift, 0)
    cells[..., -1, 1] += np.maximum(-shift, 0)
    cells[..., 2] = 1 - cells[..., 0] - cells[..., 1]
    product = cells[:, 0]
    for s in range(1, seeds):
        product = (product[..., None] * cells[:, s, :, None]).reshape(reps, len(types), -1)
    patterns = np.array(list(itertools.product((1, -1, 0), repeat=seeds)))
    return rng.multinomial(n, np.einsum("t,rtc->rc", share, product)), patterns, float(share @ (only_a - only_b))


def satterthwaite(d):
    """Crossed interval that trusts estimated degrees of freedom."""
    parts, sizes = np.array([d.mean(1).var(ddof=1), d.mean(0).var(ddof=1)]) / d.shape, np.array(d.shape)
    if not parts.any():
        return d.mean(), d.mean()
    half = stats.t.isf(0.025, parts.sum() ** 2 / (parts ** 2 / (sizes - 1)).sum()) * math.sqrt(parts.sum())
    return d.mean() - half, d.mean() + half


def wald(d):
    """Normal interval over both seeds and images."""
    half = 1.96 * math.sqrt(d.mean(1).var(ddof=1) / len(d) + d.mean(0).var(ddof=1) / d.shape[1])
    return d.mean() - half, d.mean() + half


NOISY, ALWAYS, MIXED = [(0.2, 0.25, 0.25), (0.8, 0, 0)], [(0.06, 1, 0), (0.04, 0, 1), (0.9, 0, 0)], \
    [(0.04, 1, 0), (0.02, 0, 1), (0.08, 0.25, 0.25), (0.86, 0, 0)]  # each disagrees on a tenth of the images
CROSSED = {  # seeds, images, types, seed sd in standard errors over images; the naive rule that fails there
    "noisy, no seed effect": (3, 1000, NOISY, 0, None),
    "noisy, equal": (3, 300, NOISY, 1, None),
    "mixed, strong": (3, 300, MIXED, 4, wald),
    "always, equal": (3, 1000, ALWAYS, 1, lambda d: bootstrap_of_values(d.mean(1))),
    "always, strong": (3, 300, ALWAYS, 4, lambda d: bootstrap_of_values(d.mean(1))),
    "two seeds": (2, 300, MIXED, 4, satterthwaite),
    "five seeds": (5, 300, MIXED, 1, None),
    "rare, fixed": (3, 300, [(0.013, 1, 0), (0.987, 0, 0)], 0, wald),
    "rare, two-sided": (3, 300, [(0.015, 1, 0), (0.002, 0, 1), (0.983, 0, 0)], 0, None),
    "rare, by seed": (3, 300, [(0.003, 1, 0), (0.997, 0.003, 0)], 0, satterthwaite),
}


@pytest.mark.parametrize("name", CROSSED)
def test_crossed_interval_covers(name):
    """1,200 simulations each: covers 0.945 or more within 3 of their standard errors; the naive rule fails that."""
    seeds, n, types, scale, naive = CROSSED[name]
    reps, rng = 1200, np.random.default_rng(list(CROSSED).index(name))
    counts, patterns, truth = crossed_counts(rng, reps, seeds, n, types, scale * math.sqrt(0.1 / n))
    counts, times = np.unique(counts, axis=0, return_counts=True)
    covered = np.zeros(2)
    for count, weight in zip(counts, times, strict=True):
        d = np.repeat(patterns, count, axis=0).T
        r = crossed_difference(d == 1, d == -1)
        low, high = naive(d) if naive else (0, 0)
        covered += weight * np.array([r.low <= truth <= r.high, low <= truth <= high])
    least = 0.945 - 3 * math.sqrt(0.945 * 0.055 / reps)
    assert covered[0] / reps >= least
    assert not naive or covered[1] / reps < least


def random_crossed(rng):
    seeds, n, shift = rng.integers(2, 5), rng.integers(2, 60), rng.normal()
    images, effects = rng.normal(size=(1, n)), 0.3 * rng.random() * rng.normal(size=(2, seeds, 1))
    noise = rng.random() * rng.normal(size=(2, seeds, n))
    return images + effects[0] + noise[0] + 0.5 * shift > 0, images + effects[1] + noise[1] > 0


def test_crossed_p_value_inverts_the_interval():
    """p < 1 - level exactly if the interval excludes 0; at 1 - p it ends at 0; exchanging a and b mirrors it."""
    rng, excluded = np.random.default_rng(0), 0
    for _ in range(300):
        a, b = random_crossed(rng)
        for level in (0.5, 0.95, 0.999):
            r = crossed_difference(a, b, level)
            assert -1 <= r.low <= r.estimate <= r.high <= 1 and r.low < r.high
            assert (r.p_value < 1 - level) == (r.low > 0 or r.high < 0)
            excluded += r.p_value < 1 - level
        if 1e-9 < r.p_value < 0.999:
            touching = crossed_difference(a, b, 1 - r.p_value)
            assert min(abs(touching.low), abs(touching.high)) < 1e-6
        back = crossed_difference(b, a, 0.999)
        assert (back.low, back.high, back.p_value) == pytest.approx((-r.high, -r.low, r.p_value), abs=1e-9)
    assert 100 < excluded < 800


@pytest.mark.parametrize("cells", [(0, 0), (0, 6), (30, 0), (15, 15), (0, 300), (40, 20)])
def test_seeds_that_agree_give_the_paired_interval(cells):
    """Repeating one network adds nothing: the limits of paired_difference, at most one image in n further out."""
    a, b = masks(0, *cells, 300 - sum(cells))
    r, single = crossed_difference(np.tile(a, (3, 1)), np.tile(b, (3, 1))), paired_difference(a, b)
    assert single.low - 1 / 300 <= r.low <= single.low and single.high <= r.high <= single.high + 1 / 300
    assert r.low < r.high
    same = np.ones((3, 5000), dtype=bool)
    r = crossed_difference(same, same)
    assert (5000 * r.low, 5000 * r.high, r.p_value) == pytest.approx((-4.79, 4.79, 1.0), abs=0.01)


def test_crossed_width_adds_seeds_and_images():
    """On many images the limits are those of the two normal variances, added with t for seeds and z for images."""
    d = np.random.default_rng(1).choice([-1, 0, 1], size=(3, 50_000), p=[0.05, 0.88, 0.07])
    d[0, :300] = 1
    half = math.hypot(stats.t.isf(0.025, 2) * d.mean(1).std(ddof=1) / math.sqrt(3), 1.96 * d.mean(0).std() / 50_000 ** 0.5)
    r = crossed_difference(d == 1, d == -1)
    assert (r.low, r.high) == pytest.approx((d.mean() - half, d.mean() + half), abs=0.01 * half)
    assert (r.estimate, r.n) == (pytest.approx(d.mean()), 50_000)


# -- means of values that are no masks ------------------------------------------------------------------------------------
@pytest.mark.parametrize("level", [0.5, 0.95])
@pytest.mark.parametrize("seeds", [1, 2, 3])
def test_crossed_mean_by_hand(seeds, level):
    """Mean, and half-width from the variances of the means by image and by seed, written out."""
    rng = np.random.default_rng(seeds)
    z, t = stats.norm.ppf((1 + level) / 2), stats.t.ppf((1 + level) / 2, max(seeds - 1, 1))
    for sizes in ((7,), (50, 80)):
        arrays = [rng.normal(i + 0.3, 1, (seeds, n)) for i, n in enumerate(sizes)]
        by_seed = [statistics.fmean(v) for v in zip(*(a.mean(1) for a in arrays), strict=True)]
        by_image = sum(statistics.variance(a.mean(0).tolist()) / a.shape[1] for a in arrays) / len(arrays) ** 2
        square = z ** 2 * by_image + (t ** 2 * statistics.variance(by_seed) / seeds if seeds > 1 else 0)
        mean, half = statistics.fmean(by_seed), math.sqrt(square)
        assert crossed_mean(arrays, level) == pytest.approx((mean, mean - half, mean + half, min(sizes)), abs=1e-6)
        assert crossed_mean(arrays[:1], level) == crossed_mean(arrays[0].tolist(), level)


def simulated_mean(reps, seeds, n, seed_sd, image_sd, both_sd, rng):
    """Values around 0, shape (reps, seeds, n), with the effect of each seed, shape (reps, seeds)."""
    effects = seed_sd * rng.normal(size=(reps, seeds, 1))
    values = effects + image_sd * rng.normal(size=(reps, 1, n)) + both_sd * rng.normal(size=(reps, seeds, n))
    return values, effects[..., 0]


@pytest.mark.parametrize(("seeds", "seed_sd", "image_sd", "most"), [
    (1, 0.0, 1.0, 0.96), (2, 0.0, 1.0, 0.999), (2, 1.0, 1.0, 0.97), (2, 0.2, 1.0, 1.0), (2, 1.0, 0.0, 0.96),
    (3, 0.0, 1.0, 0.99), (3, 0.2, 1.0, 0.99), (3, 1.0, 1.0, 0.96), (3, 1.0, 0.0, 0.96),
])
def test_crossed_mean_covers(seeds, seed_sd, image_sd, most):
    """2,000 simulations of normal effects of seeds, of images and of both."""
    reps, n, rng = 2000, 60, np.random.default_rng([seeds, int(10 * seed_sd), int(image_sd)])
    values, _ = simulated_mean(reps, seeds, n, seed_sd, image_sd, 0.3, rng)
    rows = [crossed_mean(v) for v in values]
    covered = np.mean([r.low <= 0 <= r.high for r in rows])
    assert 0.945 - 3 * math.sqrt(0.945 * 0.055 / reps) <= covered <= most + 3 * math.sqrt(max(most * (1 - most), 0) / reps)


def test_one_seed_speaks_about_images_only():
    """With effects of seeds, its interval covers the mean of that seed's network as promised, that of other seeds hardly."""
    values, effects = simulated_mean(1000, 1, 60, 1.0, 1.0, 0.3, np.random.default_rng(3))
    rows = [crossed_mean(v) for v in values]
    own = np.mean([r.low <= e <= r.high for r, (e,) in zip(rows, effects, strict=True)])
    assert 0.92 <= own <= 0.97 and np.mean([r.low <= 0 <= r.high for r in rows]) < 0.4


@pytest.mark.parametrize("m", range(1, 7))
def test_holm_is_closed_testing_with_bonferroni(m):
    """Adjusted p = largest Bonferroni p of the sets of hypotheses that hold it."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]).tolist() == [1.0, 1.0] and holm([0.03]).tolist() == [0.03]
    rng = np.random.default_rng(m)
    for _ in range(20):
        p = np.round(rng.beta(0.5, 3, m), 2)  # rounding makes ties
        sets = [s for size in range(1, m + 1) for s in itertools.combinations(range(m), size)]
        slow = [max(min(1, len(s) * p[list(s)].min()) for s in sets if i in s) for i in range(m)]
        assert holm(p) == pytest.approx(slow)


def test_holm_limits_family_wise_error():
    """Five correlated tests, three true: an error in at most 5 % of 4,000 families (plus 3 standard errors), not without."""
    rng = np.random.default_rng(7)
    z = 0.5 * rng.normal(size=(4000, 1)) + math.sqrt(0.75) * rng.normal(size=(4000, 5)) + [0, 0, 0, 3, 4]
    p = 2 * stats.norm.sf(np.abs(z))
    adjusted = np.array([holm(row) for row in p])
    bound = 0.05 + 3 * math.sqrt(0.05 * 0.95 / 4000)
    assert (adjusted[:, :3] <= 0.05).any(1).mean() <= bound < (p[:, :3] <= 0.05).any(1).mean()
    assert (adjusted[:, 4] <= 0.05).mean() > 0.8


BAD = [
    (lambda: clopper_pearson(3, 2), "successes in 0..n"), (lambda: clopper_pearson(0, 0), "n of at least 1"),
    (lambda: clopper_pearson(-1, 5), "successes in 0..n"), (lambda: clopper_pearson(1, 5, 95), "write 0.95"),
    (lambda: paired_difference([True], [True, False]), "same images, got 1 and 2"),
    (lambda: paired_difference([1, 0], [True, False]), "mask_a to be booleans"),
    (lambda: paired_difference([True], [[True]]), "mask_b to be booleans"),
    (lambda: paired_difference([True], [True], 1.0), "level"),
    (lambda: crossed_difference([[True]], [[True]]), "at least two seeds, got 1; for one use paired_difference"),
    (lambda: crossed_difference([[True]] * 2, [[True]] * 2), "at least two images"),
    (lambda: crossed_difference([True], [True]), "shape .seeds, N., got shape .1,. of bool"),
    (lambda: crossed_difference([[1, 0]] * 2, [[True, False]] * 2), "expected a to be booleans"),
    (lambda: crossed_difference([[True] * 2] * 2, [[True] * 2] * 3), "same seeds and images"),
    (lambda: crossed_difference([[True] * 2] * 2, [[True] * 2] * 2, 95), "write 0.95"),
    (lambda: crossed_mean([0.1, 0.2]), "at least one seed and two images, got shape .2,."),
    (lambda: crossed_mean(np.zeros((0, 5))), "at least one seed and two images, got shape .0, 5."),
    (lambda: crossed_mean([[0.1], [0.2]]), "at least one seed and two images, got shape .2, 1."),
    (lambda: crossed_mean([[0.1, math.nan]]), "finite values, got NaN or infinity"),
    (lambda: crossed_mean([[0.1, math.inf]]), "finite values"), (lambda: crossed_mean([[0.1, 0.2]], 95), "write 0.95"),
    (lambda: crossed_mean([np.ones((3, 5)), np.ones((2, 5))]), "same seeds"),
    (lambda: holm([0.1, math.nan]), "leave out tests"), (lambda: holm([0.1, 1.1]), "in .0, 1."),
    (lambda: holm([]), "M of at least 1"), (lambda: student_interval([0.5]), "at least two"),
    (lambda: student_interval([0.5, math.nan]), "finite"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_arguments(call, message):
    """Each wrong argument gives one clear message."""
    with pytest.raises(ValueError, match=message):
        call()


def test_results_are_plain_numbers():
    """Rows are written as text, so no value is a NumPy scalar."""
    results = [clopper_pearson(3, 9), student_interval([0.1, 0.2, 0.4]),
               paired_difference(*masks(3, 4, 1, 2)), crossed_difference(np.eye(3) == 1, np.eye(3) == 0),
               crossed_difference(np.eye(3) == 1, np.eye(3) == 1), crossed_mean(np.eye(3)), crossed_mean([[0.1, 0.3]])]
    assert all(type(value) in (int, float) for result in results for value in result)
    assert isinstance(results[0], Interval)
