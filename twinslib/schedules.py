"""Learning-rate schedules: pure functions from progress in [0, 1) to a factor in [0, 1] on the peak rate."""

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


def cyclic(progress: float, milestones: Sequence[float] = (0.4,)) -> float:
    """Linear climb from 0 to 1 at the first milestone, linear fall to 0 at the end (Rice et al. 2020: epoch 80 of 200)."""
    peak = milestones[0] if milestones else 0.4
    return progress / peak if progress < peak else (1 - progress) / (1 - peak)


def slow_fast(progress: float, milestones: Sequence[float] = ()) -> float:
    """Slow start, fast decay (adversarial fine-tuning, arXiv 2012.13628): ten stages, a linear climb 1/5 … 5/5 of the peak over
    five, then half as much in each that follows. The shape is that of public third-party code (GATECH-EIC,
    Robust-Scratch-Ticket, `ssfd`, which names the rate of the first stage, a fifth of the peak); the paper's text was not
    available to us."""
    stage = min(int(10 * progress + 1e-9), 9)
    return (stage + 1) / 5 if stage < 5 else 0.5 ** (stage - 4)


SCHEDULES = {f.__name__: f for f in (constant, piecewise, cosine, cyclic, slow_fast)}


def factor(schedule: str, step: int, total_steps: int, milestones: Sequence[float], warmup: float = 0.0) -> float:
    """Factor for optimiser step `step` (0-based) of `total_steps`: linear climb over the first `warmup` share of the
    run, then the schedule over the whole run's progress. Depends on nothing but its arguments, so nothing compounds
    when a run is resumed."""
    value = SCHEDULES[schedule](step / total_steps, milestones)
    climb = warmup * total_steps
    return value * min(1.0, (step + 1) / climb) if climb > 0 else value
