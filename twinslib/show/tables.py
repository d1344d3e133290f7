"""Frames of numbers as tables of text, and the tables of accuracies and differences that are made of rows.

A frame holds one number on a line: value, low and high as fractions, n, and in absent what stands for a value that is not there.
A table is a DataFrame of text: accuracy in percent, differences in points, with 95 % intervals.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

from ..base import stats
from ..claims.effects import pair_label
from ..evidence.accuracy import estimates, final
from ..specs.labels import NOT_RUN, attack_label, dataset_label, header, method_label, percent, points, unique
from ..specs.strength import KINDS, parse, strength

PAIR = ("method", "baseline")
Form = Callable[[float, float, float], str]  # value, low, high


def number(found: object, form: Form = percent, missing: str = NOT_RUN) -> str:
    """A number (anything with value, low and high) with its mark, if it has one; in place of a number that is not there what it
    says of itself (`absent`), else `missing`."""
    if found is None or math.isnan(found.value):
        return getattr(found, "absent", "") or missing
    return form(found.value, found.low, found.high) + getattr(found, "mark", "")


def plain(value: float, form: str) -> str:
    """NaN and infinity as words; no negative zero."""
    if not math.isfinite(value):
        return "undefined" if math.isnan(value) else "never"
    text = form.format(value)
    return form.format(0.0) if float(text) == 0 else text


def interval(found: tuple[float, float, float], form: str) -> str:
    """2.16 [1.80, 2.59]; without an interval the value alone."""
    value, low, high = (plain(v, form) for v in found)
    return value if math.isnan(found[1]) else f"{value} [{low}, {high}]"


def student(values: Sequence[float], back: Callable = lambda x: x) -> tuple[float, float, float]:
    """(mean, low, high): Student's 95 % interval over seeds, NaN where one seed or an infinite value gives none; `back` is
    applied to all three (np.exp for means of logarithms)."""
    values = np.asarray(values, dtype=float)
    if len(values) < 2 or not np.isfinite(values).all():
        return float(back(values.mean())), math.nan, math.nan
    return tuple(float(back(v)) for v in stats.student_interval(values)[:3])


def within(value: float, low: float, high: float) -> str:
    """`percent`, its interval cut to what an accuracy can be."""
    return percent(value, max(low, 0.0), min(high, 1.0))


def listed(values, missing: str = NOT_RUN) -> str:
    """Numbers of several seeds, once where all are the same."""
    values = [str(v) for v in values]
    return ", ".join(values if len(set(values)) > 1 else values[:1]) or missing


def pivot(found: pd.DataFrame, lines: Mapping[object, tuple], names: tuple[str, ...], form: Form = percent,
          absent: Mapping[object, str] | None = None) -> pd.DataFrame:
    """A line of text for each of `lines` (value of the column `line` -> its first cells, called `names`), a column for each value
    of the column `column`, in the frame's order. In place of a number that the frame lacks stands what `absent` says of the line,
    else "not run"; in a line of means nothing."""
    cells = {(r.line, r.column): number(r, form) for r in found.itertuples()}
    columns, out = unique(found["column"]), []
    for line, head in lines.items():
        missing = "" if any(str(part).startswith("mean of") for part in head) else (absent or {}).get(line, NOT_RUN)
        out.append([*head, *(cells.get((line, column), missing) for column in columns)])
    return pd.DataFrame(out, columns=[*names, *columns])


def by_attack(found: pd.DataFrame, lines: Mapping[object, tuple], names: tuple[str, ...], form: Form = percent,
              by: Sequence[str] = ()) -> pd.DataFrame:
    """`pivot` with a column per attack: clean, PGD, AutoAttack, each by eps, with the number of images that it stands on. by: the
    columns whose values are a key of `lines`, in place of the column `line`."""
    def place(group: tuple) -> tuple:
        threat, eps, attack = group
        return KINDS.index(parse(attack).kind), threat, eps, strength(attack)

    found, parts = found.assign(line=list(zip(*(found[name] for name in by), strict=True))) if by else found, []
    groups = {key: group for key, group in found.groupby(["threat", "eps", "attack"], sort=False)}
    for threat, eps, attack in sorted(groups, key=place):
        group = groups[threat, eps, attack]
        least, most = group["n"].min(), group["n"].max()
        images = f"{least:,} images" if least == most else f"{least:,} to {most:,} images"
        own = group["n"].map(", n = {:,}".format) if least < most else ""
        marks = group["mark"] if "mark" in group else ""
        parts.append(group.assign(column=f"{header(attack, threat, eps)} ({images})", mark=marks + own))
    return pivot(pd.concat(parts) if parts else found.assign(column=""), lines, names, form)


def accuracy_table(rows: pd.DataFrame, *, seeds: bool = True) -> pd.DataFrame:
    """One line per data set, method and seed of `rows`, finished or not, then the mean over seeds; without `seeds` only the mean
    where there is one."""
    found, by, lines = estimates(rows), ("dataset", "method", "seed"), {}
    there, every = set(found[[*by]].itertuples(index=False, name=None)), unique(found["seed"])
    for d, m in itertools.product(unique(rows["dataset"]), unique(rows["method"])):
        mine = [s for s in every if (d, m, s) in there] or every[:1]
        mine = mine if seeds else [s for s in mine if s.startswith("mean")] or mine
        lines |= {(d, m, s): (dataset_label(d), method_label(m), s) for s in mine}
    return by_attack(found, lines, ("data set", "method", "seed"), by=by)


def difference_table(found: pd.DataFrame) -> pd.DataFrame:
    """`pairs.differences`, one line per comparison and data set, then their mean; a star marks differences that stay significant
    at 5 % after correction over the data sets."""
    found, by, lines = found.assign(mark=found["p_holm"].map(lambda p: " *" if p <= 0.05 else "")), [*PAIR, "dataset"], {}
    for (m, b, d), group in found.groupby(by, sort=False):
        near = " (near chance)" if group["near"].any() else ""
        seeds = " to ".join(map(str, unique((group["seeds"].min(), group["seeds"].max()))))
        lines[m, b, d] = pair_label((m, b)), dataset_label(d) + near, seeds
    return by_attack(found, lines, ("difference", "data set", "seeds"), points, by)


def paired_table(paired: pd.DataFrame) -> pd.DataFrame:
    """`pairs.paired_rows`, one line per comparison, data set and seed of which something is finished. The intervals speak about
    new test images only."""
    by = [*PAIR, "dataset", "seed"]
    begun = paired.loc[paired["value"].notna(), by].itertuples(index=False, name=None)
    lines = {(m, b, d, s): (pair_label((m, b)), dataset_label(d), s) for m, b, d, s in begun}
    return by_attack(paired, lines, ("difference", "data set", "seed"), points, by)


def caption(rows: pd.DataFrame) -> str:
    """What the intervals of tables and figures stand for, and on how many images, computed from the rows."""
    kept = final(rows.dropna(subset="value"))
    if kept.empty:
        return "No measurement is finished yet."
    by_n = {n: unique(map(attack_label, attacks)) for n, attacks in kept.groupby("n")["attack"]}
    counts = "; ".join(f"{n:,} for {', '.join(by_n[n])}" for n in sorted(by_n, reverse=True))
    exact = f"exact 95 % (Clopper-Pearson) over the test images ({counts})."
    seeds = unique(tuple(sorted(group)) for group in kept.groupby(["dataset", "method"])["seed"].unique())
    single, several = ([", ".join(map(str, s)) for s in seeds if (len(s) > 1) == many] for many in (False, True))
    if not several:
        return f"Seed {' or '.join(single)} only. Intervals: {exact}"
    return f"Means over the seeds {' or '.join(several)}. Intervals: 95 % (Student) over the seeds; of a single seed, {exact}"
