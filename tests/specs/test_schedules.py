"""Schedules against tables, without a model."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from twinslib.specs.schedules import SCHEDULES, climb, factor, one_cycle


@pytest.mark.parametrize(("epoch", "expected"), [(1, 1), (30, 1), (31, 0.1), (50, 0.1), (51, 0.01), (60, 0.01)])
@pytest.mark.parametrize("per_epoch", [1, 7, 24, 391])
def test_the_official_schedule(epoch: int, expected: float, per_epoch: int) -> None:
    """The default milestones are the TWINS scripts' epochs 30 and 50 of 60, to the iteration, for any epoch length."""
    first, last = (epoch - 1) * per_epoch, epoch * per_epoch - 1
    for step in (first, last):
        assert factor("piecewise", step, 60 * per_epoch, (0.5, 5 / 6)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("name", "progress", "expected"), [
    ("constant", 0.0, 1.0), ("constant", 0.999, 1.0), ("cosine", 0.0, 1.0), ("cosine", 1 / 3, 0.75), ("cosine", 1.0, 0.0),
    ("one_cycle", 0.0, 1 / 25), ("one_cycle", 0.3, 1.0), ("one_cycle", 1.0, 1 / 250_000)])
def test_values(name: str, progress: float, expected: float) -> None:
    """Values of schedules at known points, at the milestones of their own."""
    assert SCHEDULES[name](progress) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("total", "share", "expected"), [
    (100, 0.1, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.0]), (10, 0.25, [0.4, 0.8, 1.0, 1.0]), (10, 0.0, [1.0, 1.0]),
    (10, 0.05, [1.0, 1.0]), (10, 0.5, [0.2, 0.4, 0.6, 0.8, 1, 1, 1, 1, 1, 1]), (3, 0.0, [1, 1, 1]),
])
def test_climbs_are_linear(total: int, share: float, expected: list[float]) -> None:
    """Of the rate in its warm-up, and of eps: above 0 from the first step, linear, 1 from the end of its share of the run."""
    for climbing in (lambda step: factor("constant", step, total, (), share), lambda step: climb(step, total, share)):
        assert [climbing(step) for step in range(len(expected))] == pytest.approx(expected)
    assert [climb(step, 4, 1.0) for step in range(4)] == pytest.approx([0.25, 0.5, 0.75, 1])


@settings(max_examples=50, deadline=None)
@given(st.sampled_from(sorted(SCHEDULES)), st.integers(1, 10**5), st.data())
def test_factor_is_a_share_and_depends_on_its_arguments_only(name: str, total: int, data: st.DataObject) -> None:
    """Every factor lies in (0, 1], 0 at the first step of a climb from 0 alone, and is the same whatever was asked before: a
    resumed run sees the same rates."""
    warmup = data.draw(st.floats(0, 0.99))
    step = data.draw(st.integers(0, total - 1))
    value = factor(name, step, total, (0.5, 5 / 6), warmup)
    assert 0 < value <= 1 or (value, name, step) == (0, "cyclic", 0)
    for other in (0, total - 1, step // 2):
        factor(name, other, total, (0.5, 5 / 6), warmup)
    assert factor(name, step, total, (0.5, 5 / 6), warmup) == value


STAGES = [0.2, 0.4, 0.6, 0.8, 1.0, 0.5, 0.25, 0.125, 0.0625, 0.03125]


@pytest.mark.parametrize("per_epoch", [1, 7, 36, 391])
@pytest.mark.parametrize(("name", "stages"), [
    ("slow_fast", STAGES), ("fast_decay", [1] * 5 + STAGES[5:]), ("slow_start", STAGES[:5] + [1] * 5),
    ("slow_fast_exp", [0.25, 0.5, 0.75, *(math.exp(-k) for k in range(7))]),
])
def test_shapes_of_ten_epochs(name: str, stages: list[float], per_epoch: int) -> None:
    """Ten epochs are the ten stages, constant within each."""
    factors = [factor(name, step, 10 * per_epoch, ()) for step in range(10 * per_epoch)]
    assert factors == pytest.approx(np.repeat(stages, per_epoch), rel=1e-12)
    public = [0.01, 0.02, 0.03, 0.04, 0.05, 0.025, 0.0125, 0.00625, 0.003125, 0.0015625]
    assert [0.05 * stage for stage in STAGES] == pytest.approx(public)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 10**6), st.data())
def test_stages_are_exact(total: int, data: st.DataObject) -> None:
    """The stage is the whole part of ten times the progress, right at the border between two as well."""
    step = data.draw(st.integers(0, total - 1) | st.integers(0, 9).map(lambda k: -(-k * total // 10)).filter(lambda s: s < total))
    assert factor("slow_fast", step, total, ()) == pytest.approx(STAGES[10 * step // total])


@pytest.mark.parametrize("per_epoch", [1, 7, 391])
def test_the_cyclic_schedule_of_rice(per_epoch: int) -> None:
    """Linear from 0 to the peak at epoch 80 of 200, or at the first milestone, then to 0 at 200 (Rice et al. 2020), in steps."""
    peaks = ((80, (0.4,)), (80, ()), (50, (0.25, 0.9)))
    for epoch, (peak, milestones) in itertools.product((0, 1, 40, 79, 80, 81, 140, 199), peaks):
        for i in {0, per_epoch // 2, per_epoch - 1}:
            expected = np.interp(epoch + i / per_epoch, [0, peak, 200], [0, 1, 0])
            assert factor("cyclic", epoch * per_epoch + i, 200 * per_epoch, milestones) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("up", [20, 30])
def test_one_cycle_is_that_of_pytorch(up: int) -> None:
    """Step by step the rates of OneCycleLR with its default divisors, whose first step is our start and whose last our end."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    public = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=101, pct_start=(up + 1) / 101)
    rates = [optimizer.param_groups[0]["lr"]]
    for _ in range(100):
        optimizer.step()
        public.step()
        rates.append(optimizer.param_groups[0]["lr"])
    assert [one_cycle(i / 100, (up / 100,)) for i in range(101)] == pytest.approx(rates, rel=1e-6, abs=1e-9)
