"""Intervals: published examples, exact coverage by summing over all outcomes, and error messages."""

import math

import numpy as np
import pytest
from scipy import optimize, stats

from twinslib.stats import Interval, _tango_score, clopper_pearson, paired_difference, seed_interval


def masks(both, only_a, only_b, neither):
    a = np.repeat([True, True, False, False], [both, only_a, only_b, neither])
    return a, np.repeat([True, False, True, False], [both, only_a, only_b, neither])


def coverage(interval, n, p):
    """Exact probability that the interval of a binomial count covers p."""
    rows = [interval(k, n) for k in range(n + 1)]
    return sum(stats.binom.pmf(k, n, p) for k, r in enumerate(rows) if r.low <= p <= r.high)


@pytest.mark.parametrize(("k", "n"), [(0, 20), (1, 20), (10, 20), (19, 20), (20, 20), (500, 1000)])
def test_proportion_interval_equals_scipy(k, n):
    """The interval agrees with scipy's to 1e-9, at the ends of the range too."""
    reference = stats.binomtest(k, n).proportion_ci(0.95, "exact")
    assert clopper_pearson(k, n) == pytest.approx((k / n, reference.low, reference.high, n), abs=1e-9)


def test_half_widths_at_one_half():
    """The half-widths that decide how many images a table needs: 10.2, 4.5, 3.1, 1.4 and 1.0 points."""
    widths = [clopper_pearson(n // 2, n) for n in (100, 500, 1000, 5000, 10_000)]
    assert [round(50 * (w.high - w.low), 1) for w in widths] == [10.2, 4.5, 3.1, 1.4, 1.0]


@pytest.mark.parametrize("level", [0.8, 0.95])
@pytest.mark.parametrize("n", [10, 40])
def test_clopper_pearson_always_covers(n, level):
    """Exact coverage is at least the level for 99 values of p."""
    worst = min(coverage(lambda k, m: clopper_pearson(k, m, level), n, p) for p in np.arange(1, 100) / 100)
    assert worst >= level


def test_paired_difference_of_the_literature():
    """Airway reactivity before and after transplantation (1, 1, 7, 12): the published Tango interval and McNemar p."""
    d = paired_difference(*masks(1, 1, 7, 12))
    assert d.estimate == pytest.approx(-6 / 21)
    assert (round(d.low, 3), round(d.high, 3)) == (-0.517, -0.026)
    assert d.p_value == pytest.approx(2 * (1 + 8) / 2 ** 8)
    assert (d.n, d.only_a, d.only_b) == (21, 1, 7)


@pytest.mark.parametrize(("only_a", "only_b", "n", "delta"), [
    (3, 9, 40, 0.1), (9, 3, 40, 0.1), (0, 5, 30, -0.3), (5, 0, 30, 0.4), (2, 2, 12, -0.2)])
def test_score_uses_the_most_likely_shares(only_a, only_b, n, delta):
    """The score equals one whose nuisance share is found by maximising the trinomial likelihood numerically."""
    def minus_log_likelihood(b):
        cells = np.array([b + delta, b, 1 - 2 * b - delta])
        counts = np.array([only_a, only_b, n - only_a - only_b])
        return -np.sum(counts[counts > 0] * np.log(np.maximum(cells[counts > 0], 1e-300)))

    low, high = max(0, -delta), (1 - delta) / 2
    b = optimize.minimize_scalar(minus_log_likelihood, bounds=(low, high), method="bounded",
                                 options={"xatol": 1e-12}).x
    expected = (only_a - only_b - n * delta) / math.sqrt(n * (2 * b + delta - delta ** 2))
    assert _tango_score(delta, only_a, only_b, n) == pytest.approx(expected, rel=1e-4)


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


def test_pairing_pays():
    """On masks that agree on most images the paired interval is narrower than the difference of two single ones."""
    a, b = masks(400, 60, 30, 510)
    d, single = paired_difference(a, b), clopper_pearson(int(a.sum()), 1000)
    assert d.low > 0 and d.high - d.low < 0.7 * (single.high - single.low)


@pytest.mark.parametrize(("n", "factor"), [(2, 9.0), (3, 2.5), (5, 1.24), (10, 0.72)])
def test_seed_interval_width(n, factor):
    """The t half-width in units of the standard deviation over seeds."""
    values = np.random.default_rng(0).normal(0.5, 0.01, n)
    r = seed_interval(values)
    assert (r.high - r.low) / 2 / values.std(ddof=1) == pytest.approx(factor, rel=0.02)
    assert r.estimate == pytest.approx(values.mean()) and r.n == n


@pytest.mark.parametrize("n", [2, 3, 5])
def test_seed_interval_covers(n):
    """4,000 simulated sets of normal seeds: coverage within 0.012 of 95 % (3.5 standard errors)."""
    values = np.random.default_rng(n).normal(0.4, 0.02, (4000, n))
    rows = [seed_interval(row) for row in values]
    assert np.mean([r.low <= 0.4 <= r.high for r in rows]) == pytest.approx(0.95, abs=0.012)


BAD = [
    (lambda: clopper_pearson(3, 2), "successes in 0..n"),
    (lambda: clopper_pearson(0, 0), "n of at least 1"),
    (lambda: clopper_pearson(-1, 5), "successes in 0..n"),
    (lambda: clopper_pearson(1, 5, 95), "write 0.95"),
    (lambda: paired_difference([True], [True, False]), "same images, got 1 and 2"),
    (lambda: paired_difference([1, 0], [True, False]), "mask_a to be booleans"),
    (lambda: paired_difference([True], [[True]]), "mask_b to be booleans"),
    (lambda: paired_difference([True], [True], 1.0), "level"),
    (lambda: seed_interval([0.5]), "at least two"),
    (lambda: seed_interval([0.5, math.nan]), "finite"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_arguments(call, message):
    """Each wrong argument gives one clear message."""
    with pytest.raises(ValueError, match=message):
        call()


def test_results_are_plain_numbers():
    """Rows are written as text, so no value is a NumPy scalar."""
    results = [clopper_pearson(3, 9), seed_interval([0.1, 0.2, 0.4]),
               paired_difference(*masks(3, 4, 1, 2))]
    assert all(type(value) in (int, float) for result in results for value in result)
    assert isinstance(results[0], Interval)
