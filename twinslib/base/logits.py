"""Logits on fixed images, as numbers: whether two networks compute the same (`fingerprint` makes them)."""

import numpy as np

IMAGES = 8
TOLERANCE = {"bfloat16": 0.03}  # rounding on another machine, as a share of the largest logit; measured: up to 0.004
FLOAT = 1e-4  # the same for float32 and float64; measured: 3e-7


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Largest difference of logits as a share of the largest logit, both without the mean over classes, which moves no vote."""
    a, b = (np.asarray(x, np.float64) for x in (a, b))
    a, b = (x - x.mean(1, keepdims=True) for x in (a, b))
    size = max(np.abs(a).max(), np.abs(b).max())
    return float(np.abs(a - b).max() / size) if size > 0 else 0.0


def check_same(got: np.ndarray | None, expected: np.ndarray | None, precision: str, where: str) -> None:
    """Refuse votes of two functions under one name. ValueError: logits on the fixed images that differ by more than rounding, or
    are not known."""
    if got is None or expected is None:
        raise ValueError(f"expected logits on fixed images in {where}, which say what its network computes, got none: votes of "
                         "an earlier version can be read, not continued or joined; use another file")
    if got.shape != expected.shape or distance(got, expected) > TOLERANCE.get(precision, FLOAT):
        by = f"differ by {distance(got, expected):.2g} of their size" if got.shape == expected.shape else "have other shapes"
        raise ValueError(f"expected the network of {where}, got one of the same model_hash that computes something else: logits "
                         f"on fixed images {by}; use another file, and never mix votes of two models")
