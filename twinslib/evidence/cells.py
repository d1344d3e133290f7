"""Certifications of the smoothing grid, cell by cell (`rules.Cell`), as masks over test images; what tables, figures and verdicts
stand on. Radii are L2 in [0, 1] pixels, accuracies fractions."""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from ..base.certified import Certified
from ..specs.jobs import Job
from ..specs.labels import NOT_RUN
from ..specs.measure import CertifySpec
from ..specs.run import RunSpec
from ..store.store import Store
from ..store.votes import Shares
from ..studies.rules import Cell, Smooth
from ..studies.smoothing import cell_of
from .frame import Row, most_images, read, where

NOTHING = np.empty(0)


@dataclasses.dataclass(frozen=True, eq=False)
class Measured:
    """One certification, done or asked for; certified, shares and chosen (the class that the first draws chose for each image,
    also where it abstains; None: the answers stand in) are those of its votes, draws counts all copies. Of one that is not there
    they are empty, and absent is what is said in its place."""

    cell: Cell
    spec: RunSpec
    certification: CertifySpec
    split: str = ""
    certified: Certified = Certified(*[NOTHING] * 5, False)
    shares: Shares = Shares(*[NOTHING] * 3)
    draws: int = 0
    chosen: np.ndarray | None = None
    absent: str = ""

    @property
    def dataset(self) -> str:
        return self.spec.data.name

    @property
    def seed(self) -> int:
        return self.spec.seed

    @property
    def sigma(self) -> float:
        return self.certification.sigma

    @property
    def key(self) -> tuple[str, Cell, float]:
        return self.dataset, self.cell, self.sigma

    def reached(self, radii: Sequence[float]) -> np.ndarray:
        """Boolean (N, radii): right, and certified at least that far."""
        c = self.certified
        return c.correct[:, None] & (c.radius[:, None] >= np.asarray(radii))

    @property
    def chance(self) -> float:
        """Share of the most frequent label: what the best constant answer gets right, at every radius."""
        return _largest(self.certified.label)

    def earned(self, radius: float) -> float:
        """`chance`, as far as the draws can reach."""
        return self.chance * (radius <= self.certification.plan.ceiling)

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


def planned(jobs: Sequence[Job]) -> list[Measured]:
    """Every certification of `jobs`, in their order, without looking for its votes."""
    return [Measured(dataclasses.replace(cell_of(job), restat=bool(c.restat_images)), job.spec, c, absent=NOT_RUN)
            for job in jobs if cell_of(job) for c in job.certs]


def read_votes(store: Store, jobs: Sequence[Job]) -> list[Measured]:
    """Every certification of `jobs`, with what is finished of it. ValueError: votes that were drawn in another way than asked
    for, such as with another noise level."""
    out = []
    for job, m in [(j, m) for j in jobs for m in planned([j])]:
        record = store.run(job.spec) if job.settled else None
        votes = store.votes(job.spec, m.certification) if record else None
        if votes is None:
            out.append(dataclasses.replace(m, absent=store.absent(job, m.certification)))
        else:
            out.append(Measured(m.cell, m.spec, m.certification, record["split"], votes.certified(), votes.shares(),
                                int(votes.draws.sum() + votes.pilot.sum()), votes.chosen))
    return out


def finished(store: Store, jobs: Sequence[Job]) -> list[Measured]:
    """Those that are done or have diverged."""
    return [m for m in read_votes(store, jobs) if m.absent != NOT_RUN]


def absent(found: Iterable[Measured], dataset: str, needed: Iterable[tuple[Cell, float]]) -> str:
    """What stands for a number that needs these and is not there: what is said of one that diverged in every seed, else
    "not run"."""
    words: dict[tuple[str, Cell, float], set[str]] = {}
    for m in found:
        words.setdefault(m.key, set()).add(m.absent)
    said = (words.get((dataset, *key), set()) - {NOT_RUN} for key in needed)
    return next((min(each) for each in said if each and "" not in each), NOT_RUN)


def clean(store: Store, jobs: Sequence[Job]) -> list[Row]:
    """What is measured of cells without noise, on the most images."""
    return most_images(where(read(store, [job for job in jobs if cell_of(job)]), metric="clean"))


def select(found: Sequence[Measured], dataset: str, needed: Sequence[tuple[Cell, float]], radii: Sequence[float],
           smooth: Smooth | None = None) -> dict[tuple[Cell, float], dict[int, Measured]]:
    """Each needed cell and noise level by seed, all with the same n, alpha, images and seeds, so that they can be compared.

    Of several settings the one with most seeds, then most draws, then most images; empty if no seed has all. `radii`: must have
    been settled. `smooth`: the least that is accepted; None: anything. ValueError: cells on different test images."""
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
