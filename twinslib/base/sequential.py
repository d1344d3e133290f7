"""The plan of a certification: how many draws, when to look, when to stop, and what votes prove. No torch.

Units: sigma and radii in [0, 1] pixels, L2.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike
from scipy import special, stats

from .boundaries import give_up, ladder, look_times, spend, spent
from .bounds import METHODS, SLACK, bound_radius, check_alpha, check_draws, check_sigma, lower_bound
from .errors import choose, each, integer, real, truth

UNEVEN = 1e-9  # most that the noise of a sound plan can move a probability, counted twice (see `certify.levels`)
LEVELS = 32  # radii within one sigma that an exact test tells apart, besides those asked for


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that decides how many votes an image gets and what they prove; see the functions that make one.

    Numbers of NumPy and torch are taken and kept as Python's, so that equal plans are stored as equal text.

    Attributes:
        looks: numbers of draws after which votes are read; the last one is n.
        n0: draws that choose the class; never used again.
        radii: radii whose certification the user asks for ("sequential", "exact").
        power_loss: how often a radius may be given up that the last look would have reached.
        stop_if_wrong: images whose chosen class is not the label get no further draws.
        spending: name of the function by which alpha is used up ("exact"; `boundaries.SPENDING`).
        sound: votes are drawn with noise on whole 8-bit levels, so that what is proved holds for the arithmetic that is run
            (`certify.levels`); every bound is lower by `UNEVEN`.
    Raises:
        TypeError: what is no number, no integer, no sequence or no truth value.
        ValueError: sigma not in [0, 1] pixels, alpha outside (0, 1), too few draws, looks out of order, bad radii.
    """

    method: str
    sigma: float
    alpha: float
    looks: tuple[int, ...]
    n0: int
    radii: tuple[float, ...] = ()
    power_loss: float = 0.001
    stop_if_wrong: bool = False
    spending: str | None = None
    sound: bool = False

    def __post_init__(self) -> None:
        choose(self.method, METHODS, "method")
        for name, kind in (("sigma", real), ("alpha", real), ("looks", each(integer)), ("n0", integer), ("radii", each(real)),
                           ("power_loss", real), ("stop_if_wrong", truth), ("sound", truth)):
            object.__setattr__(self, name, kind(getattr(self, name), name))
        check_sigma(self.sigma)
        check_alpha(self.alpha)
        looks = self.looks
        if not looks or any(np.diff((0, *looks)) < 1):
            raise ValueError(f"expected looks that are increasing from at least 1, got {looks}")
        check_draws(self.n, self.alpha, len(looks), self.method)
        if self.n0 < 1:
            raise ValueError(f"expected n0 of at least 1 to choose the class, got {self.n0}")
        if (self.spending is not None) != (self.method == "exact"):
            raise ValueError(f"expected spending with 'exact' and with nothing else, got {self.spending!r} with {self.method!r}")
        if self.method == "certify":
            if self.radii or self.stop_if_wrong or len(looks) > 1:
                raise ValueError("expected radii, stop_if_wrong and several looks with 'sequential' or 'exact' only, got "
                                 f"{self.method!r}")
            return
        if not self.radii or list(self.radii) != sorted(set(self.radii)) or not 0 <= min(self.radii) <= max(self.radii) < 100:
            raise ValueError(f"expected radii that increase from 0 or more (pixel units), at least one, got {self.radii}")
        if not 0 < self.power_loss < 1:
            raise ValueError(f"expected power_loss in (0, 1), got {self.power_loss:g}")
        if self.radii[0] > self.ceiling:
            raise ValueError(f"expected a radius of at most {self.ceiling:.4g}, the largest that n {self.n}, alpha "
                             f"{self.alpha:g} and sigma {self.sigma:g} can certify, got {self.radii}; draw more or ask for less")

    @property
    def n(self) -> int:
        """Draws of an image that is not settled before."""
        return self.looks[-1]

    @property
    def alphas(self) -> tuple[float, ...]:
        """What each look may spend, for an exact test besides what those before have left; they add up to alpha."""
        if self.spending:
            return tuple(np.diff((0.0, *spent(self.alpha, self.looks, self.spending))).tolist())
        return spend(self.alpha, len(self.looks))

    @property
    def ceiling(self) -> float:
        """The largest radius it can give, where all votes agree; no look but the last of a test by shares can give more."""
        if self.spending:
            return float(bound_radius(self._top(self.alpha) - self._off, self.sigma))
        return float(self._radius(self.n, self.n, self.alphas[-1]))

    @property
    def _off(self) -> float:
        """What bounds of what is drawn are lowered by to hold for Gaussian noise."""
        return UNEVEN if self.sound else 0.0

    def _radius(self, votes: ArrayLike, draws: ArrayLike, alpha: ArrayLike) -> np.ndarray:
        """Certified by so many votes of a number of draws that was fixed before."""
        return bound_radius(lower_bound(votes, draws, alpha) - self._off, self.sigma)

    def _top(self, alpha: float) -> float:
        """The largest probability that an exact test can tell: p^looks[i] is at most what may be spent by look i."""
        return max(budget ** (1 / look) for budget, look in zip(spent(alpha, self.looks, self.spending), self.looks, strict=True))

    def _ladder(self, alpha: float) -> Iterator[tuple[float, np.ndarray]]:
        """Probabilities that an exact test tells apart, ascending, with the fewest votes for each: those of the radii asked for
        and of `LEVELS` steps in each sigma."""
        top = self._top(alpha)
        steps = np.arange(math.ceil(special.ndtri(top) * LEVELS)) / LEVELS
        levels = special.ndtr(np.unique(np.concatenate([steps, np.array(self.radii) / self.sigma]))) + SLACK + self._off
        return ladder(self.looks, spent(alpha, self.looks, self.spending), levels[levels <= top].tolist())

    def bound(self, history: np.ndarray, alpha: float | None = None) -> np.ndarray:
        """Lower bound of the class's probability, float64 (N,), from its votes at each look, shape (N, looks), -1 where there
        are none; 0 where nothing is told. At another alpha, chosen before looking, the looks share it in the same way."""
        alpha = self.alpha if alpha is None else alpha
        if not self.spending:
            bounds = lower_bound(np.maximum(history, 0), np.array(self.looks), spend(alpha, len(self.looks)))
            return np.maximum(np.where(history >= 0, bounds, 0.0).max(1) - self._off, 0.0)
        low = np.zeros(len(history))
        for p, least in self._ladder(alpha):
            reached = (history >= least).any(1)
            if not reached.any():
                break
            low[reached] = p - self._off
        return low

    @cached_property
    def reach(self) -> np.ndarray:
        """Fewest votes that certify radius r at look i, shape (radii, looks); looks[i] + 1 where none do."""
        if self.spending:
            out = np.tile(np.array(self.looks) + 1, (len(self.radii), 1))
            wanted = special.ndtr(np.array(self.radii) / self.sigma) + SLACK + self._off
            for p, least in self._ladder(self.alpha):
                out[wanted == p] = least
                if p >= wanted[-1]:
                    break
            return out
        radii, looks = np.array(self.radii)[:, None], np.array(self.looks)[None]
        low, high = np.zeros((len(radii), looks.size), np.int64), np.broadcast_to(looks + 1, (len(radii), looks.size)).copy()
        while (low < high).any():  # bisection on the radius as it will be reported, so both always agree
            middle = (low + high) // 2
            radius = self._radius(np.minimum(middle, looks), looks, np.array(self.alphas))
            enough = (middle > looks) | ((radius >= radii) & (radius > 0))
            low, high = np.where(enough, low, np.minimum(middle + 1, high)), np.where(enough, middle, high)
        return low

    @cached_property
    def drop(self) -> np.ndarray:
        """Most votes at look i with which radius r is given up, shape (radii, looks); -1 where it never is.

        Of n draws of which just enough to certify r at the last look are votes, the first looks[i] hold a hypergeometric
        number, whatever the network; fewer or equal than this has probability at most power_loss / (looks - 1). For an exact
        test see `boundaries.give_up`.
        """
        if self.spending:
            return np.array([give_up(self.looks, tuple(row.tolist()), self.power_loss) for row in self.reach])
        looks, out = np.array(self.looks), np.full(self.reach.shape, -1)
        for row, last in zip(out, self.reach[:, -1], strict=True):
            if last > self.n:
                row[:] = looks
            elif len(looks) > 1:
                tail, early = self.power_loss / (len(looks) - 1), stats.hypergeom(self.n, int(last), looks[:-1])
                most = early.ppf(tail).astype(np.int64)
                row[:-1] = np.where(early.cdf(most) <= tail, most, most - 1)
        return out

    def settled(self, history: np.ndarray) -> bool:
        """Whether an image is done, from its votes at each look, shape (looks,), -1 where it has not come to yet."""
        if history[-1] >= 0 or not self.radii:
            return bool(history[-1] >= 0)
        reached = (history >= self.reach).any(1)
        dropped = ((history >= 0) & (history <= self.drop)).any(1)
        return bool((reached | dropped).all())


