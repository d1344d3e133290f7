"""One measured effect, and the four words of a verdict."""

import math
from dataclasses import dataclass

from .compare import MEAN
from .report import attack_label, dataset_label, method_label, points

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


def pair_label(pair: tuple[str, str], unit: str = "points") -> str:
    """TWINS-AT - AT, TWINS-AT / AT for a ratio, AT where both are the same."""
    first, second = map(method_label, pair)
    return first if pair[0] == pair[1] else f"{first} {'/' if unit == 'times' else '-'} {second}"
