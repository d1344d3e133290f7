"""Bounds and plans of certification: exact error and power by enumeration, published ceilings, what is refused."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy import stats

from twinslib.base import errors
from twinslib.base.boundaries import look_times, spend
from twinslib.base.bounds import bound_radius, certified_radius, least_n, lower_bound
from twinslib.base.sequential import Plan, certify_plan, exact_plan, sequential_plan

PLANS = {"shares": sequential_plan, "exact": exact_plan}
SMALL = dict(sigma=0.5, radii=(0, 0.25, 0.5), n=320, n0=10, alpha=0.05, first=32, ratio=1.4, power_loss=0.02)


def paths(plan, p, absorb):
    """Exact probability of each number of votes at the end of paths that `absorb(look, votes)` never takes away."""
    alive, before = np.ones(1), 0
    for i, look in enumerate(plan.looks):
        alive = np.convolve(alive, stats.binom.pmf(np.arange(look - before + 1), look - before, p))
        alive[absorb(i, np.arange(look + 1))] = 0
        before = look
    return alive


@pytest.mark.parametrize(("n", "units", "share"), [
    (100, 1.50, 0.660), (1000, 2.46, 0.550), (10_000, 3.20, 0.5156), (100_000, 3.81, 0.5049)])
def test_published_ceilings_and_abstentions(n, units, share):
    """Where all votes agree at alpha .001: 1.50, 2.46, 3.20, 3.81 sigma."""
    assert round(certify_plan(sigma=0.25, n=n).ceiling / 0.25, 2) == units
    assert certify_plan(sigma=1.0, n=n).ceiling == pytest.approx(stats.norm.ppf(0.001 ** (1 / n)), rel=1e-9)
    k = np.arange(n // 2, n + 1)
    assert k[certified_radius(k, n, 1.0, 0.001) > 0][0] / n == pytest.approx(share, abs=max(0.005 / n ** 0.5, 0.6 / n))


@pytest.mark.parametrize(("n", "looks", "last"), [(100, 1, 0.001), (200, 2, 0.0005), (10_000, 11, 0.0005)])
def test_ceiling_of_a_plan(n, looks, last):
    """Where all votes agree at every look: what the last look spends decides, all of alpha where there is only one."""
    plan = sequential_plan(sigma=0.5, radii=(0,), n=n)
    everywhere = certified_radius(plan.looks, plan.looks, 0.5, plan.alphas)
    assert len(plan.looks) == looks and plan.ceiling == everywhere.max() == certified_radius(n, n, 0.5, last)


@pytest.mark.parametrize("n", [1, 7, 100, 1000, 100_000])
def test_bound_is_that_of_clopper_and_pearson(n):
    """Equal to scipy's two-sided interval at level 1 - 2 alpha, from below; 0 without votes, alpha^(1/n) with all."""
    for k, alpha in itertools.product({0, 1, n // 2, n - 1, n}, (0.001, 0.1)):
        low = stats.binomtest(k, n).proportion_ci(1 - 2 * alpha, "exact").low
        assert lower_bound(k, n, alpha) == pytest.approx(low, rel=1e-8, abs=1e-11)
    assert lower_bound(n, n, 0.001) == pytest.approx(0.001 ** (1 / n), rel=1e-10)


def test_bound_is_never_rounded_up():
    """In exact arithmetic, P(Binomial(n, bound) >= k) is at most alpha, though the bound is within 2e-12 of that."""
    for n, alpha in itertools.product((3, 12, 30), (Fraction(1, 1000), Fraction(1, 20))):
        for k in range(1, n + 1):
            low = float(lower_bound(k, n, float(alpha)))
            for p, holds in ((Fraction(low), True), (Fraction(low + 2e-12), False)):
                tail = sum(math.comb(n, j) * p ** j * (1 - p) ** (n - j) for j in range(k, n + 1))
                assert (tail <= Fraction(float(alpha))) == holds, (k, n, float(alpha))


def test_radius_is_not_rounded_up_either():
    """bound_radius(p) maps back to at most p, up to the last bit; 1/2 and less means abstain."""
    p = np.concatenate([0.5 + np.logspace(-9, -0.31, 300), 1 - np.logspace(-6, -1, 100)])
    assert (stats.norm.cdf(bound_radius(p, 0.25) / 0.25) <= p + 5e-16).all()
    assert bound_radius([0.1, 0.5], 0.25).tolist() == [0, 0] and (bound_radius(p, 0.25) > 0).all()


@pytest.mark.parametrize(("n", "alphas"), [(10, (0.05, 0.2)), (40, (0.05, 0.2)), (1000, (0.001, 0.05))])
def test_bound_covers(n, alphas):
    """For 99 values of p, the bound exceeds p with probability at most alpha, and with about alpha for some."""
    for alpha in alphas:
        low = lower_bound(np.arange(n + 1), n, alpha)
        wrong = [stats.binom.pmf(np.arange(n + 1), n, p)[low > p].sum() for p in np.arange(1, 100) / 100]
        assert 0.7 * alpha < max(wrong) <= alpha


@pytest.mark.parametrize("alpha", [0.3, 0.05, 0.01, 0.001, 2 ** -10, 1e-6])
def test_least_n(alpha):
    """The first n at which an image can get an answer, by trying them all."""
    assert least_n(alpha) == next(n for n in range(1, 50) if alpha ** (1 / n) > 0.5 + 1e-12)


@pytest.mark.parametrize(("n", "p"), [(100, 0.6), (1000, 0.9), (10_000, 0.977), (100_000, 0.9987)])
def test_bound_covers_in_simulation(n, p):
    """n draws of one image, 200,000 times at alpha .001: above p in at most alpha (plus 3 standard errors), and sometimes."""
    reps, alpha = 200_000, 0.001
    votes, times = np.unique(np.random.default_rng(n).binomial(n, p, reps), return_counts=True)
    wrong = times[lower_bound(votes, n, alpha) > p].sum() / reps
    assert 1e-4 < wrong <= alpha + 3 * math.sqrt(alpha / reps)


def test_reach_is_the_first_count_that_certifies():
    """Each threshold certifies its radius at its look and one vote less does not; out of reach it is one above n."""
    plan = sequential_plan(**SMALL | {"radii": (0, 0.25, 0.5, 3.0)})
    assert len(plan.looks) > 4
    for i, (look, alpha) in enumerate(zip(plan.looks, plan.alphas, strict=True)):
        radius = certified_radius(np.arange(look + 1), look, plan.sigma, alpha)
        for row, r in zip(plan.reach, plan.radii, strict=True):
            enough = np.flatnonzero((radius >= r) & (radius > 0))
            assert row[i] == (enough[0] if len(enough) else look + 1)
    assert (plan.reach[3] == np.array(plan.looks) + 1).all() and (plan.drop[3] == plan.looks).all()


def test_drop_is_a_hypergeometric_quantile():
    """Largest count with tail at most power_loss / (looks - 1), by counting subsets with integers."""
    plan = sequential_plan(**SMALL)
    for row, drop in zip(plan.reach, plan.drop, strict=True):
        last, n = int(row[-1]), plan.n
        for look, k in zip(plan.looks[:-1], drop[:-1], strict=True):
            ways = [math.comb(last, j) * math.comb(n - last, look - j) for j in range(look + 1)]
            tails = np.cumsum([Fraction(w, math.comb(n, look)) for w in ways])
            allowed = Fraction(plan.power_loss) / (len(plan.looks) - 1)
            assert k == sum(t <= allowed for t in tails) - 1
        assert drop[-1] == -1


def bounds_at(plan, look):
    """What each number of votes at that look alone would prove."""
    history = np.full((plan.looks[look] + 1, len(plan.looks)), -1)
    history[:, look] = np.arange(len(history))
    return plan.bound(history)


@pytest.mark.parametrize("make", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("p", [0.3, 0.5, 0.55, 0.69, 0.8, 0.84, 0.95, 0.97])
def test_false_certificates_exactly(make, p):
    """Over all paths to any look, some bound exceeds p with probability at most alpha; at full alpha each, with more."""
    plan = make(**SMALL)

    def wrong(bounds):
        return 1 - paths(plan, p, lambda i, k: bounds[i][k] > p).sum()

    assert wrong([bounds_at(plan, i) for i in range(len(plan.looks))]) <= plan.alpha
    assert plan.alpha < wrong([lower_bound(np.arange(look + 1), look, plan.alpha) for look in plan.looks])


@pytest.mark.parametrize("make", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("units", [0, 1, 2, 3])
def test_false_certificates_at_full_size(make, units):
    """n = 100,000, alpha .001, 60,000 simulated paths at the radii asked for, up to rounding the worst p there are."""
    plan, reps, p = make(sigma=0.25, radii=(0, 0.25, 0.5, 0.75)), 60_000, stats.norm.cdf(units)
    draws = np.random.default_rng(int(1e4 * p)).binomial(np.diff((0, *plan.looks)), p, (reps, len(plan.looks)))
    wrong = plan.bound(np.cumsum(draws, axis=1)) > p
    assert 1e-4 < wrong.mean() <= plan.alpha + 3 * math.sqrt(plan.alpha / reps)


@pytest.mark.parametrize("make", PLANS.values(), ids=PLANS)
def test_power_lost_exactly(make):
    """Of the paths that certify a radius at the last look, at most power_loss were given up before it was certified."""
    plan = make(**SMALL)
    lost = []
    for r, reach, drop in zip(plan.radii, plan.reach, plan.drop, strict=True):
        for p in stats.norm.cdf(r / plan.sigma) + np.array([-0.02, 0.02, 0.06, 0.1]):
            alive, before, given_up = np.ones(1), 0, 0.0
            for look, up, down in zip(plan.looks, reach, drop, strict=True):
                alive = np.convolve(alive, stats.binom.pmf(np.arange(look - before + 1), look - before, p))
                k, before = np.arange(look + 1), look
                given_up += (alive * stats.binom.sf(reach[-1] - k - 1, plan.n - look, p))[(k <= down) & (k < up)].sum()
                alive[(k <= down) | (k >= up)] = 0
            lost.append(given_up / stats.binom.sf(reach[-1] - 1, plan.n, p))
    assert plan.power_loss / 20 < max(lost) <= plan.power_loss


def simulate(plan, p, rng):
    """(draws, bound) of one image per entry of p."""
    k = np.cumsum(rng.binomial(np.diff((0, *plan.looks)), p[:, None]), axis=1)
    bounds = lower_bound(k, np.array(plan.looks), np.array(plan.alphas))
    stop = [next(i for i in range(len(plan.looks)) if plan.settled(np.where(np.arange(len(plan.looks)) <= i, row, -1)))
            for row in k]
    return np.array(plan.looks)[stop], np.array([b[:i + 1].max() for b, i in zip(bounds, stop, strict=True)])


def test_sequential_saves_draws_and_keeps_accuracy():
    """On a spread of pA like that of a smoothed CIFAR network: over 5 times fewer draws, accuracies within 0.6 points."""
    rng, radii = np.random.default_rng(3), (0, 0.25, 0.5, 0.75)
    plan = sequential_plan(sigma=0.25, radii=radii)
    margin = np.interp(rng.random(2000), [0, 0.09, 0.32, 0.54, 0.73, 0.9, 1], [-0.1, 0, 0.25, 0.5, 0.75, 0.95, 1.3])
    p = stats.norm.cdf(margin / 0.25)
    draws, bound = simulate(plan, p, rng)
    full = lower_bound(rng.binomial(plan.n, p), plan.n, plan.alpha)
    assert plan.n > 5 * draws.mean()
    for r in radii:
        least = stats.norm.cdf(r / 0.25)
        assert abs((bound >= least).mean() - (full >= least).mean()) <= 0.006, r


def test_settled_by_hand():
    """Nothing before a look; done when each radius is reached or given up, now or before; always at the last look."""
    plan = sequential_plan(**SMALL)
    history = np.full(len(plan.looks), -1)
    assert not plan.settled(history)
    history[0] = plan.drop[0, 0]
    assert plan.settled(history)  # not even a prediction
    history[0] = plan.reach[0, 0]
    assert history[0] < plan.reach[1, 0] and (history[0] > plan.drop[1, 0]) and not plan.settled(history)
    history[1] = plan.reach[0, 1] - 1  # radius 0 was certified at the look before, and stays so
    assert history[1] <= plan.drop[1, 1] and plan.settled(history)
    history[:] = [*[(a + b) // 2 for a, b in zip(plan.drop[1, :-1], plan.reach[1, :-1], strict=True)], 0]
    assert plan.settled(history) and not plan.settled(np.where(np.arange(len(history)) < len(history) - 1, history, -1))
    fixed = certify_plan(sigma=0.5, n=100)
    assert fixed.settled(np.array([3])) and not fixed.settled(np.array([-1]))


@pytest.mark.parametrize(("n", "first", "ratio"), [
    (100_000, 128, 1.5), (1000, 100, 1.2), (60, 128, 1.5), (64, 1, 2), (130, 1, 1.1)])
def test_looks(n, first, ratio):
    """Increase up to n in multiples of 64, about geometric, none much before `first`; alpha is spent to the last bit."""
    looks = look_times(n, first, ratio)
    assert looks[-1] == n and sorted(set(looks)) == list(looks)
    assert all(look % 64 == 0 and look >= min(first, n) - 32 for look in looks[:-1])
    large = [look for look in looks if look > 64 / (ratio - 1)]
    assert all(b / a == pytest.approx(ratio, rel=0.3) for a, b in itertools.pairwise(large))
    alphas = spend(0.001, len(looks))
    assert sum(map(Fraction, alphas)) == pytest.approx(Fraction(0.001), rel=1e-12) and alphas[-1] >= 0.0005


@pytest.mark.parametrize(("make", "message"), [
    (lambda: certify_plan(sigma=0.25, n=9), "n of at least 10 at alpha 0.001, got 9"),
    (lambda: Plan(method="sequential", sigma=0.25, alpha=0.001, looks=(5, 10), n0=5, radii=(0,)), "n of at least 11"),
    (lambda: certify_plan(sigma=0.25, n0=0), "n0 of at least 1"),
    (lambda: certify_plan(sigma=64), r"\[0, 1\] pixel units\), got 64; write 64/255"),
    (lambda: certify_plan(sigma=0), "sigma above 0"), (lambda: certify_plan(sigma=float("nan")), "sigma above 0"),
    (lambda: certify_plan(sigma=0.25, alpha=0), r"alpha in \(0, 1\), got 0"),
    (lambda: certify_plan(sigma=0.25, alpha=1), r"alpha in \(0, 1\), got 1"),
    (lambda: Plan(method="cohen", sigma=0.25, alpha=0.1, looks=(50,), n0=5), "one of certify, sequential, exact, got"),
    (lambda: Plan(method="certify", sigma=0.25, alpha=0.1, looks=(50, 60), n0=5), "several looks with 'sequential' or 'exact'"),
    (lambda: Plan(method="sequential", sigma=0.25, alpha=0.1, looks=(60, 50), n0=5, radii=(0,)), "increasing"),
    (lambda: sequential_plan(sigma=0.25, radii=()), "at least one, got"),
    (lambda: sequential_plan(sigma=0.25, radii=(0.5, 0.25)), "radii that increase"),
    (lambda: sequential_plan(sigma=0.25, radii=(1.0,)), "radius of at most 0.9[0-9]+, the largest that n 100000"),
    (lambda: sequential_plan(sigma=0.25, radii=(0,), power_loss=0), "power_loss in"),
    (lambda: sequential_plan(sigma=0.25, radii=(0,), ratio=1), "ratio above 1"),
    (lambda: exact_plan(sigma=0.5, radii=(0,), n=1000, spending="linaer"), "one of linear, .*; did you mean 'linear'"),
    (lambda: exact_plan(sigma=0.5, radii=(0,), n=1000, spending=None), "spending with 'exact' and with nothing else, got"),
    (lambda: exact_plan(sigma=0.5, radii=(0,), n=9), "n of at least 10 at alpha 0.001, got 9"),
    (lambda: exact_plan(sigma=0.5, radii=(2.0,), n=1000), "a radius of at most 1.2[0-9]*, the largest"),
    (lambda: exact_plan(sigma=0.5, radii=()), "at least one"),
    (lambda: lower_bound(101, 100, 0.1), "votes in 0..n and n of at least 1, got 101 of 100"),
    (lambda: lower_bound([3, -1], [5, 7], 0.1), "got -1 of 7"), (lambda: lower_bound(1, 2, [0.1, 1.5]), "alpha in"),
    # what is no number, by name
    (lambda: certify_plan(sigma="0.25"), "sigma to be a number, got '0.25'"),
    (lambda: certify_plan(sigma=True), "sigma to be a number, got True"),
    (lambda: certify_plan(sigma=0.25, n=1e5), "n to be an integer, got 100000.0"),
    (lambda: certify_plan(sigma=0.25, n0=None), "n0 to be an integer, got None"),
    (lambda: sequential_plan(sigma=0.25, radii=0.5), "radii to be a sequence of numbers, got 0.5"),
    (lambda: sequential_plan(sigma=0.25, radii=[[0.5]]), "radii to be a number"),
    (lambda: sequential_plan(sigma=0.25, radii=(0,), stop_if_wrong=1), "stop_if_wrong to be True or False, got 1"),
])
def test_refused(make, message):
    """One message with what was expected and what came, before any draw."""
    with pytest.raises((ValueError, TypeError), match=message):
        make()


def test_numbers_of_others_are_taken() -> None:
    """Short floats are read as written: 0.1 in single precision is 0.1."""
    for value in (np.float32(0.1), torch.tensor(0.1), torch.tensor(0.1, requires_grad=True), np.array(0.1), 0.1):
        assert errors.real(value, "x") == 0.1
    for value in (3, np.uint8(3), np.int64(3), torch.tensor(3), np.array(3)):
        assert errors.integer(value, "x", 3) == 3 and type(errors.integer(value, "x")) is int
        with pytest.raises(ValueError, match="x to be an integer of at least 4, got"):
            errors.integer(value, "x", 4)
