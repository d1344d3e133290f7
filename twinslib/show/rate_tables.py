"""The tables of notebook 02: from courses (`evidence.course`), and accuracy against the base learning rate.

Three readings of "effective learning rate": lr / ||w||^2, lr ||g|| / ||w||, and the angle by which one optimiser step turns the
weights. Means over recorded steps, medians over convolutions, as in the rule of C5.
"""

import math
import operator
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

from ..claims.effects import pair_label
from ..claims.rates import STUDY, rate
from ..evidence import course
from ..evidence.course import KEYS, Course, against
from ..specs.jobs import Job
from ..specs.labels import DIVERGED, NOT_RUN, dataset_label, header, method_label, unique
from ..store.store import Store
from .tables import interval, plain, student

PAIRS = (("twins_at", "at"), ("twins_at", "at_lr"), ("twins_at", "at_split"))  # the last one differs in the statistics alone
RATES = {"lr_over_w2": "lr/‖w‖²", "relative_step": "lr‖g‖/‖w‖", "angle": "angle per step"}
FROZEN = ("twins", "frozen")  # wings with statistics of pre-training
EPOCHS = 5  # of leaving the start, as in the rule of C6
ABOVE = "convolutions where each is above 1"  # of RATES, in their order
BY_RATE = ["dataset", "part", "method", "rate", "seed"]
BASELINE = "at"  # whose losses give the threshold of escape times


def layer_ratios(courses: Sequence[Course]) -> pd.DataFrame:
    """RATES of a method over those of its baseline, convolution by convolution, for PAIRS: dataset, method, baseline, seed,
    place, RATES."""
    return against(course.by_layer(courses).set_index([*KEYS, "place"])[list(RATES)], PAIRS, operator.truediv)


def loss_differences(courses: Sequence[Course]) -> pd.DataFrame:
    """PGD loss on the fixed training images, method minus baseline, after each of epochs 1 to EPOCHS, for PAIRS: dataset, method,
    baseline, seed, epoch, value (nats)."""
    frame = course.early_losses(courses, EPOCHS).rename(columns={"loss": "value"})
    return against(frame[frame["epoch"] > 0].set_index([*KEYS, "epoch"]), PAIRS, operator.sub)


def time_differences(courses: Sequence[Course]) -> pd.DataFrame:
    """`course.escape_times` of each other method minus that of BASELINE: dataset, method, baseline, seed, value (epochs; NaN
    where neither gets there)."""
    frame = course.escape_times(courses, BASELINE).rename(columns={"epochs": "value"}).set_index(KEYS)[["value"]]
    others = [m for m in unique(frame.index.get_level_values("method")) if m != BASELINE]
    return against(frame, [(m, BASELINE) for m in others], operator.sub)


def _table(frame: pd.DataFrame, courses: Sequence[Course], columns: Sequence[str], cells: Callable[[pd.DataFrame], Mapping],
           first: str = "method", unit: str = "points") -> pd.DataFrame:
    """The `cells` of each data set and method, or pair, of `frame`; then a line for each of which a run diverged and none is
    left, which says so. The name of a pair comes before the data set."""
    paired = "baseline" in frame
    groups = frame.groupby(["dataset", "method", *(["baseline"] if paired else [])], sort=False)
    lines = {(d, *names): {"seeds": mine["seed"].nunique()} | cells(mine) for (d, *names), mine in groups}
    for (dataset, method, _), word in course.lost(courses).items():
        for names in [pair for pair in PAIRS if method in pair] if paired else [(method,)]:
            lines.setdefault((dataset, *names), {"seeds": 0} | dict.fromkeys(columns, word))
    for (dataset, *names), line in lines.items():
        line |= {"data set": dataset_label(dataset), first: pair_label(names, unit) if paired else method_label(*names)}
    head = [first, "data set"] if paired else ["data set", first]
    return pd.DataFrame(list(lines.values()), columns=[*head, "seeds", *columns])


def rate_table(courses: Sequence[Course]) -> pd.DataFrame:
    """One line per data set and method: medians over convolutions, means over seeds with their 95 % intervals."""
    runs = course.rates(courses)
    unstable = {tuple(c.keys[:2]) for c in courses if not course.stable(c)}
    columns = {"lr/‖w‖² (10⁻⁴)": ("lr_over_w2", 1e4, "{:.2f}"), "lr‖g‖/‖w‖ (10⁻³)": ("relative_step", 1e3, "{:.2f}"),
               "angle per step (mrad)": ("angle", 1e3, "{:.2f}"), "growth of ‖w‖ (%)": ("growth", 100, "{:+.1f}")}

    def cells(mine: pd.DataFrame) -> dict[str, str]:
        key = mine["dataset"].iloc[0], mine["method"].iloc[0]
        return {title: interval(student(scale * mine[name]), form) for title, (name, scale, form) in columns.items()} | {
            "stable": "no" if key in unstable else "yes"}
    return _table(runs.assign(growth=runs["growth"] - 1), courses, [*columns, "stable"], cells)


