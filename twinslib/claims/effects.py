"""One measured effect: what a network does against another in one measure, with its interval."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..evidence import frame
from ..evidence.frame import Row
from ..specs.labels import MEAN, attack_label, dataset_label, method_label, points, rounded, unique
from ..studies.rules import Rule

METRICS = {"clean": "clean", "lr_over_w2": "lr/||w||²", "angle": "angle per step", "loss": "PGD loss on training images",
           "gap": "gap", "passes": "passes"}


@dataclass(frozen=True)
class Effect:
    """What a method does against its baseline (or, where both are the same, by itself) in one measure, over data sets (`dataset`
    "mean") or on one, with its interval (NaN where one seed gives none)."""

    method: str
    baseline: str
    metric: str
    attack: str
    dataset: str
    images: int
    seeds: int
    value: float
    low: float
    high: float
    p_value: float = math.nan
    unit: str = "points"  # of accuracy, value as a fraction; or times (a ratio), nats, or radius (in [0, 1] pixels)
    where: str = ""  # at which epoch, noise level, radius or rate, for display
    part: str = ""  # the word of `rules.PARTS` that bounds know it by
    level: float = 0.95  # of the interval
    ours: float = math.nan  # accuracy of the networks (of means that of the data set nearest to chance), and of guessing
    theirs: float = math.nan
    chance: float = math.nan

    def __str__(self) -> str:
        certified = "/" in self.method  # a cell; `where` says what is certified
        measure = "" if certified else f", {METRICS.get(self.metric) or attack_label(self.attack)}"
        on = "" if self.dataset == MEAN else f" on {dataset_label(self.dataset)}"
        where = f", {self.where}" if certified else ""
        after = f" ({self.where})" if self.where and not certified else ""
        return f"{pair_label(self.pair, self.unit)}{measure}{where}{on}: {self.number()}{after}"

    def number(self) -> str:
        """+1.2 [-0.5, +2.9], or 1.20 [0.95, 1.52] for a ratio; the level where it is not 95 %."""
        level = "" if abs(self.level - 0.95) < 1e-9 else f" at {100 * self.level:.3g} %"
        if self.unit == "points":
            value = f"{rounded(100 * self.value, 1):+.1f}"
            return (value if math.isnan(self.low) else points(self.value, self.low, self.high)) + level
        sign, digits = ("", 2) if self.unit == "times" else ("+", 3 if self.unit == "radius" else 2)
        value, low, high = (f"{rounded(x, digits):{sign}.{digits}f}" for x in (self.value, self.low, self.high))
        return value + ("" if math.isnan(self.low) else f" [{low}, {high}]") + (" nats" if self.unit == "nats" else "") + level

    def near_chance(self, distance: float) -> bool:
        """True if one of the networks is right no more than `distance` more often than by guessing."""
        return not math.isnan(self.chance) and min(self.ours, self.theirs) <= self.chance + distance

    @property
    def pair(self) -> tuple[str, str]:
        return self.method, self.baseline

    @property
    def comparison(self) -> tuple:
        """What is the same on every data set."""
        return *self.pair, self.metric, self.part

    @property
    def words(self) -> set[str]:
        return set(self.comparison)


def pair_label(pair: tuple[str, str], unit: str = "points") -> str:
    """TWINS-AT - AT, TWINS-AT / AT for a ratio, AT where both are the same."""
    first, second = map(method_label, pair)
    return first if pair[0] == pair[1] else f"{first} {'/' if unit == 'times' else '-'} {second}"


def effect(pair: tuple[str, str], metric: str, dataset: str, a: Sequence[np.ndarray], b: Sequence[np.ndarray], /, *,
           level: float = 0.95, over: str = "images", accuracies: bool = True, **more: object) -> Effect:
    """What two networks differ by (`frame.contrast`), from what was measured of each seed of both. `accuracies`: the values are
    masks or means of some, so that their means are accuracies."""
    found = frame.contrast(a, b, level, over)
    if accuracies:
        ours, theirs = (float(np.mean([v[:found.images].mean() for v in side])) for side in (a, b))
        more = {"ours": ours, "theirs": theirs} | more
    return Effect(*pair, metric, **{"attack": "none", "dataset": dataset, "level": level} | found._asdict() | more)


def compared(rows: Sequence[Row], rule: Rule, pair: tuple[str, str], metric: str,
             at: tuple[str, str] = ("last", "last")) -> list[tuple[Row, Row]]:
    """What is finished of both and counts, by the strongest attack that most of it has."""
    both = frame.paired(*(frame.where(rows, method=name, metric=metric, at=place) for name, place in zip(pair, at, strict=True)))
    return frame.strongest([rows for rows in frame.done(both) if all(counts(row, rule) for row in rows)])


def by_dataset(rows: Sequence[Row], rule: Rule, pair: tuple[str, str], metric: str, guess: Mapping[str, float], *,
               at: tuple[str, str] = ("last", "last"), over: str = "images", **more: object) -> list[Effect]:
    """The effect on each data set over the seeds that are `compared`; of a method alone where a pair is twice the same. `guess`:
    data set -> accuracy of guessing. `at`: the epoch of either network."""
    both, alone, out = compared(rows, rule, pair, metric, at), pair[0] == pair[1] and at[0] == at[1], []
    for dataset in unique(row.dataset for row, _ in both):
        ours, theirs = zip(*(rows for rows in both if rows[0].dataset == dataset), strict=True)
        a, b = ([row.hits for row in side] for side in (ours, theirs))
        known: dict = {"attack": ours[0].attack}
        if over == "images":
            known["chance"] = guess.get(dataset, math.nan)
        else:
            known["images"] = min(row.images for row in ours)  # that the numbers were measured on
        if ours[0].ends:  # the lowest of their means over seeds
            known |= {name: float(np.mean([row.ends for row in side], axis=0).min())
                      for name, side in (("ours", ours), ("theirs", theirs))}
        out.append(effect(pair, metric, dataset, a, [np.zeros(len(v)) for v in a] if alone else b, over=over,
                          accuracies=over == "images", **known | more))
    return out


def counts(row: Row, rule: Rule) -> bool:
    """True if a measurement is one that the rule looks at: attacked at its radius, and on enough images."""
    if rule.robust is None or row.metric not in ("robust", "gap"):
        return rule.smooth is None or len(row.hits) >= rule.smooth.min_images
    r = rule.robust
    return row.threat == r.threat and math.isclose(row.eps, r.eps, rel_tol=1e-6) and len(row.hits) >= r.min_images


def of_means(lines: Sequence[Effect]) -> Effect | None:
    """The mean of effects over data sets (`frame.mean_interval`); None for a single data set."""
    if len(lines) < 2:
        return None
    nearest = min(lines, key=lambda e: math.inf if math.isnan(e.chance) else min(e.ours, e.theirs) - e.chance)
    value, low, high = frame.mean_interval([(e.value, e.low, e.high) for e in lines], nearest.level)
    return dataclasses.replace(nearest, dataset=MEAN, images=min(e.images for e in lines), seeds=min(e.seeds for e in lines),
                               value=value, low=low, high=high, p_value=math.nan)


def turned(e: Effect) -> Effect:
    """The same with method and baseline exchanged."""
    return dataclasses.replace(e, method=e.baseline, baseline=e.method, value=-e.value, low=-e.high, high=-e.low, ours=e.theirs,
                               theirs=e.ours)
