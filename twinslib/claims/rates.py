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
from .verdict import NOT, REPRODUCED, Evidence, level, said, sifted, too_few

STUDY = "learning_rates"
MEASURES = STEPPED


def rate(job: Job) -> float:
    """The base learning rate."""
    return float(dict(job.labels)["rate"])


def weigh(rows: Sequence[Row], guess: Mapping[str, float], rule: Rule, diverged: Sequence[Job] = ()) -> Evidence:
    """What finished runs say on a rule of `MEASURES`. `diverged`: runs that ended without a result; a rate at which one of both
    did so is not compared, and then nothing holds at every rate."""
    (pair,), datasets = rule.pairs, unique(row.dataset for row in rows)
    lost = {(job.spec.data.name, rate(job)) for job in diverged}
    both = {(m, d, r): compared(frame.where(rows, dataset=d, rate=r), rule, pair, m)
            for m in rule.metrics for d in datasets for r in rule.rates}
    seeds = {d: min(len(both[m, d, r]) for m in rule.metrics for r in rule.rates if (d, r) not in lost)
             for d in datasets if any((d, r) not in lost for r in rule.rates)}
    lack, whole = too_few(rule, seeds), [d for d in datasets if seeds.get(d, 0) >= rule.min_seeds]
    wide = level(len(rule.metrics) * (len(whole) or 1)) if rule.measure == "one_rate" else 0.95
    single = [e for m, d, r in both
              for e in by_dataset(frame.where(rows, dataset=d, rate=r), rule, pair, m, guess, level=wide, where=f"rate {r:g}")]
    out = sifted(rule, [e for e in single if e.dataset in whole], single, lack, rule.min_datasets, ("dataset", "where"))
    if out.lack or rule.measure == "one_rate":
        return out
    clear, kept = out.effects, {(e.dataset, e.where) for e in out.effects}
    means = [_mean([[both[m, d, r] for r in rule.rates if (d, f"rate {r:g}") in kept] for d in whole],
                   next(e for e in clear if e.metric == m)) for m in rule.metrics]
    gone = ", ".join(sorted(f"{dataset_label(d)} at {r:g}" for d, r in lost))
    words = said(rule, means) + (f"; diverged: {gone}" if gone else "")
    if rule.measure == "all_rates":
        return dataclasses.replace(out, effects=tuple(means), everywhere=(), said=words)
    outside = {m: [e.where for e in clear if e.metric == m and not (e.high >= -rule.margin and e.low <= rule.margin)]
               for m in rule.metrics}
    words += "; outside at single rates: " + (", ".join(x for places in outside.values() for x in places) or "none")
    verdict = NOT if any(len(set(places)) > 1 for places in outside.values()) else ""
    return dataclasses.replace(out, effects=(*means, *map(turned, means)), everywhere=(), said=words, verdict=verdict,
                               holds={REPRODUCED: not lost and not any(outside.values())})


def _mean(found: Sequence[Sequence[list[tuple[Row, Row]]]], like: Effect) -> Effect:
    """Mean over rates and data sets, over the seeds that all have."""
    seeds = set.intersection(*({a.seed for a, _ in both} for rates in found for both in rates))

    def gains(both: list[tuple[Row, Row]]) -> list[np.ndarray]:
        in_order = sorted((rows for rows in both if rows[0].seed in seeds), key=lambda rows: rows[0].seed)
        return [a.hits.astype(float) - b.hits for a, b in in_order]

    blocks = [np.mean([gains(both) for both in rates], axis=0) for rates in found if rates]
    value, low, high, n = stats.crossed_mean(blocks)
    return dataclasses.replace(like, dataset=MEAN, images=n, seeds=len(seeds), value=value, low=low, high=high, level=0.95,
                               p_value=math.nan, where="mean over rates", part="mean")
