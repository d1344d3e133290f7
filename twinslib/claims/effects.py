"""One measured effect, the five words of a verdict, and how a rule's bounds turn intervals into one of them."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..evidence import pairs
from ..specs.labels import MEAN, attack_label, dataset_label, method_label, points
from ..studies.rules import Bound, Rule

REPRODUCED, PARTLY, INCONCLUSIVE, NOT = "reproduced", "partly", "inconclusive", "not"
NOT_TESTED = "not tested at this scale"
VERDICTS = (REPRODUCED, PARTLY, INCONCLUSIVE, NOT, NOT_TESTED)
CREDIT = {REPRODUCED: 2, PARTLY: 1}  # how much a verdict grants the claim; the other three grant nothing
NEAR = 0.05  # accuracy above that of guessing
METRICS = {"clean": "clean", "lr_over_w2": "lr/||w||²", "angle": "angle per step", "loss": "PGD loss on training images",
           "gap": "gap", "passes": "passes"}


@dataclass(frozen=True)
class Effect:
    """What a method does against its baseline (or, where both are the same, by itself) in one measure, over data sets
    (`dataset` "mean") or on one, with its interval (NaN where one seed gives none).

    Args:
        unit: points (of accuracy, value as a fraction), times (a ratio), nats, or radius (in [0, 1] pixels).
        where: at which epoch, noise level, radius or rate, for display. part: the word of `rules.PARTS` that bounds know it by.
        level: of the interval.
        ours, theirs, chance: accuracy of both networks (of means that of the data set nearest to chance), and of guessing.
    """

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
    unit: str = "points"
    where: str = ""
    part: str = ""
    level: float = 0.95
    ours: float = math.nan
    theirs: float = math.nan
    chance: float = math.nan

    def __str__(self) -> str:
        certified = "/" in self.method  # a cell; `where` says what is certified
        measure = "" if certified else f", {METRICS.get(self.metric) or attack_label(self.attack)}"
        on = "" if self.dataset == MEAN else f" on {dataset_label(self.dataset)}"
        where = f", {self.where}" if certified else ""
        after = f" ({self.where})" if self.where and not certified else ""
        return f"{pair_label((self.method, self.baseline), self.unit)}{measure}{where}{on}: {self.number()}{after}"

    def number(self) -> str:
        """+1.2 [-0.5, +2.9], or 1.20 [0.95, 1.52] for a ratio; the level where it is not 95 %."""
        level = "" if abs(self.level - 0.95) < 1e-9 else f" at {100 * self.level:.3g} %"
        if self.unit == "points":
            return (f"{100 * self.value:+.1f}" if math.isnan(self.low) else points(self.value, self.low, self.high)) + level
        sign, digits = ("", 2) if self.unit == "times" else ("+", 3 if self.unit == "radius" else 2)
        value, low, high = (f"{round(x, digits) + 0.0:{sign}.{digits}f}" for x in (self.value, self.low, self.high))
        return value + ("" if math.isnan(self.low) else f" [{low}, {high}]") + (" nats" if self.unit == "nats" else "") + level

    def near_chance(self, distance: float) -> bool:
        """True if one of the networks is right no more than `distance` more often than by guessing."""
        return not math.isnan(self.chance) and min(self.ours, self.theirs) <= self.chance + distance

    @property
    def words(self) -> set[str]:
        return {self.metric, self.method, self.baseline, self.part}


@dataclass(frozen=True)
class Evidence:
    """What finished runs say on a rule.

    Args:
        effects: decide. flagged: effects on data sets near chance, shown and left out. everywhere: what would decide with those
            left in; none where nothing is left out.
        detail: all that is measured. holds: conditions beside the intervals, by the verdict that needs them. said: in words.
        lack: why nothing can be judged; then there is no verdict. remark: on a verdict that grants something.
        verdict: where a rule is more than bounds on intervals, what it comes to.
    """

    effects: tuple[Effect, ...] = ()
    flagged: tuple[Effect, ...] = ()
    everywhere: tuple[Effect, ...] = ()
    detail: tuple[Effect, ...] = ()
    holds: Mapping[str, bool] = field(default_factory=dict)
    said: str = ""
    lack: str = ""
    remark: str = ""
    verdict: str = ""


def level(intervals: int) -> float:
    """Of each of so many intervals that decide together: 95 % for one or two, then such that all their 5 % are one.

    A verdict that grants something needs an interval above what has no effect, and "not" one below what is claimed. Of k
    intervals, each missing on that side with (1 - level) / 2, one does with at most 5 %.
    """
    return 1 - 0.1 / max(intervals, 2)


def decide(rule: Rule, effects: Sequence[Effect], holds: Mapping[str, bool] | None = None) -> str:
    """The verdict on intervals alone.

    Reproduced: of one alternative of `rule.asked` all bounds hold. Partly: of one of `rule.partly`. Not: each alternative of
    `rule.asked` has an effect whose interval lies wholly below what is claimed, and not above what is asked. Else inconclusive.

    Args:
        holds: conditions beside the intervals; a verdict whose condition fails is not given.
    """
    holds, sign = holds or {}, -1 if rule.lower else 1

    def low(e: Effect) -> float:
        return min(sign * e.low, sign * e.high)

    def high(e: Effect) -> float:
        return max(sign * e.low, sign * e.high)

    def named(bound: Bound) -> list[Effect]:
        return [e for e in effects if set(bound.of) <= e.words]

    def met(bound: Bound) -> bool:
        mine = named(bound)
        return bool(mine) and all(low(e) > bound.above and (bound.reach is None or high(e) >= bound.reach) for e in mine)

    def excluded(bound: Bound) -> bool:
        return bound.claimed is not None and any(high(e) < bound.claimed and not low(e) > bound.above for e in named(bound))

    for verdict, alternatives in ((REPRODUCED, rule.asked), (PARTLY, rule.partly)):
        if holds.get(verdict, True) and any(all(map(met, bounds)) for bounds in alternatives):
            return verdict
    return NOT if rule.asked and all(any(map(excluded, bounds)) for bounds in rule.asked) else INCONCLUSIVE


def lesser(verdict: str, other: str) -> str:
    """`verdict`, or where `other` grants the claim less, that much less: partly, or inconclusive."""
    if CREDIT.get(other, 0) >= CREDIT.get(verdict, 0):
        return verdict
    return PARTLY if other == PARTLY else INCONCLUSIVE


def judge(rule: Rule, found: Evidence) -> str:
    """The verdict on evidence, by `decide`. Leaving out data sets near chance can only withhold: where something is left out,
    the claim must be granted as much with them."""
    if found.lack:
        return NOT_TESTED
    verdict = found.verdict or decide(rule, found.effects, found.holds)
    return lesser(verdict, decide(rule, found.everywhere, found.holds)) if found.everywhere else verdict


def distance(rule: Rule) -> float:
    """From chance up to which a network decides nothing; of rules that judge nothing that up to which it is flagged."""
    return NEAR if rule.measure == "shown" else rule.chance


def apart(effects: Sequence[Effect], rule: Rule) -> list[Effect]:
    """All effects on those data sets on which one of them is near chance."""
    near = {e.dataset for e in effects if e.near_chance(distance(rule))}
    return [e for e in effects if e.dataset in near]


def asked_of(rule: Rule, e: Effect) -> bool:
    """True if a bound of `rule.asked` names the effect."""
    return any(set(b.of) <= e.words for bounds in rule.asked for b in bounds)


def against(rule: Rule, e: Effect) -> str:
    """What the rule asks of an effect and whether its interval is so, in words; "" where nothing is asked."""
    sign, out = -1 if rule.lower else 1, []
    for b in (b for bounds in rule.asked for b in bounds if set(b.of) <= e.words):
        ends, scale = sorted((sign * e.low, sign * e.high)), sign * (100 if e.unit == "points" else 1)
        out.append(f"asked: {'below' if rule.lower else 'above'} {scale * b.above + 0:g}, {'yes' if ends[0] > b.above else 'no'}")
        if b.claimed is not None:
            out.append(f"claimed {scale * b.claimed:g}, {'excluded' if ends[1] < b.claimed else 'not excluded'}")
    return f"  [{'; '.join(dict.fromkeys(out))}]" if out else ""


def too_few(rule: Rule, seeds: Mapping[str, int]) -> str:
    """Why there are too few seeds or data sets for a rule; "" where there are enough.

    Args:
        seeds: data set -> seeds of all that is compared.
    """
    if sum(n >= rule.min_seeds for n in seeds.values()) >= rule.min_datasets:
        return ""
    there = ", ".join(f"{n} on {dataset_label(d)}" for d, n in seeds.items()) or "none"
    return (f"{rule.min_seeds} seeds of all that is compared are needed on {rule.min_datasets} data "
            f"set{'s' if rule.min_datasets > 1 else ''}, finished of all of it: {there}")


def said(rule: Rule, effects: Sequence[Effect]) -> str:
    """How many intervals lie above what is asked, and how many below what is claimed."""
    sign, above, below = -1 if rule.lower else 1, set(), set()
    bounds = [b for alternative in rule.asked for b in alternative]
    for i, e in enumerate(effects):
        for b in bounds:
            if set(b.of) <= e.words:
                above |= {i} if min(sign * e.low, sign * e.high) > b.above else set()
                below |= {i} if b.claimed is not None and max(sign * e.low, sign * e.high) < b.claimed else set()
    counted = sum(asked_of(rule, e) for e in effects)
    return f"of {counted} interval{'s' * (counted != 1)} {len(above)} as asked, {len(below - above)} without the claimed effect"


def pair_label(pair: tuple[str, str], unit: str = "points") -> str:
    """TWINS-AT - AT, TWINS-AT / AT for a ratio, AT where both are the same."""
    first, second = map(method_label, pair)
    return first if pair[0] == pair[1] else f"{first} {'/' if unit == 'times' else '-'} {second}"


def of_masks(pair: tuple[str, str], metric: str, attack: str, dataset: str, masks: Sequence[tuple[np.ndarray, np.ndarray]], *,
             level: float = 0.95, chance: float = math.nan, **more: object) -> Effect:
    """The difference of two accuracies over seeds and images (`pairs.over_seeds`), from both masks of each seed."""
    images, seeds, *numbers = pairs.over_seeds(masks, 0, level)
    ours, theirs = (float(np.mean([both[i][:images].mean() for both in masks])) for i in (0, 1))
    return Effect(*pair, metric, attack, dataset, images, seeds, *numbers, level=level, ours=ours, theirs=theirs, chance=chance,
                  **more)


def of_means(lines: Sequence[Effect]) -> Effect | None:
    """The mean of effects over data sets (`pairs.mean_interval`); None for a single data set."""
    if len(lines) < 2:
        return None
    nearest = min(lines, key=lambda e: math.inf if math.isnan(e.chance) else min(e.ours, e.theirs) - e.chance)
    value, low, high = pairs.mean_interval([(e.value, e.low, e.high) for e in lines], nearest.level)
    return dataclasses.replace(nearest, dataset=MEAN, images=min(e.images for e in lines), seeds=min(e.seeds for e in lines),
                               value=value, low=low, high=high, p_value=math.nan)


def turned(e: Effect) -> Effect:
    """The same with method and baseline exchanged."""
    return dataclasses.replace(e, method=e.baseline, baseline=e.method, value=-e.value, low=-e.high, high=-e.low, ours=e.theirs,
                               theirs=e.ours)
