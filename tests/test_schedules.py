"""Schedules against tables, without a model."""

import inspect
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twinslib.schedules import SCHEDULES, constant, cosine, factor, piecewise


@pytest.mark.parametrize(("epoch", "expected"), [(1, 1), (30, 1), (31, 0.1), (50, 0.1), (51, 0.01), (60, 0.01)])
@pytest.mark.parametrize("per_epoch", [1, 7, 24, 391])
def test_the_official_schedule(epoch: int, expected: float, per_epoch: int) -> None:
    """The default milestones are the TWINS scripts' epochs 30 and 50 of 60, to the iteration, for any epoch length."""
    first, last = (epoch - 1) * per_epoch, epoch * per_epoch - 1
    for step in (first, last):
        assert factor("piecewise", step, 60 * per_epoch, (0.5, 5 / 6)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("total", "milestones", "changes"), [
    (10, (0.5,), [5]),
    (12, (0.5, 5 / 6), [6, 10]),
    (7, (0.5, 5 / 6), [4, 6]),
    (3, (1 / 3, 2 / 3), [1, 2]),
    (100, (0.3, 0.6, 0.9), [30, 60, 90]),
    (5, (), []),
])
def test_piecewise_in_iterations(total: int, milestones: tuple[float, ...], changes: list[int]) -> None:
    """The rate falls by ten at the first iteration whose progress has reached a milestone, and nowhere else."""
    factors = [factor("piecewise", step, total, milestones) for step in range(total)]
    assert [i for i in range(1, total) if factors[i] != factors[i - 1]] == changes
    assert factors[-1] == pytest.approx(0.1 ** len(changes))


@pytest.mark.parametrize(("name", "progress", "expected"), [
    ("constant", 0.0, 1.0), ("constant", 0.999, 1.0),
    ("cosine", 0.0, 1.0), ("cosine", 1 / 3, 0.75), ("cosine", 0.5, 0.5), ("cosine", 1.0, 0.0),
    ("piecewise", 0.0, 1.0), ("piecewise", 0.499, 1.0), ("piecewise", 0.5, 0.1), ("piecewise", 5 / 6, 0.01),
])
def test_values(name: str, progress: float, expected: float) -> None:
    """Values of each schedule at known points."""
    assert SCHEDULES[name](progress) == pytest.approx(expected, abs=1e-12)


def test_cosine_ends() -> None:
    """The first step has the full rate, the last nearly none: half a cosine over steps, falling throughout."""
    factors = [factor("cosine", step, 200, ()) for step in range(200)]
    assert factors[0] == 1.0
    assert factors[-1] == pytest.approx((math.pi / 400) ** 2, rel=1e-3)
    assert all(a > b for a, b in zip(factors, factors[1:], strict=False))


@pytest.mark.parametrize(("total", "warmup", "expected"), [
    (100, 0.1, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.0]),
    (10, 0.25, [0.4, 0.8, 1.0, 1.0]),
    (10, 0.0, [1.0, 1.0]),
    (10, 0.05, [1.0, 1.0]),
])
def test_warmup_climbs_linearly(total: int, warmup: float, expected: list[float]) -> None:
    """The climb starts above zero, is linear in steps, and reaches 1 at its share of the run; 0 is none."""
    assert [factor("constant", step, total, (), warmup) for step in range(len(expected))] == pytest.approx(expected)


@settings(max_examples=50, deadline=None)
@given(st.sampled_from(sorted(SCHEDULES)), st.integers(1, 10**5), st.data())
def test_factor_is_a_share_and_depends_on_its_arguments_only(name: str, total: int, data: st.DataObject) -> None:
    """Every factor lies in (0, 1] and is the same whatever was asked before: a resumed run sees the same rates."""
    warmup = data.draw(st.floats(0, 0.99))
    step = data.draw(st.integers(0, total - 1))
    value = factor(name, step, total, (0.5, 5 / 6), warmup)
    assert 0 < value <= 1
    for other in (0, total - 1, step // 2):
        factor(name, other, total, (0.5, 5 / 6), warmup)
    assert factor(name, step, total, (0.5, 5 / 6), warmup) == value


def test_every_schedule_takes_the_same_arguments() -> None:
    """A schedule is a function of (progress, milestones), named as it is called in specs."""
    assert SCHEDULES == {"constant": constant, "piecewise": piecewise, "cosine": cosine}
    assert all(list(inspect.signature(f).parameters) == ["progress", "milestones"] for f in SCHEDULES.values())
