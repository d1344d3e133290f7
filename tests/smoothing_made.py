"""Certifications made up for tests: radii are given, votes are not drawn."""

import numpy as np

from twinslib.base.certified import ABSTAIN, Certified
from twinslib.evidence.cells import Measured
from twinslib.specs.measure import CertifySpec
from twinslib.specs.method import method
from twinslib.specs.run import DataSpec, ModelSpec, OptimSpec, RunSpec
from twinslib.store.votes import Shares
from twinslib.studies.rules import cell

RADII = (0.0, 0.25, 0.5, 0.75, 1.0)
N = 100


def spec(seed: int = 0, lr: float = 0.1, dataset: str = "cifar10", **changes: object) -> RunSpec:
    return RunSpec(data=DataSpec(name=dataset), model=ModelSpec(arch="tiny_resnet"), optim=OptimSpec(lr=lr), seed=seed,
                   **{"method": method("natural"), **changes})


def measured(name: str, sigma: float, radius: np.ndarray, *, seed: int = 0, dataset: str = "cifar10", n: int = 10_000,
             stop: bool = False, run: RunSpec | None = None, draws: int = 1000, split: str = "s",
             radii: tuple = RADII, labels: np.ndarray | None = None, chosen: np.ndarray | None = None) -> Measured:
    """One certification of a cell; radius (N,): 0 abstains, negative is a wrong answer with that radius. All labels are 0 unless
    given; chosen: the class of the first draws."""
    radius = np.asarray(radius, dtype=float)
    images = len(radius)
    labels = np.zeros(images, int) if labels is None else labels
    certified = Certified(np.arange(images), labels, np.where(radius == 0, ABSTAIN, labels + (radius < 0)), np.abs(radius),
                          np.zeros(images), stop)
    c = CertifySpec(sigma=sigma, images=images, n=n, radii=radii, stop_if_wrong=stop)
    share = np.clip(0.5 + np.sign(radius) * 0.4, 0, 1)
    return Measured(cell(name), run or spec(seed, dataset=dataset), c, split, certified, Shares(share, share - 0.1, share), draws,
                    chosen)


def reaching(*shares: float, images: int = N) -> np.ndarray:
    """Radii of `images` images of which so large a share reaches each of RADII[1:] (falling), the rest wrong."""
    counts = [round(images * s) for s in shares] + [0]
    radius = np.full(images, -0.1)
    for r, count in zip(RADII[1:], counts, strict=False):
        radius[:count] = r
    return radius
