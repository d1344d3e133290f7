"""The experiment on learning rates as a frame, a table, sentences and a figure: accuracy against the base rate."""

import math
from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator

from ..claims.rates import STUDY, rate
from ..specs.labels import dataset_label, header, joined, marked, method_label, unique
from ..store.jobs import Job
from ..store.store import DIVERGED, NOT_RUN, Store
from .figures import WIDTH, nothing, style
from .rate_plots import BAND, FOLLOWED

KEYS = ["dataset", "part", "method", "rate", "seed"]
METRICS = ("clean", "robust")
RING = {"linestyle": "none", "marker": "o", "markersize": 9, "markerfacecolor": "none"}
HOLLOW = {"linestyle": "none", "markerfacecolor": "white", "markersize": 5}


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
    """Of `means`, the rate of the grid at which each method is best, by data set and metric."""
    grid = means(found[found["part"] == "grid"])
    return grid.loc[grid.groupby(["dataset", "metric", "method"], sort=False)["mean"].idxmax()]


def table(found: pd.DataFrame) -> pd.DataFrame:
    """Clean / robust accuracy in percent, means over seeds: a line per data set, length and method, a column per rate."""
    averaged, lines = means(found).set_index(["dataset", "part", "method", "rate", "metric"]), []
    rates = sorted(found["rate"].unique())
    for (dataset, part, method), mine in found.groupby(["dataset", "part", "method"], sort=False):
        line = {"data set": dataset_label(dataset), "epochs": mine["epochs"].iloc[0], "method": method_label(method)}
        for at in rates:
            here = mine[mine["rate"] == at]
            both = [averaged.loc[key] for m in METRICS if (key := (dataset, part, method, at, m)) in averaged.index]
            if len(both) == len(METRICS):
                seeds = min(int(cell["count"]) for cell in both)
                text = " / ".join(f"{100 * cell['mean']:.1f}" for cell in both) + f" ({seeds})"
            else:
                text = "" if here.empty else DIVERGED if (here["absent"] == DIVERGED).all() else NOT_RUN
            line[f"rate {at:g}"] = text
        lines.append(line)
    return pd.DataFrame(lines)


def reading(found: pd.DataFrame) -> str:
    """Where each method is best, and how far TWINS-AT is from AT at the least rate that both have."""
    runs = found.drop_duplicates(KEYS)
    left = int((runs["absent"] == NOT_RUN).sum())
    words = [f"{len(runs) - left} of {len(runs)} runs are finished." if left else ""]
    grid = means(found[found["part"] == "grid"])
    for (dataset, metric), mine in best(found).groupby(["dataset", "metric"], sort=False):
        tops = ", ".join(f"{method_label(r['method'])} {100 * r['mean']:.1f} at {r['rate']:g}" for r in mine.to_dict("records"))
        here = grid[(grid["dataset"] == dataset) & (grid["metric"] == metric)]
        here = here.pivot(index="rate", columns="method", values="mean")
        gain = (here["twins_at"] - here["at"]).dropna() if {"at", "twins_at"} <= set(here) else pd.Series(dtype=float)
        gains = [f"{100 * gain.loc[at]:+.1f} at {at:g}" for at in dict.fromkeys(gain.index[[0, -1]] if len(gain) else ())]
        words.append(f"{dataset_label(dataset)}, {mine['attack'].iloc[0]}: best are {tops}"
                     + (f"; TWINS-AT minus AT {' and '.join(gains)}." if gains else "."))
    gone = unique(f"{method_label(r.method)} at {r.rate:g} on {dataset_label(r.dataset)}, seed {r.seed}"
                  for r in runs[runs["absent"] == DIVERGED].itertuples())
    return joined(*words, f"Diverged: {'; '.join(gone)}." if gone else "", otherwise="No run is finished yet.")


def accuracy_by_rate(found: pd.DataFrame, metrics: Sequence[str] = METRICS) -> Figure:
    """Accuracy in percent against the base learning rate: a row per metric, a column per data set. Lines are means over seeds in
    a band from the lowest to the highest, a ring is a method's best rate, hollow markers are runs of more epochs.

    Args:
        found: as `frame` makes it.
    """
    found = found[found["metric"].isin(metrics)]
    averaged, tops = means(found), best(found)
    if averaged.empty:
        gone = len(found) and (found["absent"] == DIVERGED).all()
        return nothing(DIVERGED if gone else NOT_RUN)
    datasets = unique(averaged["dataset"])
    rates, lost = sorted(found["rate"].unique()), found[found["absent"] == DIVERGED]
    with style():
        fig = Figure(figsize=(WIDTH if len(datasets) > 1 else 4.6, 2.1 * len(metrics) + 0.7))
        axes = fig.subplots(len(metrics), len(datasets), sharex=True, squeeze=False)
        for metric, line in zip(metrics, axes, strict=True):
            for dataset, ax in zip(datasets, line, strict=True):
                here = averaged[(averaged["metric"] == metric) & (averaged["dataset"] == dataset)]
                for (method, part), mine in here.sort_values("rate").groupby(["method", "part"], sort=False):
                    look, y = FOLLOWED[method], 100 * mine[["mean", "min", "max"]]
                    if part != "grid":
                        ax.plot(mine["rate"], y["mean"], **look | HOLLOW)
                        continue
                    ax.plot(mine["rate"], y["mean"], **look)
                    ax.fill_between(mine["rate"], y["min"], y["max"], color=look["color"], **BAND)
                    top = tops[(tops["metric"] == metric) & (tops["dataset"] == dataset) & (tops["method"] == method)]
                    ax.plot(top["rate"], 100 * top["mean"], color=look["color"], **RING)
                ax.set_xscale("log")
                ax.xaxis.set_major_locator(FixedLocator(rates))
                ax.xaxis.set_minor_locator(NullLocator())
                ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
                ax.tick_params(axis="x", labelrotation=45 if len(rates) > 4 else 0)
                if metric == metrics[0]:
                    ax.set_title(dataset_label(dataset))
            line[0].set_ylabel(f"{found.loc[found['metric'] == metric, 'attack'].iloc[0]} (%)")
        fig.align_ylabels(axes[:, 0])
        seeds = sorted({averaged["count"].min(), averaged["count"].max()})
        fig.supxlabel("base learning rate" + ("" if seeds == [1] else f"; means of {' to '.join(map(str, seeds))} seeds"))
        there = unique(averaged["method"])
        handles = [Line2D([], [], label=marked(m, lost.loc[lost["method"] == m, "seed"], left=True), **FOLLOWED[m])
                   for m in there]
        handles.append(Line2D([], [], color="#555555", label="ring: best rate", **RING))
        if (averaged["part"] != "grid").any():
            handles.append(Line2D([], [], color="#555555", label="hollow: more epochs", **{"marker": "o"} | HOLLOW))
        fig.legend(handles=handles, loc="outside upper center", ncols=3 if len(datasets) > 1 else 2, fontsize=8, handlelength=3.6)
    return fig
