"""Boundaries of a group-sequential test from the exact distribution of its own looks. No torch.

The votes k_1 <= k_2 <= ... for a class of probability p at the looks n_1 < ... < n_K are sums of independent binomials. Those
paths that have crossed no boundary yet have a distribution that is a convolution at each look and a cut after it, so the
chance of ever crossing is a finite sum. It is computed here with all that is left out or rounded counted against the test.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache

import numpy as np
from scipy import special, stats

from .errors import choose, integer, real

STEP = 64  # looks are multiples of it, so that no block of noise is cut
SPENDING: dict[str, Callable[[float, np.ndarray], np.ndarray]] = {  # of alpha until a share t of n; all of it at 1
    "linear": lambda alpha, t: alpha * t,
    "root": lambda alpha, t: alpha * np.sqrt(t),
    "square": lambda alpha, t: alpha * t ** 2,
    "pocock": lambda alpha, t: alpha * np.log1p((np.e - 1) * t),  # about equal bounds in standard errors (Lan and DeMets 1983)
    "obrien_fleming": lambda alpha, t: 2 * special.ndtr(special.ndtri(alpha / 2) / np.sqrt(t)),  # nearly all at the end
}
ROUNDING = 1e-8  # of a probability, relative: more than all sums and products of a boundary can be off
IGNORED = 1e-12  # of alpha: most that is left out at one end at one look


def look_times(n: int, first: int = 128, ratio: float = 1.5) -> tuple[int, ...]:
    """Geometric looks up to n, in multiples of `STEP` before it, none before `first` (about) and none much closer than
    `ratio` apart."""
    n, first, ratio = integer(n, "n"), real(first, "first"), real(ratio, "ratio")
    if n < 1 or first < 1 or not ratio > 1:
        raise ValueError(f"expected n and first of at least 1 and ratio above 1, got {n}, {first} and {ratio}")
    looks, value = {n}, n / ratio
    while value >= max(first, STEP / 2) - 1e-9:
        looks.add(max(round(value / STEP), 1) * STEP)
        value /= ratio
    return tuple(sorted(look for look in looks if look <= n))


def spend(alpha: float, looks: int) -> tuple[float, ...]:
    """alpha over the looks: one half for the last, the rest in equal parts; all for a single one.

    >>> spend(0.04, 3)
    (0.01, 0.01, 0.02)
    """
    return (alpha,) if looks == 1 else (alpha / 2 / (looks - 1),) * (looks - 1) + (alpha / 2,)


def spent(alpha: float, looks: tuple[int, ...], spending: str) -> tuple[float, ...]:
    """Probability of a false certificate that may be used up by each look: increasing, alpha at the last.

    >>> spent(0.04, (100, 200, 400), "linear")
    (0.01, 0.02, 0.04)

    Raises:
        ValueError: an unknown spending function.
    """
    shares = SPENDING[choose(spending, SPENDING, "spending")](alpha, np.array(looks) / looks[-1])
    return (*shares[:-1].tolist(), alpha)


@lru_cache(maxsize=4096)
def boundary(looks: tuple[int, ...], budget: tuple[float, ...], p: float) -> tuple[int, ...]:
    """Fewest votes at each look that tell a probability above p: c_i, or looks[i] + 1 where none do.

    Of a class of probability p or less, votes reach c_j at any look j <= i with probability at most budget[i], for each i. For
    p this holds by construction: c_i is the least number for which what is used up so far, and the probability to be below all
    boundaries before and at c_i or above now, is at most budget[i]. For q < p draw p's votes first and keep each with
    probability q / p: the votes kept are those of q, never more than those of p, so they cross only where these do.

    Args:
        budget: increasing, such as `spent`.
        p: in (0, 1).
    """
    alive, low, before, used, out = np.ones(1), 0, 0, 0.0, []
    ignored = IGNORED * budget[-1]
    for look, allowed in zip(looks, budget, strict=True):
        start, end = _window(look - before, p, ignored)
        alive, low = np.convolve(alive, stats.binom.pmf(np.arange(start, end), look - before, p)), low + start
        used += ignored
        least = max(_window(look, p, ignored)[0] - low, 0)
        used, alive, low = used + alive[:least].sum(), alive[least:], low + least  # as if they had crossed
        tail = used + np.cumsum(alive[::-1])[::-1]  # from so many votes on
        below = int((tail > allowed * (1 - ROUNDING)).sum())
        used = tail[below] if below < len(tail) else used
        out.append(min(low + below, look + 1) if used <= allowed else look + 1)
        alive, before = alive[:below], look
    return tuple(out)


def ladder(looks: tuple[int, ...], budget: tuple[float, ...], levels: Iterable[float]) -> Iterator[tuple[float, np.ndarray]]:
    """(p, fewest votes at each look that tell a probability above p) for increasing p: at no look fewer than for a smaller p."""
    least = np.zeros(len(looks), np.int64)
    for p in levels:
        least = np.maximum(least, boundary(looks, budget, p))
        yield p, least


def give_up(looks: tuple[int, ...], reach: tuple[int, ...], power_loss: float) -> tuple[int, ...]:
    """Most votes at each look with which it is given up to reach reach[i] at a later one; -1 where it never is.

    Of n draws of which just reach[-1] are votes, those among the first n_1, n_2, ... form a path whose distribution does not
    depend on p, as all orders are equally likely. The share of such paths that are given up before they have reached a
    boundary is at most power_loss (its parts are used up in equal steps from look to look). With more than reach[-1] votes it
    is less: replace a draw that is none by a vote, and the path is higher from there on. So of the images that the last look
    would certify, at most power_loss are lost, whatever the network.
    """
    n, last = looks[-1], reach[-1]
    if last > n:
        return looks
    p = min(last / n, 1 - 0.5 / n)  # any would do; with this one nothing is small
    end, alive, low, before, lost, out = stats.binom.pmf(last, n, p), np.ones(1), 0, 0, 0.0, []
    for i, look in enumerate(looks[:-1]):
        start, stop = _window(look - before, p, IGNORED)
        alive, low = np.convolve(alive, stats.binom.pmf(np.arange(start, stop), look - before, p)), low + start
        alive = alive[:max(reach[i] - low, 0)]
        votes = low + np.arange(len(alive))
        share = lost + np.cumsum(alive * stats.binom.pmf(last - votes, n - look, p) / end)  # of those that end at `last`
        below = int((share <= power_loss * (i + 1) / (len(looks) - 1) * (1 - ROUNDING)).sum())
        lost = share[below - 1] if below else lost
        out.append(low + below - 1)
        alive, low, before = alive[below:], low + below, look
    return (*out, -1)


def _window(n: int, p: float, ignored: float) -> tuple[int, int]:
    """First and one past the last of the numbers outside of which Binomial(n, p) has at most `ignored` (Bernstein)."""
    log = np.log(2 / ignored)
    width = log / 3 + np.sqrt(log ** 2 / 9 + 2 * log * n * p * (1 - p))
    return max(int(np.floor(n * p - width)), 0), min(int(np.ceil(n * p + width)), n) + 1
