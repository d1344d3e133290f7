"""Selection of source classes: the plan against another solver and the conditions of the optimum."""

import numpy as np
import ot
import pytest

from twinslib.train.transport import class_means, cosine_cost, select_classes, transport_plan

SHAPES = [(2, 2), (5, 3), (3, 7), (12, 6), (1, 4), (6, 1), (80, 10)]


def problem(source: int, target: int, length: int = 8) -> np.ndarray:
    """Cosine costs between random features that are not negative, as they are behind a ReLU."""
    g = np.random.default_rng(source * 100 + target)
    return cosine_cost(np.abs(g.normal(size=(source, length))), np.abs(g.normal(size=(target, length))))


@pytest.mark.filterwarnings("ignore:scipy.optimize:DeprecationWarning")
@pytest.mark.parametrize("shape", SHAPES[:-1])
def test_plan_equals_another_solver(shape: tuple[int, int]) -> None:
    """POT's minimiser of the same objective (L-BFGS-B on the plan itself, no scaling) gives the same plan."""
    cost = problem(*shape)
    a, b = np.full(shape[0], 1 / shape[0]), np.full(shape[1], 1 / shape[1])
    reference = ot.unbalanced.lbfgsb_unbalanced(a, b, cost, 1.0, (1.0, 100.0), reg_div="kl", regm_div="kl",
                                                numItermax=20_000, stopThr=1e-16)
    np.testing.assert_allclose(transport_plan(cost), reference, rtol=0, atol=1e-4 * reference.max())


@pytest.mark.parametrize("flip", [1, -1])
@pytest.mark.parametrize("shape", SHAPES)
def test_plan_is_optimal(shape: tuple[int, int], flip: int) -> None:
    """The gradient of the convex objective is zero: cost + log(P / ab') + log(P1 / a) + 100 log(P'1 / b) = 0; also for
    target features opposite to the source's, where hardly anything may move."""
    g = np.random.default_rng(7)
    cost = cosine_cost(np.abs(g.normal(size=(shape[0], 8))), flip * np.abs(g.normal(size=(shape[1], 8))))
    plan = transport_plan(cost)
    n, m = shape
    gradient = cost + np.log(plan * n * m) + np.log(plan.sum(1) * n)[:, None] + 100 * np.log(plan.sum(0) * m)
    assert np.abs(gradient).max() < 1e-6
    assert plan.min() > 0 and plan.sum() < 1
    assert transport_plan(np.array([[5.1]])) == pytest.approx(np.exp(-0.05))  # cost + (1 + 1 + 100) log p = 0


def test_cosine_cost_by_hand() -> None:
    """(1 - cosine) / 0.1 whatever the lengths: 0 for one direction, 20 for opposite ones, 10 for a row of zeros."""
    source, target = np.array([[1, 0], [0, 2], [0, 0]]), np.array([[3, 4], [5, 0], [0, -1], [0, 0]])
    want = [[4, 0, 10, 10], [2, 10, 20, 10], [10, 10, 10, 10]]
    np.testing.assert_allclose(cosine_cost(source, target), want, atol=1e-12)


def test_class_means_by_hand() -> None:
    """The mean of each class's own rows, in float64, in the order of the classes."""
    features = np.array([[1, 2], [10, 0], [3, 6], [0, 0], [0, 4], [5, 5]], dtype=np.float32)
    means = class_means(features, np.array([0, 2, 0, 2, 2, 1]), 3)
    assert means.dtype == np.float64
    np.testing.assert_allclose(means, [[2, 4], [5, 5], [10 / 3, 4 / 3]])


