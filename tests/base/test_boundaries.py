"""Exact boundaries: error and power by other calculations, in integers where they are small; what is refused."""

import dataclasses
import itertools
import json
import math
from fractions import Fraction

import numpy as np
import pytest
from scipy import signal, special, stats

from twinslib.base.boundaries import SPENDING, boundary, give_up, ladder, look_times, spent
from twinslib.base.bounds import SLACK, certified_radius
from twinslib.base.sequential import Plan, exact_plan, sequential_plan


def ever(looks, votes, p):
    """Probability that the votes reach these numbers at any look, over whole arrays and by Fourier transform."""
    alive, before = np.ones(1), 0
    for look, least in zip(looks, votes, strict=True):
        alive = signal.fftconvolve(alive, stats.binom.pmf(np.arange(look - before + 1), look - before, p))
        alive[least:], before = 0, look
    return 1 - alive.sum()


def ever_exactly(looks, votes, p):
    """The same in fractions, for each look the probability to have crossed by then."""
    alive, before, out = [Fraction(1)], 0, []
    for look, least in zip(looks, votes, strict=True):
        step = look - before
        weights = [math.comb(step, j) * p ** j * (1 - p) ** (step - j) for j in range(step + 1)]
        alive = [sum(alive[i] * weights[k - i] for i in range(max(0, k - step), min(k, len(alive) - 1) + 1))
                 for k in range(len(alive) + step)][:least]
        before = look
        out.append(1 - sum(alive))
    return out


@pytest.mark.parametrize("spending", SPENDING)
def test_boundary_in_fractions(spending):
    """The error by each look is within its budget, in exact arithmetic."""
    looks = (8, 13, 20, 29)
    for alpha, p in itertools.product((0.05, 0.3), (0.5, 0.75, 0.9)):
        budget = spent(alpha, looks, spending)
        votes = boundary(looks, budget, p)
        assert budget[-1] == alpha and (np.diff(budget) >= 0).all()
        errors = ever_exactly(looks, votes, Fraction(p))
        assert all(error <= Fraction(most) for error, most in zip(errors, budget, strict=True))
        for i in range(len(looks)):
            fewer = ever_exactly(looks[:i + 1], (*votes[:i], votes[i] - 1), Fraction(p))[-1]
            assert fewer > Fraction(budget[i]) or (i and votes[i] > votes[i - 1] + looks[i] - looks[i - 1])


@pytest.mark.parametrize("n", [1000, 10_000, 100_000])
@pytest.mark.parametrize("alpha", [0.001, 0.05])
def test_false_certificates_at_the_worst_p(n, alpha):
    """Where the error is largest: at most alpha over all looks, nearly alpha for large n, and more a little above p."""
    plan = exact_plan(sigma=0.5, radii=(0, 0.5, 1), n=n, alpha=alpha)
    for r, reach in zip(plan.radii, plan.reach, strict=True):
        p = special.ndtr(r / plan.sigma) + SLACK
        error = ever(plan.looks, reach, p)
        assert (0.5 if n == 1000 else 0.9) * alpha < error <= alpha
        assert ever(plan.looks, reach, p + 1e-3) > alpha and ever(plan.looks, reach, p - 1e-3) < error


@pytest.mark.parametrize("spending", SPENDING)
def test_every_level_of_the_ladder(spending):
    """n = 2,000: at each probability that is told apart the error is at most alpha, and the votes increase with it."""
    looks = look_times(2000, 128, 1.3)
    budget, before = spent(0.01, looks, spending), np.zeros(len(looks))
    for p, least in ladder(looks, budget, special.ndtr(np.arange(0, 2.4, 0.1))):
        assert ever(looks, least, p) <= 0.01 and (least >= before).all()
        before = least


