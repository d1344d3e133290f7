"""Differences between methods as text: tables in points, and a reading."""

import pandas as pd

from ..evidence.pairs import MEANS, _range
from ..specs.labels import dataset_label, header, method_label, points, unique
from ..store.store import DIVERGED, NOT_RUN
from .tables import spread


def difference_table(found: pd.DataFrame) -> pd.DataFrame:
    """`differences` in points with their 95 % intervals: one line per comparison and data set, then their mean; a star marks
    differences that stay significant at 5 % after correction over the data sets."""
    found = found.assign(dataset=found["dataset"].replace({m: dataset_label(m) for m in MEANS}))  # so that `spread` knows a mean
    found = found.assign(line=list(zip(found["method"], found["baseline"], found["dataset"], strict=True)))
    lines = unique(found["line"])
    near = set(found.loc[found["near"], "line"]) if "near" in found else set()
    seeds = {line: _range(group.min(), group.max()) for line, group in found.groupby("line")["seeds"]}
    index = [(f"{method_label(m)} - {method_label(b)}", dataset_label(d) + " (near chance)" * ((m, b, d) in near), seeds[m, b, d])
             for m, b, d in lines]
    return spread(found, lines, index, ("difference", "data set", "seeds"),
                  lambda row: points(row.value, row.low, row.high) + (" *" if row.p_holm <= 0.05 else ""))


def paired_table(paired: pd.DataFrame) -> pd.DataFrame:
    """Differences of `paired_rows` in points with their 95 % intervals: one line per comparison, data set and seed. The
    intervals speak about new test images only."""
    paired = paired.assign(line=list(zip(*(paired[c] for c in ("method", "baseline", "dataset", "seed")), strict=True)))
    lines = unique(paired["line"])
    index = [(f"{method_label(a)} - {method_label(b)}", dataset_label(d), s) for a, b, d, s in lines]
    return spread(paired, lines, index, ("difference", "data set", "seed"), lambda row: points(row.value, row.low, row.high))


def reading(found: pd.DataFrame) -> str:
    """`differences` in words: on how many data sets each method is above its baseline, and where that is significant."""
    sentences = []
    for (method, baseline), group in found[~found["dataset"].isin(MEANS)].groupby(["method", "baseline"], sort=False):
        parts, done = [], group.dropna(subset="value")
        gone = sum(word.startswith(DIVERGED) for word in group[group["value"].isna()].get("absent", ()))
        for (threat, eps, attack), g in done.groupby(["threat", "eps", "attack"], sort=False):
            certain = g[g["p_holm"] <= 0.05]["value"]
            parts.append(f"{header(attack, threat, eps)} is higher in {(g['value'] > 0).sum()} of {len(g)} "
                         f"(significantly in {(certain > 0).sum()}, significantly lower in {(certain < 0).sum()})")
        seeds = f"data sets, {_range(done['seeds'].min(), done['seeds'].max(), 'seed')}" if len(done) else "no data set"
        head = f"{method_label(method)} against {method_label(baseline)} on the same test images ({seeds}): "
        counts = {NOT_RUN: len(group) - len(done) - gone, DIVERGED: gone}
        tail = "".join(f"; {n} comparison{'' if n == 1 else 's'} {word}" for word, n in counts.items() if n)
        sentences.append(head + ("; ".join(parts) or "nothing measured yet") + tail + ".")
    return " ".join(sentences)