def test_planted_classes_are_chosen() -> None:
    """Source classes near a target class are found among many that resemble none; the others give less mass."""
    g = np.random.default_rng(3)
    axes = np.linalg.qr(g.normal(size=(32, 32)))[0]
    source, planted = axes[:20].copy(), [2, 7, 11, 19]
    target = 3 * axes[planted] + 0.1 * g.normal(size=(4, 32))
    chosen = select_classes(source, target, 4)
    assert chosen.classes.tolist() == planted
    rest = np.delete(chosen.mass, planted)
    assert chosen.mass[planted].min() > 5 * rest.max()
    np.testing.assert_allclose(chosen.mass, transport_plan(cosine_cost(source, target)).sum(1))
    np.testing.assert_array_equal(chosen.plan.sum(1), chosen.mass)
    order = g.permutation(20)
    assert sorted(order[select_classes(source[order], target, 4).classes]) == planted


def test_source_classes_may_be_left_out_but_target_classes_hardly() -> None:
    """The small penalty belongs to the source: its classes give very different masses, each target class gets nearly its
    share."""
    plan = transport_plan(problem(12, 6))
    assert np.abs(plan.sum(0) * 6 - 1).max() < 0.1 < plan.sum(1).std() * 12


def test_more_classes_contain_fewer() -> None:
    """The choice grows with `keep`, from the class with most mass up to all of them, and is in ascending order."""
    g = np.random.default_rng(4)
    source, target = np.abs(g.normal(size=(9, 5))), np.abs(g.normal(size=(4, 5)))
    chosen = [select_classes(source, target, keep) for keep in range(1, 10)]
    assert chosen[0].classes.tolist() == [int(chosen[0].mass.argmax())] and chosen[-1].classes.tolist() == list(range(9))
    for keep, (few, more) in enumerate(zip(chosen, chosen[1:], strict=False), 1):
        assert len(few.classes) == keep and set(few.classes) < set(more.classes)
        assert (np.diff(more.classes) > 0).all()


def test_ties_go_to_the_smaller_id() -> None:
    """Of classes with the same features those that come first are kept."""
    source = np.eye(4)[[3, 0, 1, 0, 1, 0]]
    assert select_classes(source, np.eye(4)[[0]], 2).classes.tolist() == [1, 3]
    assert select_classes(np.eye(4)[[0] * 6], np.eye(4)[[0, 1]], 3).classes.tolist() == [0, 1, 2]
    same, target = np.tile(np.random.default_rng(1).normal(size=(1, 32)), (3, 1)), np.random.default_rng(2).normal(size=(10, 32))
    assert select_classes(same, target, 2).classes.tolist() == [0, 1]  # though their products differ in the last digit


@pytest.mark.parametrize(("call", "message"), [
    (lambda: class_means(np.ones(3), np.zeros(3, int), 1), r"features \(N, d\).*got \(3,\)"),
    (lambda: class_means(np.ones((3, 2)), np.zeros(2, int), 1), r"got \(3, 2\) and \(2,\)"),
    (lambda: class_means(np.ones((3, 2)), np.array([0, 0, 2]), 3), "each of 3 classes.* and 1 classes without an image"),
    (lambda: class_means(np.ones((3, 2)), np.array([0, 1, 2]), 2), "each of 2 classes, got labels 0 to 2"),
    (lambda: select_classes(np.ones((3, 2)), np.ones((3, 4)), 1), r"one feature length, got \(3, 2\) and \(3, 4\)"),
    (lambda: select_classes(np.ones(2), np.ones((3, 2)), 1), "one feature length"),
    (lambda: select_classes(np.full((3, 2), np.nan), np.ones((3, 2)), 1), "finite class means"),
    (lambda: select_classes(np.ones((3, 2)), np.full((3, 2), np.inf), 1), "check the source network"),
    (lambda: select_classes(np.ones((3, 2)), np.ones((4, 2)), 0), r"keep in 1\.\.3 \(the source classes\), got 0"),
    (lambda: select_classes(np.ones((3, 2)), np.ones((4, 2)), 4), "got 4"),
])
def test_errors(call, message: str) -> None:
    """Bad calls say what was expected and what came."""
    with pytest.raises(ValueError, match=message):
        call()
