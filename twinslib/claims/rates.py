"""Evidence on our claims about the learning rate: what TWINS gains at equal rates, and how much of it is a larger step.

Stands on the runs of study "learning_rates", labelled with part (grid, or long: more epochs) and rate (the base rate, which
`at_lr` multiplies by 1 + lambda), each measured clean and under attack.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from ..base import stats
from ..specs.labels import dataset_label, unique
from ..store.jobs import Job
from ..store.store import Store
from ..studies.rules import STEPPED, Rule
from .effects import NOT, REPRODUCED, Effect, Evidence, level, of_masks, said, too_few, turned
from .transfer import allowed, chance

STUDY = "learning_rates"
MEASURES = STEPPED
Masks = dict[tuple[str, str, float], dict[int, np.ndarray]]  # data set, method, rate -> seed -> right or wrong


def concerns(job: Job, rule: Rule) -> bool:
    """True if `job` is a run of the grid that the rule compares, at one of its rates."""
    return (job.study == STUDY and dict(job.labels).get("part") == "grid" and bool(job.evals)
            and job.spec.method.name in {name for pair in rule.pairs for name in pair} and rate(job) in rule.rates)


def rate(job: Job) -> float:
    """The base learning rate."""
    return float(dict(job.labels)["rate"])


def evidence(store: Store, jobs: Sequence[Job], rule: Rule, diverged: Sequence[Job] = ()) -> Evidence:
    """What finished runs that count say on a rule of `MEASURES`.

    Args:
        diverged: runs that ended without a result; a rate at which one of both did so is not compared, and then nothing holds at
            every rate.
    """
    (pair,), guess = rule.pairs, chance(store, jobs)
    masks = {metric: _masks(store, jobs, rule, metric) for metric in rule.metrics}
    datasets = unique(job.spec.data.name for job in jobs)
    lost = {(job.spec.data.name, rate(job)) for job in diverged}
    seeds = {d: min(len(_both(masks[m], d, pair, r)) for m in rule.metrics for r in rule.rates if (d, r) not in lost)
             for d in datasets if any((d, r) not in lost for r in rule.rates)}
    lack, whole = too_few(rule, seeds), [d for d in datasets if seeds.get(d, 0) >= rule.min_seeds]
    wide = level(len(rule.metrics) * (len(whole) or 1)) if rule.measure == "one_rate" else 0.95
    single = [of_masks(pair, m, attack, d, list(both.values()), level=wide, where=f"rate {r:g}", chance=guess.get(d, math.nan))
              for m, found in masks.items() for d in datasets for r in rule.rates
              if (both := _both(found, d, pair, r)) and (attack := "none" if m == "clean" else _attack(store, jobs, rule))]
    near = [e for e in single if e.near_chance(rule.chance)]
    out = {"detail": tuple(single), "flagged": tuple(near)}
    if lack:
        return Evidence(**out, lack=lack)
    places = {(e.dataset, e.where) for e in near}
    clear = [e for e in single if e.dataset in whole and (e.dataset, e.where) not in places]
    if len({e.dataset for e in clear}) < rule.min_datasets:
        return Evidence(**out, lack=f"near chance: {', '.join(unique(dataset_label(d) for d, _ in places))}")
    if rule.measure == "one_rate":
        everywhere = tuple(e for e in single if e.dataset in whole) if near else ()
        return Evidence(**out, effects=tuple(clear), everywhere=everywhere, said=said(rule, clear))
    kept = {(e.dataset, e.where) for e in clear}
    means = [_mean(masks[m], pair, m, [[_both(masks[m], d, pair, r) for r in rule.rates if (d, f"rate {r:g}") in kept]
                                       for d in whole], next(e for e in clear if e.metric == m)) for m in rule.metrics]
    gone = ", ".join(sorted(f"{dataset_label(d)} at {r:g}" for d, r in lost))
    words = said(rule, means) + (f"; diverged: {gone}" if gone else "")
    if rule.measure == "all_rates":
        return Evidence(**out, effects=tuple(means), said=words)
    outside = {m: [e.where for e in clear if e.metric == m and not (e.high >= -rule.margin and e.low <= rule.margin)]
               for m in rule.metrics}
    words += "; outside at single rates: " + (", ".join(x for places in outside.values() for x in places) or "none")
    verdict = NOT if any(len(set(places)) > 1 for places in outside.values()) else ""
    return Evidence(**out, effects=(*means, *map(turned, means)), said=words, verdict=verdict,
                    holds={REPRODUCED: not lost and not any(outside.values())})


def _masks(store: Store, jobs: Sequence[Job], rule: Rule, metric: str) -> Masks:
    out: Masks = {}
    for job in jobs:
        for e in job.evals:
            if (e.kind == "clean") if metric == "clean" else (e.kind == "pgd" and allowed(e, rule)):
                found = store.masks(job.spec, e)
                if found:
                    key = job.spec.data.name, job.spec.method.name, rate(job)
                    out.setdefault(key, {})[job.spec.seed] = found[e.attack_name]
    return out


def _attack(store: Store, jobs: Sequence[Job], rule: Rule) -> str:
    return next((e.attack_name for job in jobs for e in job.evals if e.kind == "pgd" and allowed(e, rule)), "")


def _both(masks: Masks, dataset: str, pair: tuple[str, str], at: float) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    ours, theirs = (masks.get((dataset, name, at), {}) for name in pair)
    return {seed: (ours[seed], theirs[seed]) for seed in sorted(ours.keys() & theirs.keys())}


def _mean(masks: Masks, pair: tuple[str, str], metric: str, found: Sequence[Sequence[dict]], like: Effect) -> Effect:
    """Mean over rates and data sets, over the seeds that all have."""
    seeds = sorted(set.intersection(*(set(both) for rates in found for both in rates)))
    blocks = [np.mean([[both[s][0].astype(float) - both[s][1] for s in seeds] for both in rates], axis=0)
              for rates in found if rates]
    value, low, high, n = stats.crossed_mean(blocks)
    return dataclasses.replace(like, dataset="mean", images=n, seeds=len(seeds), value=value, low=low, high=high, level=0.95,
                               p_value=math.nan, where="mean over rates", part="mean")
