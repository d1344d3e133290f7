"""Accuracies with their intervals, from stored rows."""

import math
from collections.abc import Collection

import pandas as pd

from ..base import stats
from ..specs.labels import NOT_RUN
from ..specs.strength import parse


def kinds(rows: pd.DataFrame) -> pd.Series:
    """none, pgd or autoattack (the whole or a part of it)."""
    return rows["attack"].map(lambda name: parse(name).kind)


def final(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows without the inner stages of AutoAttack, and each attack only where it saw the most images."""
    rows = rows.reset_index(drop=True)
    stages = list(zip(*(rows[c] for c in ("run", "threat", "eps", "images", "attack")), strict=True))
    inner = {(*where, attack.rpartition("+")[0]) for *where, attack in stages}  # of a+b+c the stage a+b
    kept = rows.loc[[stage not in inner for stage in stages]]
    key = ["run", "threat", "eps", "attack"]
    return kept[kept["n"] == kept.groupby(key)["n"].transform("max")].drop_duplicates(key)


def of_runs(rows: pd.DataFrame, runs: Collection[str]) -> pd.DataFrame:
    """Those of `rows` that are of these runs, and all of a data set and method that has none of them.

    >>> rows = pd.DataFrame({"dataset": ["a", "a", "b"], "method": "at", "run": ["1", "2", "3"]})
    >>> of_runs(rows, {"2"})["run"].tolist()
    ['2', '3']
    """
    mine, places = rows["run"].isin(list(runs)), pd.MultiIndex.from_frame(rows[["dataset", "method"]])
    return rows[mine | ~places.isin(places[mine])]


def estimates(rows: pd.DataFrame) -> pd.DataFrame:
    """Accuracies with 95 % intervals, as fractions.

    One line per (dataset, method, seed, threat, eps, attack) of `rows.rows`: value with the exact interval over its n test images
    (Clopper and Pearson). Where there are several seeds also one line with seed "mean of k": Student's interval over the seeds,
    whose n is the images of one seed. What diverged has no value and no part in means; its column absent says so.

    Raises:
        ValueError: two runs claim one data set, method and seed.
    """
    runs = rows.groupby(["dataset", "method", "seed"])["run"].nunique()
    if (runs > 1).any():
        raise ValueError(f"expected one run per data set, method and seed, got {runs.max()} for "
                         f"{', '.join(map(str, runs.idxmax()))}; pass the rows of one study, arch and norm")
    what = ["dataset", "method", "metric", "threat", "eps", "attack"]
    out = []
    for row in final(rows).itertuples():
        gone = math.isnan(row.value)
        exact = [math.nan] * 3 if gone else stats.clopper_pearson(round(row.value * row.n), int(row.n))[:3]
        out.append([*(getattr(row, c) for c in what), str(row.seed), int(row.n), *exact, row.images if gone else ""])
    single = pd.DataFrame(out, columns=[*what, "seed", "n", "value", "low", "high", "absent"])
    means = [[*key, f"mean of {len(group)}", int(group["n"].min()), *stats.student_interval(group["value"])[:3], ""]
             for key, group in single.dropna(subset="value").groupby(what, sort=False) if len(group) > 1]
    return pd.DataFrame([*single.values.tolist(), *means], columns=single.columns)


def one_line(estimated: pd.DataFrame) -> pd.DataFrame:
    """Of `estimates`, the mean over seeds where there are several seeds, else the one seed; without a value only where all
    diverged."""
    key = ["dataset", "method", "threat", "eps", "attack"]
    order = estimated.assign(rank=2 * estimated["seed"].str.startswith("mean") + estimated["value"].notna())
    best = order["rank"] == order.groupby(key)["rank"].transform("max")
    return estimated[best & ~order[[*key, "rank"]].duplicated()]


def lost(rows: pd.DataFrame, by: str | list[str]) -> dict:
    """Value of the columns `by` -> what stands for it, where nothing in `rows` (or `estimates`) has a value."""
    return {key: group["absent" if "absent" in group else "images"].iloc[0] for key, group in rows.groupby(by, sort=False)
            if group["value"].isna().all()}


def said(*frames: pd.DataFrame) -> str:
    """What stands for a number that needs all these lines and is not there: what is said of one that diverged, else "not run"."""
    words = (word for frame in frames for word in frame.loc[frame["value"].isna(), "absent"] if word != NOT_RUN)
    return next(words, NOT_RUN)