def certify_plan(*, sigma: float, n: int = 100_000, n0: int = 100, alpha: float = 0.001, sound: bool = False) -> Plan:
    """CERTIFY of Cohen et al. 2019: n0 draws choose a class, n fresh ones bound its probability.

    For each image: with probability at least 1 - alpha over the draws, it abstains or the smoothed classifier answers that
    class everywhere within the radius.

    Args:
        sound: of every plan: see `Plan`.
    """
    return Plan(method="certify", sigma=sigma, alpha=alpha, looks=(integer(n, "n"),), n0=n0, sound=sound)


def sequential_plan(*, sigma: float, radii: Sequence[float], n: int = 100_000, n0: int = 100, alpha: float = 0.001,
                    first: int = 128, ratio: float = 1.5, power_loss: float = 0.001, stop_if_wrong: bool = False,
                    sound: bool = False) -> Plan:
    """Group-sequential CERTIFY: the guarantee of `certify_plan`, with draws only until the requested radii are settled.

    Guarantee. The looks n_1 < ... < n_K = n and alpha_1 + ... + alpha_K = alpha are fixed before any draw (alpha / 2 for
    the last look, the rest in equal parts). Let the class be chosen by the n0 draws, which are independent of all others,
    and p be its probability under the noise. k_i, its votes among the first n_i draws, is Binomial(n_i, p), so the
    Clopper-Pearson bound L_i = BetaInv(alpha_i; k_i, n_i - k_i + 1) exceeds p with probability at most alpha_i. By the union
    bound, all L_i are at most p at once with probability at least 1 - alpha. Then so is the largest of those looked at,
    however it was decided where to stop, and sigma * Phi^-1 of it is at most the true radius. Hence stopping may depend
    on the votes, on the label, on the clock; a false certificate has probability at most alpha. (Up to the quality of
    pseudo-random numbers, and to the rounding of noisy pixels unless the plan is sound.) It also holds at another alpha, divided
    in the same way, that was fixed in advance.

    Stopping. A radius is settled when it is certified, or given up because so few votes by now would have probability at
    most power_loss / (K - 1) even if the last look were to reach it by a hair (`Plan.drop`): over all looks, of the images
    certified at n a share of at most power_loss is lost, whatever the network. This costs no alpha. Radii out of reach
    of n draws are given up at the first look; they may be asked for.

    Args:
        radii: increasing; 0 asks for a prediction at all. Certificates between them are valid but not waited for, so an
            average radius is lower than with `certify_plan`.
        first: no look before about this many draws.
        ratio: between looks, above 1.
        stop_if_wrong: for evaluation only: no draws where the chosen class is not the label. Such images count as
            abstentions, so accuracies are right and the abstention rate is unknown; votes and results say so.
    """
    return Plan(method="sequential", sigma=sigma, alpha=alpha, looks=look_times(n, first, ratio), n0=n0, radii=radii,
                power_loss=power_loss, stop_if_wrong=stop_if_wrong, sound=sound)


