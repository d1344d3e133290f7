"""The experiment on learning rates as a frame and a figure: accuracy against the base rate."""

import math
from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure

from ..base.stats import clopper_pearson
from ..claims.rates import STUDY, rate
from ..specs.jobs import Job
from ..specs.labels import DIVERGED, NOT_RUN, header, unique
from ..store.store import Store
from .figures import DOT, FLAGS, HOLLOW, figure, looks, methods_legend, nothing, stands_on

KEYS = ["dataset", "part", "method", "rate", "seed"]
METRICS = ("clean", "robust")
LEAST = 10.0  # points that an axis spans: what is chance is not to look large


def frame(store: Store, jobs: Sequence[Job]) -> pd.DataFrame:
    """One line per run and measurement of the study: KEYS (part: grid, or long for more epochs; rate: the base rate), metric,
    attack in words, epochs, n, value, and absent, which says what stands for a value that is not there."""
    out = []
    for job in (job for job in jobs if job.study == STUDY):
        spec, part = job.spec, dict(job.labels)["part"]
        for e in job.evals:
            found = store.masks(spec, e) if job.settled and store.run(spec) else None
            measured = [float(found[e.attack_name].mean()), ""] if found else [math.nan, store.absent(job, e)]
            out.append([spec.data.name, part, spec.method.name, rate(job), spec.seed, "clean" if e.kind == "clean" else "robust",
                        header(e.attack_name, e.threat, e.eps), spec.optim.epochs, e.images, *measured])
    return pd.DataFrame(out, columns=[*KEYS, "metric", "attack", "epochs", "n", "value", "absent"])


def means(found: pd.DataFrame) -> pd.DataFrame:
    """Mean, least and greatest value over the finished seeds, and their number."""
    keys = ["dataset", "part", "method", "rate", "metric", "attack", "epochs"]
    done = found.dropna(subset="value")
    return done.groupby(keys, sort=False)["value"].agg(["mean", "min", "max", "count"]).reset_index()


def best(found: pd.DataFrame) -> pd.DataFrame:
    """Of `means`, the rate of the grid at which each method is best, by data set and metric; none while runs are missing."""
    grid, keys = found[found["part"] == "grid"], ["dataset", "metric", "method"]
    grid = means(grid[~(grid["absent"] == NOT_RUN).groupby([grid[k] for k in keys]).transform("any")])
    return grid.loc[grid.groupby(keys, sort=False)["mean"].idxmax()]


def accuracy_by_rate(found: pd.DataFrame, metrics: Sequence[str] = METRICS) -> Figure:
    """Accuracy in percent against the base learning rate: a row per metric, a column per data set. Lines are means over seeds in
    a band from the lowest to the highest, a bar where there is one rate; a single seed has the 95 % interval over its test images
    as a bar. A ring is a method's best rate once all are finished, hollow markers are runs of more epochs."""
    found = found[found["metric"].isin(metrics)]
    averaged, lost = means(found).sort_values("rate", kind="stable"), found[found["absent"] == DIVERGED]
    if averaged.empty:
        return nothing(DIVERGED if len(found) and len(lost) == len(found) else NOT_RUN)
    long, shown, several = averaged["part"] != "grid", looks(found["method"]), averaged["dataset"].nunique() > 1
    one, images = averaged["count"] == 1, found["n"].min()
    exact = [clopper_pearson(round(value * images), images)[1:3] for value in averaged["mean"]]
    averaged[["min", "max"]] = averaged[["min", "max"]].where(~one, pd.DataFrame(exact, averaged.index, ["min", "max"]))
    rings = best(found).assign(kind="ring", min=math.nan, max=math.nan)
    lines = averaged[~long].groupby(["method", "dataset", "metric"])["rate"].nunique().groupby("method").max()
    bar = one | (averaged["method"].map(lines) == 1)  # where a band would have no width
    marks = pd.concat([averaged.assign(kind=long.map({True: "points hollow", False: "band"}).mask(bar & ~long, "")), rings])
    step = 1.03 if (bar & ~long).any() else 1.0  # side by side, so that bars do not hide each other
    x = [m.rate * step ** ([*shown].index(m.method) - (len(shown) - 1) / 2) for m in marks.itertuples()]
    looked = {m: look | ({} if lines.get(m, 0) > 1 else FLAGS["points"]) for m, look in shown.items()}
    entries = methods_legend(looked, averaged["method"], lost.groupby("method")["seed"].unique().to_dict())
    entries += [("ring: best rate", DOT | FLAGS["ring"])] * bool(len(rings))
    entries += [("hollow: more epochs", HOLLOW)] * bool(long.any())
    spans = "bars: 95 % over test images" if one.all() else (
        f"{'bars' if bar.all() else 'bands'}: lowest to highest seed" + "; bars: one seed" * bool(one.any()))
    fig = figure(marks.assign(x=x), shown, columns=unique(averaged["dataset"]),
                 rows={m: f"{found.loc[found['metric'] == m, 'attack'].iloc[0]} (%)" for m in metrics},
                 row="metric", column="dataset", line="method", y="mean", low="min", high="max", scale=100, log="x",
                 ticks=found["rate"], sharey=False, entries=entries, xlabel="base learning rate",
                 note=f"{stands_on(found['n'], averaged['count'])}; {spans}",
                 width=7 if several else 4.6, per_line=3 if several else 2)
    for ax in fig.axes:
        low, high = ax.get_ylim()
        wider = max(LEAST - (high - low), 0) / 2
        ax.set(ylim=(max(low - wider, 0), high + wider), xlim=(found["rate"].min() / 1.3, found["rate"].max() * 1.3))
        ax.tick_params(axis="x", labelrotation=45 if found["rate"].nunique() > 4 else 0)
    return fig
