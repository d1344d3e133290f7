"""Tables of accuracy for notebooks, made from stored rows; nothing is computed anew here.

Tables are plain DataFrames of text: accuracy in percent, differences in points.
"""

import math
from collections.abc import Callable, Sequence

import pandas as pd

from ..evidence.accuracy import estimates, final
from ..specs.labels import attack_label, dataset_label, header, lost_text, method_label, percent, unique
from ..specs.strength import KINDS, parse, strength
from ..store.store import NOT_RUN


def accuracy_table(rows: pd.DataFrame, datasets: Sequence[str] | None = None,
                   methods: Sequence[str] | None = None) -> pd.DataFrame:
    """Accuracy in percent with its 95 % interval: one line per data set, method and seed, then their mean, one column per
    attack.

    Args:
        datasets, methods: which lines to show, in which order, finished or not; by default those that rows have.
    """
    found = estimates(rows)
    found = found.assign(line=list(zip(found["dataset"], found["method"], found["seed"], strict=True)))
    there, seeds = set(found["line"]), unique(found["seed"])
    lines = []
    for d in unique(rows["dataset"]) if datasets is None else datasets:
        for m in unique(rows["method"]) if methods is None else methods:
            lines += [(d, m, s) for s in seeds if (d, m, s) in there] or [(d, m, s) for s in seeds[:1]]
    index = [(dataset_label(d), method_label(m), s) for d, m, s in lines]
    return spread(found, lines, index, ("data set", "method", "seed"),
                  lambda row: percent(row.value, row.low, row.high))


def caption(rows: pd.DataFrame) -> str:
    """What the intervals of tables and figures stand for, and on how many images, computed from the rows."""
    if rows.empty:
        return "No measurement is finished yet."
    gone = rows[rows["value"].isna()]
    tail = lost_text(f"{method_label(r.method)}, seed {r.seed} ({dataset_label(r.dataset)})" for r in gone.itertuples())
    if len(gone) == len(rows):
        return tail
    kept = final(rows.dropna(subset="value"))
    by_n = {n: unique(attack_label(a) for a in g["attack"]) for n, g in kept.groupby("n", sort=True)}
    counts = "; ".join(f"{n:,} for {', '.join(names)}" for n, names in sorted(by_n.items(), reverse=True))
    seeds = sorted(kept["seed"].unique())
    if len(seeds) == 1:
        return f"Seed {seeds[0]} only. Intervals: exact 95 % (Clopper-Pearson) over the test images ({counts}). {tail}".strip()
    return (f"Means over the seeds {', '.join(map(str, seeds))}. Intervals: 95 % (Student) over the seeds; of a single "
            f"seed, exact 95 % (Clopper-Pearson) over the test images ({counts}). {tail}").strip()


def spread(found: pd.DataFrame, lines: list, index: list[tuple], names: tuple[str, ...],
            cell: Callable[[object], str]) -> pd.DataFrame:
    """One text column per attack (clean, PGD, AutoAttack; each by eps), one line per entry of `lines`.

    A measurement without a result is what the column `absent` of `found` says, else "not run"; in a line of means it stays empty
    if it has no mean over that many.
    """
    keys = unique(zip(found["threat"], found["eps"], found["attack"], strict=True))
    out = pd.DataFrame(index, columns=list(names), dtype=str)
    order = {a: (KINDS.index(parse(a).kind), strength(a)) for a in found["attack"].unique()}
    for threat, eps, attack in sorted(keys, key=lambda k: (order[k[2]][0], *k[:2], order[k[2]][1])):
        group = found[(found["threat"] == threat) & (found["eps"] == eps) & (found["attack"] == attack)]
        at = {r.line: r for r in group.itertuples() if not math.isnan(r.value)}
        words = {r.line: getattr(r, "absent", "") or NOT_RUN for r in group.itertuples()}
        empty = {k for k in lines if any(str(part).startswith("mean of") for part in k)} - set(group["line"])
        ns = sorted(group["n"].unique())
        images = f"{ns[0]:,} images" if len(ns) == 1 else f"{ns[0]:,} to {ns[-1]:,} images"
        many = len(ns) > 1
        out[f"{header(attack, threat, eps)} ({images})"] = [
            cell(at[k]) + (f", n = {at[k].n:,}" if many else "") if k in at
            else "" if k in empty else words.get(k, NOT_RUN) for k in lines]
    return out
