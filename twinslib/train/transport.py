"""Which source classes resemble a target data set: unbalanced optimal transport between class means of features.

Source: the published selection of the TWINS authors (`ziquanliu/NeurIPS2022_UOT_fine_tuning`): cosine cost over 0.1,
entropy 1, marginal penalties 1 and 100. Which penalty belongs to which side is our reading: source classes may be left
out cheaply (1), target classes hardly (100). The solver is POT's.
"""

from typing import NamedTuple

import numpy as np

ENTROPY = 1.0
SOURCE_PENALTY, TARGET_PENALTY = 1.0, 100.0
COST_SCALE = 0.1


class Selection(NamedTuple):
    """`classes`: ids of the chosen source classes, ascending; `mass`: transported from each source class; `plan`:
    (source classes, target classes)."""

    classes: np.ndarray
    mass: np.ndarray
    plan: np.ndarray


def class_means(features: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Mean feature of each class, (classes, d), from features (N, d) and labels (N,) in 0..classes - 1.

    >>> class_means(np.array([[1.0], [3.0], [5.0]]), np.array([0, 0, 1]), 2).tolist()
    [[2.0], [5.0]]
    """
    features, labels = np.asarray(features, np.float64), np.asarray(labels)
    if features.ndim != 2 or labels.shape != features.shape[:1] or len(labels) == 0:
        raise ValueError(f"expected features (N, d) with labels (N,), N of at least 1, got {features.shape} and {labels.shape}")
    counts = np.bincount(labels, minlength=classes)
    if len(counts) > classes or not counts.all():
        raise ValueError(f"expected images of each of {classes} classes, got labels {labels.min()} to {labels.max()} and "
                         f"{int((counts == 0).sum())} classes without an image")
    sums = np.zeros((classes, features.shape[1]))
    np.add.at(sums, labels, features)
    return sums / counts[:, None]


def cosine_cost(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """(1 - cosine similarity) / 0.1 for each pair of rows; a row of zeros is at right angles to all.

    >>> cosine_cost(np.eye(2), np.array([[1.0, 0.0], [-1.0, 0.0]])).tolist()
    [[0.0, 20.0], [10.0, 10.0]]
    """
    def unit(rows: np.ndarray) -> np.ndarray:
        return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)

    return (1 - unit(np.asarray(source, np.float64)) @ unit(np.asarray(target, np.float64)).T) / COST_SCALE


def transport_plan(cost: np.ndarray) -> np.ndarray:
    """Plan of unbalanced entropic transport between uniform marginals; nothing is forced to move."""
    import ot  # takes seconds, and few commands need it

    a, b = (np.full(n, 1 / n) for n in cost.shape)
    return ot.unbalanced.sinkhorn_unbalanced(a, b, cost, ENTROPY, (SOURCE_PENALTY, TARGET_PENALTY), method="sinkhorn_stabilized",
                                             numItermax=20_000, stopThr=1e-10)


def select_classes(source_means: np.ndarray, target_means: np.ndarray, keep: int) -> Selection:
    """The `keep` source classes from which most mass is transported; ties go to the smaller id.

    >>> select_classes(np.eye(3), np.eye(3)[[2, 0]], keep=2).classes.tolist()
    [0, 2]

    Args:
        source_means, target_means: (classes, d), as `class_means` makes them with one network.
    """
    if source_means.ndim != 2 or target_means.ndim != 2 or source_means.shape[1] != target_means.shape[1]:
        raise ValueError(f"expected class means of one feature length, got {source_means.shape} and {target_means.shape}")
    if not (np.isfinite(source_means).all() and np.isfinite(target_means).all()):
        raise ValueError("expected finite class means, got NaN or infinity; check the source network")
    if not 1 <= keep <= len(source_means):
        raise ValueError(f"expected keep in 1..{len(source_means)} (the source classes), got {keep}")
    plan = transport_plan(cosine_cost(source_means, target_means))
    mass = plan.sum(axis=1)
    return Selection(np.sort(np.argsort(-mass.round(12), kind="stable")[:keep]), mass, plan)
