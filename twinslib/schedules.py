"""Learning-rate schedules: pure functions from progress in [0, 1) to a factor on the base rate."""

import math
from collections.abc import Sequence


def constant(progress: float, milestones: Sequence[float] = ()) -> float:
    """1 throughout."""
    return 1.0


def piecewise(progress: float, milestones: Sequence[float] = (0.5, 5 / 6)) -> float:
    """x0.1 at each milestone, a share of the run counted in iterations (TWINS scripts: epochs 30 and 50 of 60)."""
    return 0.1 ** sum(progress >= m - 1e-12 for m in milestones)


def cosine(progress: float, milestones: Sequence[float] = ()) -> float:
    """Half a cosine from 1 to 0."""
    return 0.5 * (1 + math.cos(math.pi * progress))


SCHEDULES = {"constant": constant, "piecewise": piecewise, "cosine": cosine}


def factor(schedule: str, step: int, total_steps: int, milestones: Sequence[float], warmup: float = 0.0) -> float:
    """Factor for optimiser step `step` (0-based) of `total_steps`: linear climb over the first `warmup` share of the
    run, then the schedule over the whole run's progress. Depends on nothing but its arguments, so nothing compounds
    when a run is resumed."""
    value = SCHEDULES[schedule](step / total_steps, milestones)
    climb = warmup * total_steps
    return value * min(1.0, (step + 1) / climb) if climb > 0 else value