def exact_plan(*, sigma: float, radii: Sequence[float], n: int = 100_000, n0: int = 100, alpha: float = 0.001,
               first: int = 128, ratio: float = 1.05, spending: str = "linear", power_loss: float = 0.001,
               stop_if_wrong: bool = False, sound: bool = False) -> Plan:
    """Group-sequential CERTIFY with exact boundaries: the guarantee of `sequential_plan` for a fifth fewer draws.

    Guarantee. Let the looks, the spending function and a ladder of probabilities p_1 < p_2 < ... be fixed before any draw, p the
    probability of the class that the independent n0 draws chose, and p_m the smallest of the ladder above p. `boundary` gives
    numbers of votes such that a class of probability at most p_m ever reaches them, at any look, with probability at most
    alpha; `ladder` raises them, if need be, to those of the probabilities below. A bound of p_m or more needs the votes of p_m
    to be reached at some look, since those of higher probabilities are no fewer. So a bound above p has probability at most
    alpha, over all looks together, whether they are taken or not: stopping may depend on the votes, on the label, on the
    clock. Radii are sigma Phi^-1 of the bound. It also holds at another alpha that was fixed in advance.

    Against shares of alpha nothing is lost to the union bound, as the looks' votes are nearly the same votes: so there may be
    many looks. What is told apart are the radii asked for and `LEVELS` steps of each sigma.

    Stopping. As in `sequential_plan`; see `boundaries.give_up`.

    Args:
        spending: by which function of the share of draws alpha is used up, see `boundaries.SPENDING`. Early spending needs fewer
            draws and loses power at the end.
        others: as for `sequential_plan`.
    """
    return Plan(method="exact", sigma=sigma, alpha=alpha, looks=look_times(n, first, ratio), n0=n0, radii=radii,
                power_loss=power_loss, stop_if_wrong=stop_if_wrong, spending=spending, sound=sound)
