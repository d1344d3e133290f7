"""The benchmark of draws compares tests of the same guarantee on whole logs, and it runs."""

import json

import numpy as np
import pytest
from scipy import stats

from benchmarks import draws
from twinslib.base.sequential import certify_plan, exact_plan


@pytest.mark.parametrize(("log", "abstained"), [
    ("cifar10 resnet110 0.25", 43), ("cifar10 resnet110 0.50", 83), ("imagenet resnet50 1.00", 148)])
def test_logs_are_whole(log, abstained):
    """500 images each, abstentions as in the logs, no radius above what 100,000 draws can give at alpha .01."""
    p = draws.probabilities(log)
    assert len(p) == 500 and (p == draws.ABSTAINED).sum() == abstained
    assert stats.norm.ppf(p.max()) <= 0.01 + certify_plan(sigma=1.0, alpha=0.01).ceiling


@pytest.mark.parametrize("exact_end", [False, True])
def test_betting_has_the_guarantee(exact_end):
    """At each radius asked for, the probability to be certified falsely at any look is at most alpha, by enumeration; with an
    exact end it is nearly that."""
    plan = exact_plan(sigma=0.5, radii=(0, 0.3, 0.6), n=1500, alpha=0.02, ratio=1.3)
    looks, reach, drop = draws.betting(plan, exact_end)
    for r, row in zip(plan.radii, reach, strict=True):
        wrong = draws._crossed(looks, row, stats.norm.cdf(r / plan.sigma))[-1]
        assert wrong <= plan.alpha and (not exact_end or wrong > 0.8 * plan.alpha)
    assert (drop < reach).all() and looks == plan.looks


def test_simulation_by_hand():
    """All votes alike: the first look that certifies or gives up ends the draws, and nothing is lost but what was given up."""
    looks, reach, drop = (10, 20, 40), np.array([[11, 18, 30]]), np.array([[2, 5, -1]])
    for p, expected in ((1.0, 20), (0.0, 10)):
        found = draws.simulate((looks, reach, drop), np.full(3, p), np.array([30]), 2)
        assert found == {"draws": expected, "standard_error": 0, "lost": 0}
    assert draws.simulate((looks, reach, drop + 20), np.ones(1), np.array([30]), 1)["lost"] == 100


def test_command_line(tmp_path, capsys):
    """A table and a JSON that agree: exact boundaries need fewer draws than shares of alpha."""
    out = tmp_path / "result.json"
    draws.main(["--logs", "cifar10 resnet110 0.25", "--n", "1000", "--repeats", "3", "--out", str(out)])
    result, = json.loads(out.read_text())["results"]
    tests, printed = result["tests"], capsys.readouterr().out
    assert tests["exact, linear"]["draws"] < 0.95 * tests["shares of alpha"]["draws"] < result["n"]
    assert f"{tests['betting']['draws']:,.0f}" in printed
