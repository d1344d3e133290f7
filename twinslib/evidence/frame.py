"""The frame of evidence: a row is one measurement of one network, with all that tells it apart. Two networks are compared on the
test images and seeds that both have, and over several attacks by the strongest that most of them have; here and nowhere else."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..base import stats
from ..specs.jobs import Job
from ..specs.measure import EvalSpec
from ..specs.run import RunSpec
from ..specs.strength import strength
from ..store.store import Store


@dataclass(frozen=True, eq=False)
class Row:
    """One measurement of one network, done or asked for."""

    study: str
    spec: RunSpec
    labels: tuple[tuple[str, str], ...]  # of the job
    metric: str  # clean, robust, or gap; of the network itself loss, lr_over_w2, angle, stable, passes
    # one value per test image: True where it is right, or a real number such as a gap; of the network itself one or several
    # numbers; None: not done
    hits: np.ndarray | None
    attack: str = "none"
    threat: str = "linf"
    eps: float = 0.0
    at: str = "last"  # of which epoch the network is
    images: int = 0  # asked for
    split: str = ""  # name of the test images' indices
    ends: tuple[float, ...] = ()  # accuracies that must all be away from chance; those of `hits` where none are given
    absent: str = ""  # what is said in place of `hits` that are not there

    @property
    def dataset(self) -> str:
        return self.spec.data.name

    @property
    def method(self) -> str:
        """Of the grid of smoothing the cell, pretraining/finetuning/norm."""
        labels = dict(self.labels)
        cell = [labels.get(name) for name in ("pretraining", "finetuning", "norm")]
        return self.spec.method.name if None in cell else "/".join(cell)

    @property
    def seed(self) -> int:
        return self.spec.seed

    @property
    def rate(self) -> float:
        """The base learning rate where it is a label, else 0."""
        return float(dict(self.labels).get("rate", 0))

    @property
    def measured(self) -> tuple:
        """What two rows have in common that can be compared, but for the data set and seed."""
        return self.metric, self.threat, self.eps, self.attack

    @property
    def test_images(self) -> tuple:
        """What the test images depend on."""
        d = self.spec.data
        return d.image_size, d.crop, d.exclude, d.split_seed


def read(store: Store, jobs: Sequence[Job], stages: bool = False) -> list[Row]:
    """Every evaluation of `jobs`, in their order; of AutoAttack what all its parts left, and with `stages` what the first ones
    did."""
    rows = []
    for job in jobs:
        record = store.run(job.spec) if job.settled else None
        for e in job.evals:
            found = (store.masks(job.spec, e) if record else None) or {}
            for name in found if stages and found else [e.attack_name]:
                absent = "" if name in found else store.absent(job, e)
                rows.append(of_evaluation(job, e, found.get(name), record["split"] if record else "", name, absent))
    return rows


def of_evaluation(job: Job, e: EvalSpec, hits: np.ndarray | None, split: str, attack: str = "", absent: str = "") -> Row:
    """The row of an evaluation. `attack`: the first parts of AutoAttack, where `hits` are what these left."""
    return Row(job.study, job.spec, job.labels, "clean" if e.kind == "clean" else "robust", hits, attack or e.attack_name,
               e.threat, e.eps, e.at, e.images, split, absent=absent)


def chance(store: Store, jobs: Sequence[Job]) -> dict[str, float]:
    """Data set -> accuracy of guessing, by the classes that the run records name."""
    classes = {}
    for job in jobs:
        if job.spec.data.name not in classes and (record := store.run(job.spec)) and record.get("classes"):
            classes[job.spec.data.name] = 1 / record["classes"]
    return classes


def where(rows: Iterable[Row], **labels: object) -> list[Row]:
    """Those of which each of these attributes is so."""
    return [row for row in rows if all(getattr(row, name) == value for name, value in labels.items())]


def paired(ours: Sequence[Row], theirs: Sequence[Row]) -> list[tuple[Row, Row]]:
    """Rows of two networks on one data set, with one seed, learning rate and attack; of several of one network that which is done
    on most images. ValueError: a network is not the only one for its data set, method and seed, or the test images of both
    differ."""
    first, second = _by_key(ours), _by_key(theirs)
    both = [(row, second[key]) for key, row in first.items() if key in second]
    for a, b in both:
        if a.hits is not None and b.hits is not None and a.test_images != b.test_images:
            raise ValueError(f"expected {a.method} and {b.method} on the same test images of {a.dataset}, got {a.test_images} "
                             f"and {b.test_images}; give both the same data")
    return both


def _by_key(rows: Sequence[Row]) -> dict[tuple, Row]:
    out: dict[tuple, Row] = {}
    for row in rows:
        key = row.dataset, row.seed, row.rate, row.measured
        before = out.setdefault(key, row)
        if before.spec != row.spec:
            raise ValueError(f"expected one run per data set, method and seed, got two for {row.dataset}, {row.method}, "
                             f"{row.seed}; pass the jobs of one study, arch and norm")
        out[key] = max(before, row, key=lambda r: (r.hits is not None, r.images))  # the first of equals
    return out


def most_images(rows: Sequence[Row]) -> list[Row]:
    """Each measurement of each network that is done, on the most images."""
    best: dict[tuple, Row] = {}
    for row in (row for row in rows if row.hits is not None):
        key = row.method, row.dataset, row.seed, row.measured
        best[key] = max(best.get(key, row), row, key=lambda r: r.images)  # the first of equals
    return list(best.values())


def done(pairs: Sequence[tuple[Row, Row]]) -> list[tuple[Row, Row]]:
    """Those of which both are finished."""
    return [both for both in pairs if all(row.hits is not None for row in both)]


def strongest(pairs: Sequence[tuple[Row, Row]]) -> list[tuple[Row, Row]]:
    """Of comparisons under several attacks those under the attack that most of them have, of equals the strongest."""
    by_attack: dict[str, list] = {}
    for both in pairs:
        by_attack.setdefault(both[0].attack, []).append(both)
    return by_attack[max(by_attack, key=lambda name: (len(by_attack[name]), strength(name)))] if by_attack else []


class Contrast(NamedTuple):
    """What two networks differ by, with its interval (NaN where one seed gives none) and, of masks, the p-value of "no
    difference"."""

    images: int
    seeds: int
    value: float
    low: float
    high: float
    p_value: float = math.nan


