"""Finished certifications of the smoothing grid, cell by cell (`rules.Cell`), as masks over test images; what tables, figures and
verdicts stand on. Radii are L2 in [0, 1] pixels, accuracies fractions."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from ..base.certified import Certified
from ..specs.jobs import Job
from ..specs.labels import NOT_RUN
from ..specs.measure import CertifySpec
from ..specs.run import RunSpec
from ..store.store import Store
from ..store.votes import Shares
from ..studies.rules import Cell, Smooth, cell
from ..studies.smoothing import cell_of
from .frame import most_images, read, where


class Planned(NamedTuple):
    """One certification that is asked for, done or not."""

    dataset: str
    cell: Cell
    seed: int
    spec: RunSpec
    certification: CertifySpec


@dataclasses.dataclass(frozen=True, eq=False)
class Measured:
    """One finished certification; certified, shares and chosen (the class that the first draws chose for each image, also where
    it abstains; None: the answers stand in) are those of its votes, draws counts all copies. Of one that diverged they are empty,
    and absent is what is said in its place."""

    dataset: str
    cell: Cell
    seed: int
    spec: RunSpec
    certification: CertifySpec
    split: str
    certified: Certified
    shares: Shares
    draws: int
    chosen: np.ndarray | None = None
    absent: str = ""

    @property
    def sigma(self) -> float:
        return self.certification.sigma

    def reached(self, radii: Sequence[float]) -> np.ndarray:
        """Boolean (N, radii): right, and certified at least that far."""
        c = self.certified
        return c.correct[:, None] & (c.radius[:, None] >= np.asarray(radii))

    @property
    def chance(self) -> float:
        """Share of the most frequent label: what the best constant answer gets right, at every radius."""
        return _largest(self.certified.label)

    @property
    def one_class(self) -> float:
        """Share of the images for which the class is chosen that is chosen most often."""
        return _largest(self.certified.prediction if self.chosen is None else self.chosen)

    @property
    def constant(self) -> bool:
        """True if it is close to a constant answer: `one_class` is nearer to all images than to `chance`."""
        return self.one_class > (1 + self.chance) / 2

    def settles(self, radii: Iterable[float]) -> bool:
        """True if these radii were waited for, so that accuracies at them are not too low."""
        asked = self.certification.radii
        return not asked or set(radii) <= set(asked)


def _largest(classes: np.ndarray) -> float:
    """Share of the most frequent class among those that are known."""
    known = classes[classes >= 0]
    return float(np.bincount(known).max() / len(known)) if len(known) else 0.0


def planned(jobs: Sequence[Job]) -> list[Planned]:
    """Every certification of `jobs`, in their order."""
    out = []
    for job in jobs:
        cell = cell_of(job)
        for c in job.certs if cell else ():
            here = dataclasses.replace(cell, restat=bool(c.restat_images))
            out.append(Planned(job.spec.data.name, here, job.spec.seed, job.spec, c))
    return out


def finished(store: Store, jobs: Sequence[Job]) -> list[Measured]:
    """The certifications of `jobs` that are done or have diverged.

    Raises:
        ValueError: votes that were drawn in another way than asked for, such as with another noise level.
    """
    out: list[Measured] = []
    for job, p in ((j, p) for j in jobs for p in planned([j])):
        record = store.run(p.spec) if job.settled else None
        votes = store.votes(p.spec, p.certification) if record else None
        if votes is None and (word := store.absent(job, p.certification)) != NOT_RUN:
            none = np.empty(0)
            out.append(Measured(*p, "", Certified(none, none, none, none, none, False), Shares(none, none, none), 0, absent=word))
        if votes is not None:
            draws = int(votes.draws.sum() + votes.pilot.sum())
            out.append(Measured(*p, record["split"], votes.certified(), votes.shares(), draws, votes.chosen))
    return out


Lost = dict[tuple[str, Cell, float], str]  # data set, cell, noise level -> what stands for its certified accuracy


def lost(found: Sequence[Measured]) -> Lost:
    """Those of which every seed diverged."""
    done = {(m.dataset, m.cell, m.sigma) for m in found if not m.absent}
    return {key: m.absent for m in found if m.absent and (key := (m.dataset, m.cell, m.sigma)) not in done}


def absent(gone: Lost, dataset: str, needed: Iterable[tuple[Cell, float]]) -> str:
    """What stands for a number that needs these and is not there."""
    return next((gone[dataset, c, s] for c, s in needed if (dataset, c, s) in gone), NOT_RUN)


def clean_masks(store: Store, jobs: Sequence[Job]) -> dict[tuple[str, Cell, int], np.ndarray]:
    """(data set, cell, seed) -> right without noise, on the most images measured."""
    rows = where(read(store, [job for job in jobs if cell_of(job)]), metric="clean")
    return {(row.dataset, cell(row.method), row.seed): row.hits for row in most_images(rows)}


def select(found: Sequence[Measured], dataset: str, needed: Sequence[tuple[Cell, float]], radii: Sequence[float],
           smooth: Smooth | None = None) -> dict[tuple[Cell, float], dict[int, Measured]]:
    """Each needed cell and noise level by seed, all with the same n, alpha, images and seeds, so that they can be compared.

    Of several settings the one with most seeds, then most draws, then most images; empty if no seed has all.

    Args:
        radii: must have been settled. smooth: the least that is accepted; None: anything.
    Raises:
        ValueError: cells on different test images.
    """
    settings: dict[tuple, dict[tuple[Cell, float], dict[int, Measured]]] = {}
    wanted = set(needed)
    for m in found:
        c = m.certification
        if m.absent or m.dataset != dataset or (m.cell, m.sigma) not in wanted or not m.settles(radii):
            continue
        if smooth and (c.n < smooth.n or c.alpha != smooth.alpha or c.images < smooth.min_images):
            continue
        settings.setdefault((c.n, c.alpha, c.images, c.seed), {}).setdefault((m.cell, m.sigma), {})[m.seed] = m
    best: tuple[tuple, dict] = ((0, 0, 0), {})
    for (n, _, images, _), cells in settings.items():
        if set(cells) != wanted:
            continue
        seeds = sorted(set.intersection(*(set(by_seed) for by_seed in cells.values())))
        if seeds and (len(seeds), n, images) > best[0]:
            best = (len(seeds), n, images), {key: {s: cells[key][s] for s in seeds} for key in needed}
    splits = {m.split for by_seed in best[1].values() for m in by_seed.values()}
    if len(splits) > 1:
        raise ValueError(f"expected cells of {dataset} on the same test images, got the splits {', '.join(sorted(splits))}; give "
                         "all the same data")
    return best[1]


def stack(by_seed: dict[int, Measured], radii: Sequence[float]) -> np.ndarray:
    """Boolean (seeds, N, radii)."""
    return np.stack([m.reached(radii) for m in by_seed.values()])


def grid_radius(by_seed: dict[int, Measured], radii: Sequence[float]) -> np.ndarray:
    """The largest of `radii` that is certified, 0 where the answer is wrong or missing; float64 (seeds, N).

    Radii between those asked for are not waited for, so only this can be averaged fairly.
    """
    radii = sorted(r for r in radii if r > 0)
    return stack(by_seed, radii) @ np.diff([0.0, *radii])
