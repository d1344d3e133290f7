"""Our claims about the learning rate: what TWINS gains at equal rates, and how much of it is a larger step.

Stands on the runs of study "learning_rates", labelled with part (grid, or long: more epochs) and rate (the base rate, which
`at_lr` multiplies by 1 + lambda), each measured clean and under attack.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from ..base import stats
from ..evidence import frame
from ..evidence.frame import Row
from ..specs.jobs import Job
from ..specs.labels import MEAN, dataset_label, unique
from ..studies.rules import STEPPED, Rule
from .effects import Effect, by_dataset, compared, turned
from .verdict import NOT, PARTLY, REPRODUCED, Evidence, level, said, sifted, too_few

STUDY = "learning_rates"
MEASURES = STEPPED


def rate(job: Job) -> float:
    """The base learning rate."""
    return float(dict(job.labels)["rate"])


def weigh(rows: Sequence[Row], guess: Mapping[str, float], rule: Rule, diverged: Sequence[Job] = ()) -> Evidence:
    """What finished runs say on a rule of `MEASURES`. `diverged`: runs that ended without a result; a rate at which one of both
    did so is not compared, and then nothing holds at every rate; while other seeds of it are there, nothing is granted."""
    (pair,), datasets = rule.pairs, unique(row.dataset for row in rows)
    at = {(d, f"rate {r:g}"): frame.where(rows, dataset=d, rate=r) for d in datasets for r in rule.rates}
    both = {(m, *place): compared(mine, rule, pair, m) for m in rule.metrics for place, mine in at.items()}
    lost = {(job.spec.data.name, f"rate {rate(job):g}") for job in diverged}
    there = {d: [{a.seed for a, _ in found} for (_, *place), found in both.items() if place[0] == d and tuple(place) not in lost]
             for d in datasets}
    seeds = {d: len(set.intersection(*found)) for d, found in there.items() if found}
    lack, whole = too_few(rule, seeds), [d for d in datasets if seeds.get(d, 0) >= rule.min_seeds]
    if not lack and rule.measure != "one_rate":  # means are over the seeds that all have
        lack = too_few(rule, dict.fromkeys(whole, len(set.intersection(*(found for d in whole for found in there[d])))))
    wide = level(len(rule.metrics) * (len(whole) or 1)) if rule.measure == "one_rate" else 0.95
    single = [e for m, *place in both
              for e in by_dataset(at[tuple(place)], rule, pair, m, guess, level=wide, where=place[1])]
    out = sifted(rule, [e for e in single if e.dataset in whole and (e.dataset, e.where) not in lost], single, lack,
                 rule.min_datasets, ("dataset", "where"))
    if out.lack or rule.measure == "one_rate":
        return out

    def averaged(effects: Sequence[Effect]) -> tuple[Effect, ...]:
        by = [[e for e in effects if e.metric == m] for m in rule.metrics]
        means = [_mean([[both[e.metric, d, e.where] for e in mine if e.dataset == d] for d in whole], mine[0]) for mine in by]
        return (*means, *(map(turned, means) if rule.measure == "same_step" else ()))

    means, everywhere = averaged(out.effects), averaged(out.everywhere) if out.everywhere else ()
    gone = ", ".join(f"{dataset_label(d)} at {where.removeprefix('rate ')}" for d, where in sorted(lost))
    gone = f"; diverged: {gone}" if gone else ""
    if rule.measure == "all_rates":
        alone = not any((e.dataset, e.where) in lost for e in single)
        return dataclasses.replace(out, effects=means, everywhere=everywhere, said=said(rule, means) + gone,
                                   holds={REPRODUCED: alone, PARTLY: alone})
    outside = {m: [e.where for e in out.effects if e.metric == m and not (e.high >= -rule.margin and e.low <= rule.margin)]
               for m in rule.metrics}
    inside = sum(-rule.margin <= e.low and e.high <= rule.margin for e in means[:len(rule.metrics)])
    words = f"of {len(rule.metrics)} intervals {inside} within {100 * rule.margin:g} on either side of 0{gone}"
    words += "; outside at single rates: " + (", ".join(x for places in outside.values() for x in places) or "none")
    verdict = NOT if any(len(set(places)) > 1 for places in outside.values()) else ""
    return dataclasses.replace(out, effects=means, everywhere=() if verdict else everywhere, said=words, verdict=verdict,
                               holds={REPRODUCED: not lost and not any(outside.values())})


def _mean(found: Sequence[Sequence[list[tuple[Row, Row]]]], like: Effect) -> Effect:
    """Mean over rates and data sets, over the seeds that all have."""
    gains = [[{a.seed: a.hits.astype(float) - b.hits for a, b in both} for both in rates] for rates in found if rates]
    seeds = sorted(set.intersection(*(set(by_seed) for rates in gains for by_seed in rates)))
    blocks = [np.mean([[by_seed[s] for s in seeds] for by_seed in rates], axis=0) for rates in gains]
    value, low, high, n = stats.crossed_mean(blocks)
    return dataclasses.replace(like, dataset=MEAN, images=n, seeds=len(seeds), value=value, low=low, high=high, level=0.95,
                               p_value=math.nan, where="mean over rates", part="mean")