def ratio_table(courses: Sequence[Course]) -> pd.DataFrame:
    """Geometric means over seeds of `course.ratios` with their 95 % intervals, and in how many convolutions each is above 1."""
    layers = layer_ratios(courses)

    def cells(mine: pd.DataFrame) -> dict[str, str]:
        of = layers.merge(mine[["dataset", "method", "baseline"]].drop_duplicates())
        above = [(np.log(of[name]).groupby(of["place"]).mean() > 0).sum() for name in RATES]
        return {label: interval(student(np.log(mine[name]), np.exp), "{:.2f}") for name, label in RATES.items()} | {
            ABOVE: f"{', '.join(map(str, above))} of {of['place'].nunique()}"}
    return _table(course.ratios(courses, PAIRS), courses, [*RATES.values(), ABOVE], cells, "ratio", "times")


def wing_table(courses: Sequence[Course]) -> pd.DataFrame:
    """Gradient of the first half's loss over that of the second, where the batch has halves, and |cos(w, g)|: medians over
    convolutions, of the ratio the geometric mean over seeds."""
    def cells(mine: pd.DataFrame) -> dict[str, str]:
        halves = mine.dropna(subset="g_first")
        ratio = np.exp(np.log(halves["g_first"] / halves["g_second"]).groupby(halves["seed"]).median().mean())
        return {"first over second gradient": f"{ratio:.2f}" if len(halves) else "",
                "|cos(w, g)|": f"{mine['cos_wg'].median():.1g}"}
    return _table(course.by_layer(courses), courses, ["first over second gradient", "|cos(w, g)|"], cells)


def drift_table(courses: Sequence[Course]) -> pd.DataFrame:
    """How far the means have moved after the last epoch, in standard deviations of the start: mean over layers and seeds."""
    frame, column = course.drift(courses), "drift of the means (sd)"
    last = frame[frame["epoch"] == frame.groupby(KEYS)["epoch"].transform("max")]
    return _table(last, courses, [column], lambda mine: {column: f"{mine['mean_drift'].mean():.2f}"})


def loss_table(courses: Sequence[Course]) -> pd.DataFrame:
    """`loss_differences` in nats: means over seeds with their 95 % intervals, a column per epoch; then in how many of the
    epochs each seed's is below 0."""
    def cells(mine: pd.DataFrame) -> dict[str, str]:
        below = (mine["value"] < 0).groupby(mine["seed"]).sum()
        return {f"epoch {epoch}": interval(student(group["value"]), "{:+.2f}") for epoch, group in mine.groupby("epoch")} | {
            "epochs below 0, by seed": ", ".join(map(str, below))}
    columns = [*(f"epoch {e}" for e in range(1, EPOCHS + 1)), "epochs below 0, by seed"]
    return _table(loss_differences(courses), courses, columns, cells, "difference")


def time_table(courses: Sequence[Course]) -> pd.DataFrame:
    """`course.escape_times` in epochs, mean over seeds, and minus the baseline's with its 95 % interval over seeds; how many
    seeds are sooner and later than it, and how finely times are measured."""
    found, minus = time_differences(courses), f"minus {method_label(BASELINE)}"
    grid = {c.spec.data.name: c.spec.follow.record_every / c.steps_per_epoch for c in courses if "losses" in c.arrays}

    def cells(mine: pd.DataFrame) -> dict[str, str]:
        dataset, method = mine["dataset"].iloc[0], mine["method"].iloc[0]
        other = found.loc[(found["dataset"] == dataset) & (found["method"] == method), "value"].astype(float)
        return {"epochs": plain(mine["epochs"].mean(), "{:.2f}"),
                minus: interval(student(other), "{:+.2f}") if len(other) else "",
                "sooner, later": f"{(other < 0).sum()}, {(other > 0).sum()}" if len(other) else "",
                "steps apart (epochs)": f"{grid[dataset]:.3g}"}
    columns = ["epochs", minus, "sooner, later", "steps apart (epochs)"]
    return _table(course.escape_times(courses, BASELINE), courses, columns, cells)


