"""Clopper-Pearson bounds of a probability, and the radii that follow. No torch.

Units: sigma and radii in [0, 1] pixels, L2. Bounds are rounded down by `SLACK`, more than any floating-point error in
them, so that no radius is rounded up.
"""

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from .boundaries import spend

METHODS = ("certify", "sequential", "exact")
SLACK = 1e-12  # off each lower bound
LARGEST_SIGMA = 5.0


def lower_bound(successes: ArrayLike, trials: ArrayLike, alpha: ArrayLike) -> np.ndarray:
    """One-sided Clopper-Pearson bound: above the true probability with probability at most alpha, whatever that is.

    BetaInv(alpha; k, n - k + 1), 0 for k = 0; the lower end of the two-sided interval at level 1 - 2 alpha.

    Args:
        successes, trials, alpha: broadcast against each other; 0 <= successes <= trials, trials >= 1.
    Raises:
        ValueError: votes above n or below 0, or alpha outside (0, 1).
    """
    k, n = np.asarray(successes), np.asarray(trials)
    check_alpha(alpha)
    if (n < 1).any() or (k < 0).any() or (k > n).any():
        wrong = np.broadcast_arrays(k, n)
        where = np.flatnonzero((wrong[0] < 0) | (wrong[0] > wrong[1]) | (wrong[1] < 1))[0]
        raise ValueError(f"expected votes in 0..n and n of at least 1, got {wrong[0].flat[where]} of {wrong[1].flat[where]}; "
                         "votes and n are of different runs")
    low = special.betaincinv(np.maximum(k, 1), n - np.maximum(k, 1) + 1.0, alpha)
    return np.where(k > 0, np.maximum(low - SLACK, 0.0), 0.0)


def bound_radius(low: ArrayLike, sigma: float) -> np.ndarray:
    """sigma * Phi^-1(low): the radius around which a class of probability at least `low` stays the answer (Cohen et al.
    2019, theorem 1, with 1 - low for all other classes together); 0 where low <= 1/2."""
    low = np.asarray(low, dtype=np.float64)
    return np.where(low > 0.5, sigma * special.ndtri(np.maximum(low, 0.5)), 0.0)


def certified_radius(successes: ArrayLike, trials: ArrayLike, sigma: float, alpha: ArrayLike) -> np.ndarray:
    """L2 radius within which the prediction stays the same, true with probability at least 1 - alpha.

    sigma * Phi^-1(p_low) with the one-sided Clopper-Pearson bound p_low (Cohen et al. 2019, CERTIFY), never rounded up.

    Args:
        successes, trials: votes for the class that other draws have chosen, and draws per image (n).
        alpha: allowed failure probability per image.
    Returns:
        float64, in [0, 1] pixels as `sigma`, the standard deviation of the noise; 0 where p_low <= 1/2, which means abstain.
    Raises:
        ValueError: see `lower_bound`, `check_sigma`.
    """
    check_sigma(sigma)
    return bound_radius(lower_bound(successes, trials, alpha), sigma)


def least_n(alpha: float) -> int:
    """Fewest draws that can give an answer at all: alpha^(1/n) > 1/2, where all votes agree.

    >>> least_n(0.001)
    10
    """
    check_alpha(alpha)
    return math.floor(-math.log2(alpha)) + 1


def check_alpha(alpha: ArrayLike) -> None:
    """Refuse an alpha outside (0, 1)."""
    a = np.asarray(alpha, dtype=np.float64)
    if not ((a > 0) & (a < 1)).all():
        raise ValueError(f"expected alpha in (0, 1), got {a.flat[np.argmin((a > 0) & (a < 1))]:g}; the usual one is 0.001")


def check_draws(n: int, alpha: float, looks: int = 1, method: str = "certify") -> None:
    """Refuse so few draws that no image could ever get an answer."""
    least = least_n(alpha if method == "exact" else spend(alpha, looks)[-1])
    if n < least:
        raise ValueError(f"expected n of at least {least} at alpha {alpha:g}, got {n}: even if all votes agree it would abstain; "
                         "draw more")


def check_sigma(sigma: float) -> None:
    """Refuse a noise level that is not in [0, 1] pixel units."""
    if not 0 < sigma <= LARGEST_SIGMA:
        hint = f"; write {sigma:g}/255" if LARGEST_SIGMA < sigma <= 255 else ""
        raise ValueError(f"expected sigma above 0 and at most {LARGEST_SIGMA:g} ([0, 1] pixel units), got {sigma:g}{hint}")
