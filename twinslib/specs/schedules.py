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
    stage = _stage(progress)
    return (stage + 1) / 5 if stage < 5 else 0.5 ** (stage - 4)


def slow_fast_exp(progress: float, milestones: Sequence[float] = ()) -> float:
    """The other public shape of slow start, fast decay: of ten stages 1/4 … 4/4, then exp(-1), exp(-2) … of the peak. It is what
    an early version of danphan/adversarial_mnist aims at; its code scales the rate it finds, so that factors compound."""
    stage = _stage(progress)
    return (stage + 1) / 4 if stage < 4 else math.exp(3 - stage)


def fast_decay(progress: float, milestones: Sequence[float] = ()) -> float:
    """`slow_fast` without its slow start: five stages at the peak, then half as much in each."""
    return 1.0 if _stage(progress) < 5 else slow_fast(progress)


def slow_start(progress: float, milestones: Sequence[float] = ()) -> float:
    """`slow_fast` without its decay: the climb over five stages, then the peak."""
    return slow_fast(progress) if _stage(progress) < 5 else 1.0


def one_cycle(progress: float, milestones: Sequence[float] = (0.3,)) -> float:
    """Half a cosine from 1/25 to 1 at the first milestone, half a cosine to 1/250,000 at the end (Smith and Topin 2019, with the
    default rates of PyTorch's OneCycleLR; its cycle of the momentum is left out)."""
    peak = milestones[0] if milestones else 0.3
    start, end = 1 / 25, 1 / 25 / 1e4
    low, share = (start, 1 - progress / peak) if progress < peak else (end, (progress - peak) / (1 - peak))
    return low + (1 - low) * 0.5 * (1 + math.cos(math.pi * share))


def _stage(progress: float) -> int:
    """Which of ten equal stages of the run."""
    return min(int(10 * progress + 1e-9), 9)


SCHEDULES = {f.__name__: f for f in (constant, piecewise, cosine, cyclic, slow_fast, slow_fast_exp, fast_decay, slow_start,
                                     one_cycle)}


def climb(step: int, total_steps: int, share: float) -> float:
    """Linear climb from near 0 to 1 over the first `share` of the run, 1 afterwards: warm-up of a learning rate or of eps."""
    steps = share * total_steps
    return min(1.0, (step + 1) / steps) if steps > 0 else 1.0


def factor(schedule: str, step: int, total_steps: int, milestones: Sequence[float], warmup: float = 0.0) -> float:
    """Factor for optimiser step `step` (0-based) of `total_steps`: linear climb over the first `warmup` share of the
    run, then the schedule over the whole run's progress. Depends on nothing but its arguments, so nothing compounds
    when a run is resumed.

    >>> [factor("slow_fast", step, 10, ()) for step in (0, 4, 5, 6)]
    [0.2, 1.0, 0.5, 0.25]
    """
    return SCHEDULES[schedule](step / total_steps, milestones) * climb(step, total_steps, warmup)
