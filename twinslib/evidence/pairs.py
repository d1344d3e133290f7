"""Differences between methods on the same test images, from stored masks: by seed, over seeds, over data sets.

Frames hold fractions, tables are text in points.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from ..base import stats
from ..specs.labels import MEAN, MEAN_OF_ALL, unique
from ..specs.measure import EvalSpec
from ..store.jobs import Job
from ..store.store import NOT_RUN, Store

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


Masks = list[tuple[str, EvalSpec, int, tuple[np.ndarray, np.ndarray] | None]]  # data set, measurement, seed, both masks


def comparisons(jobs: Sequence[Job]) -> list[tuple[str, str]]:
    """(method, baseline) for everything that `jobs` compare: TWINS and its baselines, ways of keeping robustness, controls,
    other weights of the frozen wing."""
    names = unique(job.spec.method.name for job in jobs)
    lambdas = [(name, "twins_at") for name in names if name.startswith("twins_at_lambda")]
    return [pair for pair in (*PAIRS, *BASELINES, *CONTROLS, *lambdas) if set(pair) <= set(names)]


def paired_masks(store: Store, jobs: Sequence[Job], method: str, baseline: str) -> Masks:
    """The masks of a method and its baseline on the same test images, for each data set, measurement and seed that `jobs`
    have for both; None where one is not done.

    Raises:
        ValueError: two runs for one data set, method and seed, or two runs whose test images differ.
    """
    plan: dict[tuple[str, str, int], Job] = {}
    for job in jobs:
        key = job.spec.data.name, job.spec.method.name, job.spec.seed
        if plan.setdefault(key, job).spec != job.spec:
            raise ValueError(f"expected one run per data set, method and seed, got two for {', '.join(map(str, key))}; "
                             "pass the jobs of one study, arch and norm")
        plan[key] = dataclasses.replace(job, evals=tuple(dict.fromkeys([*plan[key].evals, *job.evals])))
    out: Masks = []
    for (dataset, name, seed), ours in plan.items():
        theirs = plan.get((dataset, baseline, seed))
        if name != method or theirs is None:
            continue
        records = [store.run(job.spec) for job in (ours, theirs)] if ours.settled and theirs.settled else [None]
        splits = [] if None in records else [record["split"] for record in records]
        if len(set(splits)) > 1:
            raise ValueError(f"expected {method} and {baseline} on the same images of {dataset}, got the splits "
                             f"{splits[0]} and {splits[1]}; give both the same data")
        for e in _last_stages(ours.evals, theirs.evals):
            found = [store.masks(job.spec, e) for job in (ours, theirs)] if splits else [None]
            out.append((dataset, e, seed, None if None in found else tuple(m[e.attack_name] for m in found)))
    return out


def paired_rows(store: Store, jobs: Sequence[Job], pairs: Sequence[tuple[str, str]] = PAIRS) -> pd.DataFrame:
    """accuracy(method) - accuracy(baseline) on the same test images, seed by seed, as fractions.

    Args:
        pairs: (method, baseline) names; a pair is used on every data set where `jobs` has both.
    Returns:
        One line per (dataset, method, baseline, seed) and measurement, in the order of `jobs`: value with the 95 %
        interval of `stats.paired_difference` over its n images; NaN where a run or a measurement is not done, absent says
        why.
    Raises:
        ValueError: see `paired_masks`.
    """
    out = []
    for method, baseline in pairs:
        for dataset, e, seed, masks in paired_masks(store, jobs, method, baseline):
            found = stats.paired_difference(*masks)[:3] if masks else [math.nan] * 3
            absent = "" if masks else _absent(store, jobs, (method, baseline), dataset, _measurement(e), seed)
            out.append([dataset, method, baseline, str(seed), *_measurement(e), e.images, *found, absent])
    return pd.DataFrame(out, columns=["dataset", "method", "baseline", "seed", *MEASURED, "n", "value", "low", "high", "absent"])


def differences(store: Store, jobs: Sequence[Job], pairs: Sequence[tuple[str, str]],
                standing: Mapping[tuple[str, str], Standing] | None = None) -> pd.DataFrame:
    """accuracy(method) - accuracy(baseline) over all finished seeds, as fractions, with 95 % intervals.

    Args:
        standing: comparisons that a verdict is given on (`claims.standing`). They are made of its runs; clean accuracy and the
            judged attack are corrected together; data sets near chance are left out of the mean and of the correction, and a line
            with dataset "mean of all" has them in.
    Returns:
        One line per (dataset, method, baseline) and measurement. With one seed the interval is that of
        `stats.paired_difference` and speaks about other images, with more that of `stats.crossed_difference`, about other
        images and other seeds. p_holm is corrected over the data sets of a comparison (Holm); near says which is near chance. A
        line with dataset "mean" follows where a comparison has at least three data sets, with the interval of `mean_interval`.
        Not done: NaN with 0 seeds, and absent says why.
    Raises:
        ValueError: see `paired_masks`.
    """
    out = []
    for method, baseline in pairs:
        stands = (standing or {}).get((method, baseline))
        near = stands.near if stands else frozenset()
        masks = paired_masks(store, stands.jobs if stands else jobs, method, baseline)
        groups: dict[tuple, list] = {}
        for measured in unique(_measurement(e) for _, e, _, _ in masks):
            for dataset in unique(d for d, e, _, _ in masks if _measurement(e) == measured):
                mine = [(e.images, both) for d, e, _, both in masks if d == dataset and _measurement(e) == measured]
                found = over_seeds([both for _, both in mine if both], mine[0][0])
                groups.setdefault(measured, []).append([dataset, *found])
        families: dict[object, list] = {}
        for measured, lines in groups.items():
            judged = stands and (measured[0] == "clean_acc" or (measured[3] == stands.attack and measured[2] == stands.eps))
            families.setdefault(judged or measured, []).extend(x for x in lines if x[2] and x[0] not in near)
        corrected = {id(line): p for family in families.values() if family
                     for line, p in zip(family, stats.holm([line[6] for line in family]), strict=True)}
        for measured, lines in groups.items():
            shown = [[*line, corrected.get(id(line), math.nan), line[0] in near,
                      "" if line[2] else _absent(store, jobs, (method, baseline), line[0], measured)] for line in lines]
            done = [line for line in lines if line[2]]
            clear = [line for line in done if line[0] not in near]
            for name, some in ((MEAN, clear), (MEAN_OF_ALL, done if len(clear) < len(done) else ())):
                if len(some) >= (LEAST_DATASETS if len(clear) == len(done) else 2):
                    least = [min(line[k] for line in some) for k in (1, 2)]  # images, seeds
                    shown.append([name, *least, *mean_interval([line[3:6] for line in some]), math.nan, math.nan, False, ""])
            out += [[d, method, baseline, *measured, *rest] for d, *rest in shown]
    return pd.DataFrame(out, columns=["dataset", "method", "baseline", *MEASURED, "n", "seeds", "value", "low", "high", "p_value",
                                      "p_holm", "near", "absent"])


def _absent(store: Store, jobs: Sequence[Job], pair: tuple[str, str], dataset: str, measured: tuple,
            seed: int | None = None) -> str:
    """Why a comparison has no value: what is said of a run of it that diverged, else "not run"."""
    words = (store.absent(job, e) for job in jobs if job.spec.method.name in pair and job.spec.data.name == dataset
             and seed in (None, job.spec.seed) for e in job.evals if _measurement(e) == measured)
    return next((word for word in words if word != NOT_RUN), NOT_RUN)


def mean_interval(found: Sequence[tuple[float, float, float]], level: float = 0.95) -> tuple[float, float, float]:
    """Mean of the differences (value, low, high) of several data sets, each with the same weight, and its interval at the level
    that theirs have.

    On each side the wider of Student's over the values, which speaks about data sets like these, and of the combination of the
    single intervals (MOVER, Zou and Donner 2008): the mean lies from its limit as far as the root of the summed squares of the
    single distances, divided by their number. Few values can agree by chance; the second keeps their own noise in. So does
    the modified Knapp-Hartung interval of meta-analyses. Two values tell nothing of other data sets: of them the second alone.
    """
    values, lows, highs = np.array(found).T
    mean, low, high, k = stats.student_interval(values, level) if len(found) > 2 else (values.mean(), math.inf, -math.inf, 2)
    return (float(mean), float(min(low, mean - math.sqrt(((values - lows) ** 2).sum()) / k)),
            float(max(high, mean + math.sqrt(((highs - values) ** 2).sum()) / k)))


def over_seeds(masks: Sequence[tuple[np.ndarray, np.ndarray]], images: int, level: float = 0.95) -> tuple:
    """(images, seeds, value, low, high, p-value) of a difference, from both masks of each finished seed, on the images that
    all of them have (measurements are on nested subsets)."""
    if not masks:
        return images, 0, *[math.nan] * 4
    common = min(len(mask) for mask, _ in masks)
    masks = [tuple(mask[:common] for mask in both) for both in masks]
    found = (stats.crossed_difference(*map(np.stack, zip(*masks, strict=True)), level) if len(masks) > 1
             else stats.paired_difference(*masks[0], level))
    return found.n, len(masks), found.estimate, found.low, found.high, found.p_value


def _measurement(e: EvalSpec) -> tuple[str, str, float, str]:
    return "clean_acc" if e.kind == "clean" else "robust_acc", e.threat, e.eps, e.attack_name


def _range(low: int, high: int, unit: str = "") -> str:
    """2, or 1 to 3; with a unit also its plural."""
    number = f"{low}" if low == high else f"{low} to {high}"
    return number + (f" {unit}{'' if high == 1 else 's'}" if unit else "")


def _last_stages(evals: Sequence, others: Sequence) -> list:
    """Evaluations that both runs have; of those with one attack and eps the one on the most images."""
    best = {}
    for e in evals:
        key = e.threat, e.eps, e.attack_name
        if e in others and (key not in best or e.images > best[key].images):
            best[key] = e
    return list(best.values())