def accuracies(store: Store, jobs: Sequence[Job]) -> pd.DataFrame:
    """Of the experiment on learning rates, one line per run and measurement: BY_RATE (part: grid, or long for more epochs; rate:
    the base rate), metric, attack in words, epochs, n, value, and absent, which is said in place of a value that is not there."""
    out = []
    for job in (job for job in jobs if job.study == STUDY):
        spec, part = job.spec, dict(job.labels)["part"]
        for e in job.evals:
            found = store.masks(spec, e) if job.settled and store.run(spec) else None
            measured = [float(found[e.attack_name].mean()), ""] if found else [math.nan, store.absent(job, e)]
            out.append([spec.data.name, part, spec.method.name, rate(job), spec.seed, "clean" if e.kind == "clean" else "robust",
                        header(e.attack_name, e.threat, e.eps), spec.optim.epochs, e.images, *measured])
    return pd.DataFrame(out, columns=[*BY_RATE, "metric", "attack", "epochs", "n", "value", "absent"])


def mean_accuracies(found: pd.DataFrame) -> pd.DataFrame:
    """Of `accuracies` mean, least and greatest value over the finished seeds, and their number."""
    keys = ["dataset", "part", "method", "rate", "metric", "attack", "epochs"]
    done = found.dropna(subset="value")
    return done.groupby(keys, sort=False)["value"].agg(["mean", "min", "max", "count"]).reset_index()


def best_rates(found: pd.DataFrame) -> pd.DataFrame:
    """Of `mean_accuracies`, the rate of the grid at which each method is best, by data set and metric; none while runs are
    missing."""
    grid, keys = found[found["part"] == "grid"], ["dataset", "metric", "method"]
    grid = mean_accuracies(grid[~(grid["absent"] == NOT_RUN).groupby([grid[k] for k in keys]).transform("any")])
    return grid.loc[grid.groupby(keys, sort=False)["mean"].idxmax()]


def accuracy_table(found: pd.DataFrame) -> pd.DataFrame:
    """`accuracies`: clean / robust accuracy in percent, means over the seeds in brackets; a line per data set, length and
    method, a column per rate."""
    lines = []
    for (dataset, _, method), mine in found.groupby(["dataset", "part", "method"], sort=False):
        line = {"data set": dataset_label(dataset), "epochs": mine["epochs"].iloc[0], "method": method_label(method)}
        for lr in sorted(found["rate"].unique()):
            here = mine[mine["rate"] == lr]
            done = here.dropna(subset="value").groupby("metric")["value"].agg(["mean", "count"])
            text = DIVERGED if (here["absent"] == DIVERGED).all() else NOT_RUN
            if len(done) == 2:
                text = " / ".join(f"{100 * mean:.1f}" for mean in done["mean"]) + f" ({done['count'].min()})"
            line[f"rate {lr:g}"] = text if len(here) else ""
        lines.append(line)
    return pd.DataFrame(lines)


def checks(courses: Sequence[Course]) -> dict[str, bool]:
    """What must hold if the recorded numbers are right, whatever the methods do; true of no runs."""
    layers, frame = course.by_layer(courses), course.quantities(courses)
    blind = {tuple(c.keys[:2]) for c in courses if c.spec.method.wings not in FROZEN}
    only_batch = np.array([key in blind for key in zip(layers["dataset"], layers["method"], strict=True)], bool)
    alone, frozen = layers.loc[only_batch, "cos_wg"], layers.loc[~only_batch, "cos_wg"]
    halves = {tuple(c.keys) for c in courses if c.spec.method.halves}
    split = frame[[key in halves for key in zip(*(frame[k] for k in KEYS), strict=True)]]
    start = course.early_losses(courses, 0).groupby(["dataset", "seed"])["loss"]
    return {
        "with batch statistics alone every convolution's mean |cos(w, g)| is below 0.001": bool((alone < 1e-3).all()),
        "with frozen statistics its median is more than ten times the largest of these":
            not len(alone) or not len(frozen) or bool(frozen.median() > 10 * alone.max()),
        "the whole gradient is never longer than those of the halves together":
            split.empty or bool((split["g_norm"] <= 1.01 * (split["g_first"] + split["g_second"])).all()),
        "all methods start from the same loss": bool((start.max() - start.min() < 1e-3).all()),
        "no epoch's training loss exceeds the first's": all(course.stable(c) for c in courses if not c.absent)}
