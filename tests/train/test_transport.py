"""Selection of source classes: the plan against another solver and the conditions of the optimum."""

import numpy as np
import ot
import pytest

from twinslib.train.transport import class_means, cosine_cost, select_classes, transport_plan

SHAPES = [(2, 2), (3, 7), (12, 6), (1, 4)]


@pytest.mark.filterwarnings("ignore:scipy.optimize:DeprecationWarning")
@pytest.mark.parametrize("flip", [1, -1])
@pytest.mark.parametrize("shape", SHAPES)
def test_plan_is_optimal(shape: tuple[int, int], flip: int) -> None:
    """The gradient of the convex objective is zero, and POT's minimiser of it gives the same plan."""
    g, (n, m) = np.random.default_rng(7), shape
    cost = cosine_cost(np.abs(g.normal(size=(n, 8))), flip * np.abs(g.normal(size=(m, 8))))
    plan = transport_plan(cost)
    gradient = cost + np.log(plan * n * m) + np.log(plan.sum(1) * n)[:, None] + 100 * np.log(plan.sum(0) * m)
    assert np.abs(gradient).max() < 1e-6 and plan.min() > 0 and plan.sum() < 1
    if flip == 1:
        reference = ot.unbalanced.lbfgsb_unbalanced(np.full(n, 1 / n), np.full(m, 1 / m), cost, 1.0, (1.0, 100.0), reg_div="kl",
                                                    regm_div="kl", numItermax=20_000, stopThr=1e-16)
        np.testing.assert_allclose(plan, reference, rtol=0, atol=1e-4 * reference.max())
        assert np.abs(plan.sum(0) * m - 1).max() < 0.1


def test_planted_classes_are_chosen() -> None:
    """Source classes near a target class are found among many that resemble none; the others give less mass."""
    g = np.random.default_rng(3)
    axes = np.linalg.qr(g.normal(size=(32, 32)))[0]
    source, planted = axes[:20].copy(), [2, 7, 11, 19]
    target = 3 * axes[planted] + 0.1 * g.normal(size=(4, 32))
    chosen = select_classes(source, target, 4)
    assert chosen.classes.tolist() == planted
    assert chosen.mass[planted].min() > 5 * np.delete(chosen.mass, planted).max()
    np.testing.assert_array_equal(chosen.plan.sum(1), chosen.mass)


def test_more_classes_contain_fewer() -> None:
    """The choice grows with `keep`, from the class with most mass up to all of them, and is in ascending order."""
    g = np.random.default_rng(4)
    source, target = np.abs(g.normal(size=(9, 5))), np.abs(g.normal(size=(4, 5)))
    chosen = [select_classes(source, target, keep).classes.tolist() for keep in range(1, 10)]
    assert chosen[-1] == list(range(9))
    for few, more in zip(chosen, chosen[1:], strict=False):
        assert set(few) < set(more) and more == sorted(more)
    same = np.tile(g.normal(size=(1, 32)), (3, 1))
    assert select_classes(same, g.normal(size=(10, 32)), 2).classes.tolist() == [0, 1]


@pytest.mark.parametrize(("call", "message"), [
    (lambda: class_means(np.ones(3), np.zeros(3, int), 1), r"features \(N, d\).*got \(3,\)"),
    (lambda: class_means(np.ones((3, 2)), np.array([0, 0, 2]), 3), "each of 3 classes.* and 1 classes without an image"),
    (lambda: class_means(np.ones((3, 2)), np.array([0, 1, 2]), 2), "each of 2 classes, got labels 0 to 2"),
    (lambda: select_classes(np.ones((3, 2)), np.ones((3, 4)), 1), r"one feature length, got \(3, 2\) and \(3, 4\)"),
    (lambda: select_classes(np.full((3, 2), np.nan), np.ones((3, 2)), 1), "finite class means"),
    (lambda: select_classes(np.ones((3, 2)), np.ones((4, 2)), 0), r"keep in 1\.\.3 \(the source classes\), got 0"),
    (lambda: select_classes(np.ones((3, 2)), np.ones((4, 2)), 4), "got 4"),
])
def test_errors(call, message: str) -> None:
    """Bad calls say what was expected and what came."""
    with pytest.raises(ValueError, match=message):
        call()
