"""What adversarial fine-tuning and its rivals cost, in passes over the training set (forward and backward, one half each), on the
clock and of the processor."""

import itertools
from collections.abc import Sequence

import numpy as np
import pandas as pd

from ..evidence.accuracy import lost
from ..evidence.networks import COSTS, known
from ..specs.labels import NOT_RUN, method_label, unique
from ..specs.run import RunSpec
from .tables import interval, listed, student

OURS, AT, RANDOM = "aft", "at_scratch", "aft_random"
RIVALS = (AT, "trades_scratch", "free_at", "fast_at", RANDOM)
NETWORKS = {"start": "start", "best": "best epoch", "last": "last epoch"}
UNKNOWN = "start not ours"
OTHER = "other precision"  # in place of a ratio of times that the hardware alone would change
PRECISIONS = {cost: "precision_whole" if cost.endswith("whole") else "precision" for cost in COSTS[2:]}  # of times, not of passes
RATIOS = {f"{unit} / AFT, start {how}": cost for (unit, how), cost in zip(
    itertools.product(("passes", "hours", "processor hours"), ("given", "included")), COSTS, strict=True)}


def passes_per_epoch(spec: RunSpec) -> float | None:
    """Passes over the training set in one epoch as counted by hand: one for each step of the attack and for each kind of images
    that the loss takes, in Free training one for each replay; None for methods with further terms."""
    m = spec.method
    if max(m.awp_gamma, m.distill_weight, m.feature_weight, m.source_weight):
        return None
    if m.replays > 1 or not m.attacks:
        return float(m.replays)
    target = 0.5 if spec.attack.loss == "kl" else 0.0  # the clean logits that the attack moves away from, forward only
    return len(m.inputs) + (spec.attack.steps + target if spec.attack.steps and spec.attack.eps else 0.0)


def main_part(frame: pd.DataFrame, dataset: str) -> pd.DataFrame:
    """Lines of the main part trained and attacked under the threat of AFT."""
    lines = frame[(frame["dataset"] == dataset) & (frame["part"] == "main")]
    threat = next(iter(lines.loc[lines["method"] == OURS, "trained_threat"]), "linf")
    return lines[lines["trained_threat"] == threat]


def ratios(frame: pd.DataFrame, dataset: str) -> pd.DataFrame:
    """`COSTS` of each network of the main part (trained from random weights or from a start network of its own) over those of AFT
    at its last epoch, same seed: method, at, seed, then the ratios, NaN where not known; precision, of both; and of which costs
    the times are of two precisions (other)."""
    each = main_part(frame, dataset).dropna(subset="value").drop_duplicates(["method", "at", "seed"])
    ours = each[(each["method"] == OURS) & (each["at"] == "last")].set_index("seed")
    each = each[(each["method"] != OURS) & (each["at"] != "start") & each["seed"].isin(ours.index)]
    ours = ours.loc[each["seed"]].set_index(each.index)
    differs = {c: each[p] != ours[p] for c, p in PRECISIONS.items()}
    return each[["method", "at", "seed"]].join(each[COSTS] / ours[COSTS].replace(0, np.nan)).assign(
        precision=[" / ".join(unique(both)) for both in zip(each["precision"], ours["precision"], strict=True)],
        other=[{c for c in differs if differs[c][i]} for i in each.index])


def cost_table(frame: pd.DataFrame, dataset: str) -> pd.DataFrame:
    """What each rival at its best and last epoch spent over what AFT did, and the precision of training, of both where it
    differs; over several seeds geometric means with Student's 95 % interval of the logarithms. Times of two precisions are not
    compared."""
    found, main, lines = ratios(frame, dataset), known(main_part(frame, dataset)), []
    gone = lost(main[main["at"] != "start"], "method")
    for method in unique([*RIVALS, *found["method"]]):
        mine, word = found[found["method"] == method], gone.get(OURS) or gone.get(method, NOT_RUN)
        for at in [a for a in ("best", "last") if a in set(mine["at"])] or [None]:
            group = mine[mine["at"] == at]
            head = {"method": method_label(method), "network": NETWORKS.get(at, word), "seeds": listed(group["seed"], word),
                    "precision (/ AFT's)": listed(group["precision"], word)}
            lines.append(head | {title: _geometric(group[c], set().union(*group["other"]) >= {c}) if at else word
                                 for title, c in RATIOS.items()})
    return pd.DataFrame(lines)


def _geometric(values: Sequence[float], other: bool) -> str:
    if np.isnan(values).any():  # of runs of ours all is recorded
        return UNKNOWN
    return OTHER if other else interval(student(np.log(values), np.exp), "{:.2f}")
