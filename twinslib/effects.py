"""One measured effect, the four words of a verdict, and what one data set says on a claim."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from .compare import MEAN
from .report import attack_label, dataset_label, method_label, points
from .rules import Rule

REPRODUCED, PARTLY, NOT, NOT_TESTED = "reproduced", "partly", "not", "not tested at this scale"
METRICS = {"clean": "clean", "lr_over_w2": "lr/||w||²", "angle": "angle per step", "loss": "PGD loss on training images",
           "gap": "gap"}


@dataclass(frozen=True)
class Effect:
    """What a method does against its baseline (or, where both are the same, by itself) in one measure, over data sets
    (`dataset` "mean") or on one, with its 95 % interval (NaN where one seed gives none).

    Args:
        unit: points (of accuracy, value as a fraction), times (a ratio) or nats.
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

    def __str__(self) -> str:
        measure = METRICS.get(self.metric) or attack_label(self.attack)
        where = "" if self.dataset == MEAN else f" on {dataset_label(self.dataset)}"
        return f"{pair_label((self.method, self.baseline), self.unit)}, {measure}{where}: {self._number()}"

    def _number(self) -> str:
        if self.unit == "points":
            return points(self.value, self.low, self.high)
        sign, unit = ("", "") if self.unit == "times" else ("+", f" {self.unit}")
        value, low, high = (f"{round(x, 2) + 0.0:{sign}.2f}" for x in (self.value, self.low, self.high))  # no negative zero
        return value + ("" if math.isnan(self.low) else f" [{low}, {high}]") + unit


@dataclass(frozen=True)
class Finding:
    """What one data set says on a claim, whatever its number of seeds."""

    seeds: int = 0
    effects: tuple[Effect, ...] = ()
    verdict: str = NOT_TESTED
    why: str = ""
    remark: str = ""


def gather(findings: Mapping[str, Finding], rule: Rule) -> tuple[dict, list[Finding]]:
    """Fields of a verdict (effects, detail, remark), and the findings on data sets with as many seeds as the rule wants; with too
    few of these, the fields also say "not tested" and why, and the list is empty."""
    whole = [f for f in findings.values() if f.seeds >= rule.min_seeds]
    out = {"effects": tuple(e for f in whole for e in f.effects),
           "detail": tuple(e for f in findings.values() for e in f.effects), "remark": ""}
    if len(whole) >= rule.min_datasets:
        return out, whole
    there = ", ".join(f"{f.seeds} on {dataset_label(d)}" for d, f in findings.items()) or "none"
    return out | {"verdict": NOT_TESTED, "why": f"{rule.min_seeds} seeds of all that is compared are needed on "
                  f"{rule.min_datasets} data set{'s' if rule.min_datasets > 1 else ''}, finished of all of it: {there}"}, []


def pair_label(pair: tuple[str, str], unit: str = "points") -> str:
    """TWINS-AT - AT, TWINS-AT / AT for a ratio, AT where both are the same."""
    first, second = map(method_label, pair)
    return first if pair[0] == pair[1] else f"{first} {'/' if unit == 'times' else '-'} {second}"
