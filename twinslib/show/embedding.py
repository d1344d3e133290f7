"""A picture in the plane of what a network makes of clean and attacked images, with numbers that say how far to trust it."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from sklearn.manifold import TSNE, trustworthiness
from sklearn.neighbors import NearestNeighbors

NEAREST = 5  # neighbours that are looked at


@dataclass(frozen=True, eq=False)
class Projection:
    """Images in the plane, clean and attacked, and what the plane hides.

    Args:
        clean, attacked: places, shape (N, 2); only which of them are near each other means something, not axes or scale.
        labels: classes, shape (N,).
        trustworthiness: in [0, 1], 1 if the NEAREST neighbours of each place are among the nearest of its features too.
        agreement: share of clean and of attacked images most of whose nearest clean images, themselves left out, are of their
            class; from the features, so it owes nothing to the picture.
    """

    clean: np.ndarray
    attacked: np.ndarray
    labels: np.ndarray
    trustworthiness: float
    agreement: tuple[float, float]


def project(clean: ArrayLike, attacked: ArrayLike, labels: ArrayLike, *, seed: int, perplexity: float = 20.0) -> Projection:
    """Features of the same images, clean and attacked, in one plane; the same input gives the same output on one machine.

    t-SNE (van der Maaten and Hinton 2008) of all 2 N features together, from their first principal components; trustworthiness
    as of Venna and Kaski (2001). Where sums are rounded otherwise (another CPU, more threads) points may lie elsewhere.

    Args:
        clean, attacked: shape (N, d), any float type; row i of both is the same image.
        labels: shape (N,).
        perplexity: how many neighbours, softly counted, t-SNE keeps near.
    Raises:
        ValueError: shapes differ or are not these, values are not finite or all equal, or too few images for the perplexity.
    """
    clean, attacked, labels = np.asarray(clean, np.float64), np.asarray(attacked, np.float64), np.asarray(labels)
    n = len(labels)
    if clean.shape != attacked.shape or clean.ndim != 2 or len(clean) != n or clean.shape[1] < 2:
        raise ValueError(f"expected clean and attacked features of shape (N, d), d at least 2, and N labels, got "
                         f"{clean.shape}, {attacked.shape} and {labels.shape}; pass the same images, one row each")
    least = max(int(1.5 * perplexity), NEAREST) + 1  # t-SNE looks at 3 x perplexity others of the 2 N
    if n < least:
        raise ValueError(f"expected at least {least} images for perplexity {perplexity:g}, got {n}; lower it or follow more")
    both = np.concatenate([clean, attacked])
    if not np.isfinite(both).all():
        raise ValueError(f"expected finite features, got {(~np.isfinite(both)).sum()} that are not; see whether the run diverged")
    if (both == both[0]).all():
        raise ValueError("expected features that differ between images, got the same for all; see whether the run collapsed")
    places = TSNE(init="pca", perplexity=perplexity, random_state=seed).fit_transform(both)
    kept = float(trustworthiness(both, places, n_neighbors=NEAREST))
    near = NearestNeighbors(n_neighbors=NEAREST + 1).fit(clean)
    shares = tuple(_mostly_own(near.kneighbors(x, return_distance=False), labels) for x in (clean, attacked))
    return Projection(places[:n], places[n:], labels, kept, shares)


def _mostly_own(near: np.ndarray, labels: np.ndarray) -> float:
    """Share of images with more than half of their neighbours in their class; `near` has one more, for the image itself."""
    own = np.array([labels[row[row != i][:NEAREST]] == labels[i] for i, row in enumerate(near)])
    return float((own.sum(1) > NEAREST / 2).mean())


def course_projections(course: Mapping[str, np.ndarray], seed: int) -> list[tuple[int, Projection]]:
    """(epoch, projection) for each epoch of which a run kept features (`follow.Follower.arrays`), none if it kept none.

    Each is a picture of its own: places in two of them cannot be compared.
    """
    return [(int(epoch), project(clean, attacked, course["feature_label"], seed=seed)) for epoch, clean, attacked in zip(
        course.get("feature_epoch", ()), course.get("features_clean", ()), course.get("features_attacked", ()), strict=True)]