def test_one_look_is_clopper_and_pearson():
    """With a single look, the fewest votes are those of a fixed number of draws."""
    plan = exact_plan(sigma=0.5, radii=(0, 0.25, 0.6), n=100)
    assert plan.looks == (100,)
    radii = certified_radius(np.arange(101), 100, 0.5, 0.001)
    assert plan.reach[:, 0].tolist() == [int(((radii < r) | (radii == 0)).sum()) for r in plan.radii]


def test_give_up_by_counting_orders():
    """Of all orders of n draws with just enough votes, or more, at most a share power_loss is given up before it is certified."""
    looks, n, power_loss = (6, 10, 15, 20), 20, 0.05
    reach = boundary(looks, spent(0.2, looks, "linear"), 0.6)
    drop = give_up(looks, reach, power_loss)
    assert drop[-1] == -1 and max(drop) > 0
    shares = []
    for last in range(reach[-1], n + 1):
        ways, before, lost = {0: 1}, 0, 0
        for look, up, down in zip(looks, reach, drop, strict=True):
            step, after = look - before, {}
            for k, w in ways.items():
                for j in range(step + 1):
                    after[k + j] = after.get(k + j, 0) + w * math.comb(step, j)
            rest = {k: w * (math.comb(n - look, last - k) if last >= k else 0) for k, w in after.items() if k <= down and k < up}
            lost += sum(rest.values())
            ways, before = {k: w for k, w in after.items() if down < k < up}, look
        shares.append(lost / math.comb(n, last))
    assert power_loss / 20 < max(shares) == shares[0] <= power_loss and sorted(shares)[::-1] == shares


def test_reach_and_bound_agree():
    """A radius asked for is certified just where its votes are reached, at any look; with fewer votes, a radius below it."""
    plan = exact_plan(sigma=0.3, radii=(0, 0.1, 0.25, 0.55), n=1500, alpha=0.01)
    for i, look in enumerate(plan.looks):
        history = np.full((look + 1, len(plan.looks)), -1)
        history[:, i] = np.arange(look + 1)
        radius = plan.sigma * special.ndtri(np.maximum(plan.bound(history), 0.5))
        for r, reach in zip(plan.radii, plan.reach[:, i], strict=True):
            assert (((radius >= r) & (radius > 0)) == (np.arange(look + 1) >= reach)).all()
    assert radius.max() <= plan.ceiling < radius.max() + plan.sigma / 31
    assert len(np.unique(radius)) > 40 and (np.diff(radius) >= 0).all()


def test_fewer_draws_than_by_shares():
    """On a spread of networks' answers, at least a tenth fewer draws than by shares, and as many radii certified."""
    rng, radii, draws, got = np.random.default_rng(0), (0, 0.25, 0.5), [], []
    p = special.ndtr(rng.uniform(-1, 3, 400))
    for plan in (make(sigma=0.25, radii=radii, n=20_000) for make in (sequential_plan, exact_plan)):
        history = np.cumsum(rng.binomial(np.diff((0, *plan.looks)), p[:, None]), axis=1)
        seen = np.arange(len(plan.looks))
        stop = [next(i for i in seen if plan.settled(np.where(seen <= i, row, -1))) for row in history]
        draws.append(np.array(plan.looks)[stop].mean())
        got.append((plan.bound(np.where(seen <= np.array(stop)[:, None], history, -1)) > 0.5).mean())
    assert draws[1] < 0.9 * draws[0] and got[1] > got[0] - 0.01


def test_another_alpha_and_what_is_stored():
    """A larger alpha certifies more; a plan that a file holds is the plan, also one from before there was spending."""
    plan = exact_plan(sigma=0.5, radii=(0, 0.5), n=2000)
    history = np.array([[round(0.9 * look) for look in plan.looks]])
    assert plan.bound(history, 1e-6) < plan.bound(history) < plan.bound(history, 0.4)
    for made in (plan, sequential_plan(sigma=0.5, radii=(0, 0.5), n=2000)):
        stored = json.loads(json.dumps(dataclasses.asdict(made)))
        assert Plan(**stored) == made and (stored.pop("spending") or Plan(**stored) == made)
