"""What adversarial fine-tuning and its rivals cost, in passes over the training set (forward and backward, one half each), on the
clock and of the processor."""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from ..base import stats
from ..evidence.networks import lost
from ..specs.labels import NOT_RUN, method_label, unique
from ..specs.run import RunSpec
from .tables import interval, listed

OURS, AT, RANDOM = "aft", "at_scratch", "aft_random"
RIVALS = (AT, "trades_scratch", "free_at", "fast_at", RANDOM)
NETWORKS = {"start": "start", "best": "best epoch", "last": "last epoch"}
UNKNOWN = "start not ours"


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
    """Cost of each network of the main part (trained from random weights or from a start network of its own) over that of AFT at
    its last epoch, same seed: method, at, seed, then of passes (given, whole), of seconds on the clock (seconds, seconds_whole)
    and of the processor (processor, processor_whole) the ratio with the start given and included; NaN where not known."""
    each = main_part(frame, dataset).dropna(subset="value").drop_duplicates(["method", "at", "seed"])
    ours = {r.seed: r for r in each[(each["method"] == OURS) & (each["at"] == "last")].itertuples()}
    names = {"given": "images_given", "whole": "images_whole"} | {
        name: name for name in ("seconds", "seconds_whole", "processor", "processor_whole")}
    out = [[r.method, r.at, r.seed, *(_over(getattr(r, c), getattr(ours[r.seed], c)) for c in names.values())]
           for r in each.itertuples() if r.method != OURS and r.at != "start" and r.seed in ours]
    return pd.DataFrame(out, columns=["method", "at", "seed", *names])


def cost_table(frame: pd.DataFrame, dataset: str) -> pd.DataFrame:
    """Passes, hours on the clock and processor hours of each rival at its best and last epoch over those of AFT, in both
    accountings; over several seeds geometric means with Student's 95 % interval of the logarithms."""
    found, main, lines = ratios(frame, dataset), main_part(frame, dataset), []
    titles = {"given": "passes / AFT, start given", "whole": "passes / AFT, start included",
              "seconds": "hours / AFT, start given", "seconds_whole": "hours / AFT, start included",
              "processor": "processor hours / AFT, start given", "processor_whole": "processor hours / AFT, start included"}
    gone = lost(main[main["at"] != "start"])
    for method in unique([*RIVALS, *found["method"]]):
        mine, word = found[found["method"] == method], gone.get(OURS) or gone.get(method, NOT_RUN)
        for at in [a for a in ("best", "last") if a in set(mine["at"])] or [None]:
            group = mine[mine["at"] == at]
            lines.append({"method": method_label(method), "network": NETWORKS[at] if at else word,
                          "seeds": listed(group["seed"], word)} | {
                title: _geometric(group[c]) if at else word for c, title in titles.items()})
    return pd.DataFrame(lines)


def _over(a: float, b: float) -> float:
    return a / b if b else math.nan


def _geometric(values: Sequence[float]) -> str:
    logs = np.log(np.asarray(values, dtype=float))
    if np.isnan(logs).any() or not len(logs):
        return UNKNOWN  # of runs of ours all is recorded
    found = stats.student_interval(logs)[:3] if len(logs) > 1 else (logs[0], math.nan, math.nan)
    return interval(np.exp(found), "{:.2f}")
