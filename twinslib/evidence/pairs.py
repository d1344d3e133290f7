"""Differences between methods on the same test images, from stored masks: by seed, over seeds, over data sets.

Frames hold fractions, tables are text in points.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from ..base import stats
from ..specs.jobs import Job
from ..specs.labels import MEAN, MEAN_OF_ALL, NOT_RUN, unique
from ..store.store import Store
from .frame import Row, contrast, mean_interval, paired, read, where

PAIRS = (("twins_at", "at"), ("twins_trades", "trades"))
BASELINES = tuple((name, "at") for name in ("distill", "feature_distill", "l2sp", "joint", "joint_uot", "frozen_at",
                                            "at_natural", "at_random"))
CONTROLS = (  # what the gain of TWINS is held against, then TWINS with one thing changed
    ("twins_at", "at_lr"), ("twins_at", "at_split"), ("twins_at", "two_adaptive"), ("twins_at", "frozen_at"),
    ("twins_trades", "trades_beta3"), ("twins_trades_wing", "trades"), ("twins_shared", "twins_at"),
    ("twins_attack_frozen", "twins_at"), ("twins_attack_alternating", "twins_at"),
)  # fmt: skip
MEANS = (MEAN, MEAN_OF_ALL)
LEAST_DATASETS = 3  # for a mean: with two, an interval is either endless or, by chance, nothing
MEASURED = ["metric", "threat", "eps", "attack"]


class Standing(NamedTuple):
    """What a verdict on a comparison stands on: its runs, the attack and radius that it judges, and data sets near chance."""

    jobs: Sequence[Job]
    attack: str
    eps: float
    near: frozenset[str] = frozenset()


def comparisons(jobs: Sequence[Job]) -> list[tuple[str, str]]:
    """(method, baseline) for everything that `jobs` compare: TWINS and its baselines, ways of keeping robustness, controls,
    other weights of the frozen wing."""
    names = unique(job.spec.method.name for job in jobs)
    lambdas = [(name, "twins_at") for name in names if name.startswith("twins_at_lambda")]
    return [pair for pair in (*PAIRS, *BASELINES, *CONTROLS, *lambdas) if set(pair) <= set(names)]


def differences(store: Store, jobs: Sequence[Job], pairs: Sequence[tuple[str, str]],
                standing: Mapping[tuple[str, str], Standing] | None = None) -> pd.DataFrame:
    """accuracy(method) - accuracy(baseline) over all finished seeds, as fractions, with 95 % intervals.

    One line per (dataset, method, baseline) and measurement, with the interval of `frame.contrast`: of one seed it speaks about
    other images, of more about other images and other seeds. p_holm is corrected over the data sets of a comparison (Holm); near
    says which is near chance. A line with dataset "mean" follows where a comparison has three data sets or more, with the
    interval of `frame.mean_interval`. Not done: NaN with 0 seeds, and absent says why.

    Args:
        standing: comparisons that a verdict is given on (`ledger.standing`), either way round. They are made of its runs; clean
            accuracy and the judged attack are corrected together; data sets near chance (of other comparisons those that are
            `left_out`) have no part in the mean and in the correction, and a line with dataset "mean of all" has them in.
    Raises:
        ValueError: see `frame.paired`.
    """
    rows, out, nowhere = where(read(store, jobs), at="last"), [], left_out(standing or {})
    for pair in pairs:
        stands = (standing or {}).get(pair) or (standing or {}).get(pair[::-1])
        mine, near = (where(read(store, stands.jobs), at="last"), stands.near) if stands else (rows, nowhere)
        groups: dict[tuple, dict[str, list]] = {}
        for a, b in paired(*(where(mine, method=name) for name in pair)):
            groups.setdefault((f"{a.metric}_acc", a.threat, a.eps, a.attack), {}).setdefault(a.dataset, []).append((a, b))
        found = {key: {d: _difference(both) for d, both in group.items()} for key, group in groups.items()}
        p_values: dict[object, dict[tuple, float]] = {}  # by what is corrected together
        for key, lines in found.items():
            judged = stands and (key[0] == "clean_acc" or (key[3], key[2]) == (stands.attack, stands.eps))
            family = p_values.setdefault("judged" if judged else key, {})
            family |= {(key, d): line[5] for d, line in lines.items() if line[1] and d not in near}
        corrected = {place: p for family in p_values.values() if family
                     for place, p in zip(family, stats.holm(list(family.values())), strict=True)}
        for key, lines in found.items():
            for d, line in lines.items():
                asked = [row for row in where(rows, dataset=d) if row.method in pair and row.measured[1:] == key[1:]]
                out.append([d, *pair, *key, *line, corrected.get((key, d), math.nan), d in near,
                            "" if line[1] else next((row.absent for row in asked if row.absent not in ("", NOT_RUN)), NOT_RUN)])
            done = {d: line for d, line in lines.items() if line[1]}
            clear = [line for d, line in done.items() if d not in near]
            for name, some in ((MEAN, clear), (MEAN_OF_ALL, list(done.values()) if len(clear) < len(done) else [])):
                if len(some) >= (LEAST_DATASETS if len(clear) == len(done) else 2):
                    least = [min(line[k] for line in some) for k in (0, 1)]  # images, seeds
                    numbers = mean_interval([line[2:5] for line in some])
                    out.append([name, *pair, *key, *least, *numbers, math.nan, math.nan, False, ""])
    return pd.DataFrame(out, columns=["dataset", "method", "baseline", *MEASURED, "n", "seeds", "value", "low", "high", "p_value",
                                      "p_holm", "near", "absent"])


def left_out(standing: Mapping[tuple[str, str], Standing]) -> frozenset[str]:
    """Data sets near chance on which no verdict stands, so that nothing there is judged."""
    judged = set()
    for pair, s in standing.items():
        both = ({(job.spec.data.name, job.spec.seed) for job in s.jobs if job.spec.method.name == name} for name in pair)
        judged |= {dataset for dataset, _ in set.intersection(*both)} - s.near
    return frozenset().union(*(s.near for s in standing.values())) - judged


def paired_rows(store: Store, jobs: Sequence[Job], pairs: Sequence[tuple[str, str]] = PAIRS) -> pd.DataFrame:
    """`differences` seed by seed, without means: also seed, as text."""
    each = [differences(store, [job for job in jobs if job.spec.seed == seed], pairs).assign(seed=str(seed))
            for seed in unique(job.spec.seed for job in jobs) or [0]]
    found = pd.concat(each)
    order = [list(pairs).index(pair) for pair in zip(found["method"], found["baseline"], strict=True)]
    found = found.iloc[np.argsort(order, kind="stable")]
    return found[~found["dataset"].isin(MEANS)].reset_index(drop=True)


def _difference(both: Sequence[tuple[Row, Row]]) -> tuple:
    """(images, seeds, value, low, high, p-value); without a finished seed the images that are asked for, and NaN."""
    finished = [(a.hits, b.hits) for a, b in both if a.hits is not None and b.hits is not None]
    if not finished:
        return min(row.images for row in both[0]), 0, *[math.nan] * 4
    return contrast(*zip(*finished, strict=True))