def contrast(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray], level: float = 0.95, over: str = "images") -> Contrast:
    """Mean difference over seeds, each array of `ours` being of the seed of that of `theirs`, on the first images that all have
    (measurements are on nested subsets).

    Of masks the interval is `stats.crossed_difference` (one seed: `stats.paired_difference`), of other values per image
    `stats.crossed_mean`.

    Args:
        over: "seeds" for numbers of networks, whose mean per seed has Student's interval; "ratios" for positive ones, whose
            geometric mean ratio has that of the logarithms.
    """
    n = min((np.size(values) for values in (*ours, *theirs)), default=0)
    if not n:
        return Contrast(0, 0, *[math.nan] * 4)
    a, b = (np.stack([np.reshape(values, -1)[:n] for values in some]) for some in (ours, theirs))
    if over == "images":
        masks = a.dtype == b.dtype == bool
        found = (stats.crossed_mean(a.astype(float) - b, level) if not masks
                 else stats.crossed_difference(a, b, level) if len(a) > 1 else stats.paired_difference(a[0], b[0], level))
        return Contrast(found.n, len(a), *found[:3], found.p_value if masks else math.nan)
    by_seed = np.log(a / b).mean(1) if over == "ratios" else (a - b).mean(1)
    found = stats.student_interval(by_seed, level)[:3] if len(a) > 1 else (float(by_seed[0]), math.nan, math.nan)
    return Contrast(0, len(a), *map(math.exp, found)) if over == "ratios" else Contrast(0, len(a), *found)


def mean_interval(found: Sequence[tuple[float, float, float]], level: float = 0.95) -> tuple[float, float, float]:
    """Mean of the differences (value, low, high) of several data sets, each with the same weight, and its interval at the level
    that theirs have: at each end the farther one of Student's and of that from the single intervals (MOVER, Zou and Donner 2008),
    since few values can agree by chance. Two values tell nothing of other data sets: of them the second alone."""
    values, lows, highs = np.array(found).T
    mean, low, high, k = stats.student_interval(values, level) if len(found) > 2 else (values.mean(), math.inf, -math.inf, 2)
    return (float(mean), float(min(low, mean - math.sqrt(((values - lows) ** 2).sum()) / k)),
            float(max(high, mean + math.sqrt(((highs - values) ** 2).sum()) / k)))
