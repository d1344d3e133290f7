"""Figures of notebook 02: how the weights move, layer by layer, and how the start is left, from courses; accuracy by rate.

Lines are means over seeds, bands and bars reach from the lowest seed to the highest unless they are said to be intervals.
`methods` are drawn in the order given, those without a run leave no line. Without any run a figure says so.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ..base.stats import clopper_pearson
from ..claims.effects import pair_label
from ..evidence import course
from ..evidence.course import KEYS, Course
from ..specs.labels import DIVERGED, NOT_RUN, dataset_label, method_label, unique
from . import rate_tables
from .figures import DOT, FLAGS, HOLLOW, LOOKS, RULE, SINGLE_SEEDS, figure, looks, methods_legend, nothing, over_seeds, stands_on
from .forest import forest
from .rate_tables import EPOCHS, PAIRS, RATES
from .tables import student

COURSES = {"w_norm": "‖w‖ / start", "g_norm": "‖g‖", "lr_over_w2": "lr/‖w‖²", "angle": "angle (mrad)"}
STATISTICS = {"batch": LOOKS["twins_at"] | {"marker": "o"}, "frozen": {"color": "#000000", "linestyle": "--", "marker": "s"}}
CONVOLUTION = "convolution, from the first to the last"
RANGE = "{}: lowest to highest seed"
METRICS = ("clean", "robust")
LEAST = 10.0  # points that an axis spans: what is chance is not to look large


def scale_law(found: pd.DataFrame) -> Figure:
    """`dynamics.scale_check`: ||g|| ||w|| and |cos(w, g)| against the factor, a line for each kind of statistics."""
    marks = found.melt(["statistics", "factor"], ["product", "cos_wg"], "column")
    return figure(marks.assign(value=marks["value"].abs()), STATISTICS, columns={"product": "‖g‖·‖w‖", "cos_wg": "|cos(w, g)|"},
                  x="factor", y="value", line="statistics", log="xy", ticks=found["factor"], xlabel="factor c", sharey=False,
                  height=1.6, width=5.5, entries=[(f"{k} statistics", STATISTICS[k]) for k in unique(found["statistics"])])


def layer_courses(courses: Sequence[Course], dataset: str, methods: Sequence[str]) -> Figure:
    """COURSES against epochs on one data set: columns are the first, middle and last convolution of the main path. Values are
    means over the recorded steps of an epoch."""
    lost, frame = _lost(courses, methods, dataset), course.quantities(courses)
    frame = frame[(frame["dataset"] == dataset) & frame["convolution"].astype(bool) & frame["method"].isin(methods)]
    if frame.empty:
        return _nothing(lost)
    start = frame.groupby([*KEYS, "layer"])["w_norm"].transform("first")
    frame = frame.assign(w_norm=frame["w_norm"] / start, angle=1e3 * frame["angle"], x=np.floor(frame["epoch"]) + 0.5)
    layers = {layer: f"{place} convolution\n{layer.removeprefix('network.')}" for place, layer in three_layers(frame).items()}
    marks = frame[frame["layer"].isin(list(layers))].melt([*KEYS, "layer", "x"], list(COURSES), "row")
    marks = over_seeds(marks, ["row", "layer", "method", "x"], "value").assign(kind="plain band")
    rules = pd.DataFrame({"row": "w_norm", "layer": list(layers), "method": "one", "y": 1.0, "kind": "across"})
    fig = figure(pd.concat([marks, rules]), looks(methods) | {"one": RULE}, rows=COURSES,
                 columns=layers, column="layer", line="method", log="y", ticks=4, xlabel=f"epochs on {dataset_label(dataset)}",
                 sharey="row", height=1.0, width=6.4, entries=methods_legend(looks(methods), frame["method"], lost, "plain"),
                 per_line=4 if len(methods) < 5 else 3, note=f"{stands_on(seeds=frame)}; {RANGE.format('bands')}")
    fig.axes[0].set_yscale("linear")
    return fig


def three_layers(frame: pd.DataFrame) -> dict[str, str]:
    """first, middle and last -> layer, by depth, without the convolutions of shortcuts; fewer for a smaller network."""
    names = [n for n in unique(frame.sort_values("depth")["layer"]) if "downsample" not in n and "shortcut" not in n]
    places = {names[-1]: "last", names[len(names) // 2]: "middle", names[0]: "first"}
    return {places[name]: name for name in names if name in places}


def layer_ratios(courses: Sequence[Course]) -> Figure:
    """RATES of a method over those of each baseline, convolution by convolution: a row per data set, a column per rate. Lines are
    geometric means."""
    lost, ratios = _lost(courses, {name for pair in PAIRS for name in pair}), rate_tables.layer_ratios(courses)
    if ratios.empty:
        return _nothing(lost)
    marks = ratios.melt(["dataset", "method", "baseline", "seed", "place"], list(RATES), "rate")
    marks = over_seeds(marks.assign(value=np.log(marks["value"].astype(float))), ["dataset", "rate", "baseline", "place"],
                       "value")
    marks[["y", "low", "high"]] = np.exp(marks[["y", "low", "high"]])
    there = {*ratios["method"], *ratios["baseline"]}
    entries = [(pair_label(pair, "times"), LOOKS[pair[1]]) for pair in PAIRS if pair[1] in there]
    return figure(marks, _small(b for _, b in PAIRS), rows=unique(ratios["dataset"]), columns=RATES, row="dataset", column="rate",
                  line="baseline", x="place", rule=1, log="y", ticks=6, xlabel=CONVOLUTION, sharex="row", height=2.1,
                  ylabel="ratio (logarithmic axis)",
                  note=f"{stands_on(seeds=ratios.assign(method=ratios['baseline']))}; {RANGE.format('bars')}",
                  entries=entries + methods_legend({}, there, lost))


def wings(courses: Sequence[Course], methods: Sequence[str]) -> Figure:
    """Gradients of both halves at equal weight, of methods that have halves (left), and |cos(w, g)| (right), by convolution; a
    row per data set. Markers of the first half are larger too, since a small cross has no inside."""
    lost, layers = _lost(courses, methods), course.by_layer([c for c in courses if c.spec.method.name in methods])
    if layers.empty:
        return _nothing(lost)
    parts = [over_seeds(layers.dropna(subset=name), ["dataset", "method", "place"], name).assign(column=column, kind=kind)
             for name, column, kind in (("g_first", "g", "hollow large"), ("g_second", "g", ""), ("cos_wg", "cos", ""))]
    entries = methods_legend(looks(methods), layers["method"], lost)
    return figure(pd.concat(parts), _small(methods), rows=unique(layers["dataset"]), row="dataset", line="method", x="place",
                  columns={"g": "‖g‖ of a half's loss, at weight 1", "cos": "|cos(w, g)|"}, log="y", ticks=8, xlabel=CONVOLUTION,
                  sharex="row", sharey=False, height=2.2, note=f"{stands_on(seeds=layers)}; {RANGE.format('bars')}",
                  entries=entries + [("hollow: first half, filled: second", HOLLOW)] * bool(layers["g_first"].notna().any()))


def drift(courses: Sequence[Course], methods: Sequence[str]) -> Figure:
    """How far the means of the deployed statistics are from those of the start (`course.drift`): by epoch, as the mean over
    layers, and at the last epoch by layer."""
    lost, frame = _lost(courses, methods), course.drift([c for c in courses if c.spec.method.name in methods])
    if frame.empty:
        return _nothing(lost)
    last = frame[frame["epoch"] == frame.groupby(KEYS)["epoch"].transform("max")]
    marks = pd.concat([over_seeds(part.assign(x=x), ["dataset", "method", "x"], "mean_drift").assign(column=column)
                       for part, x, column in ((frame, frame["epoch"], "epochs"), (last, last["depth"] + 1, "layers"))])
    fig = figure(marks.assign(kind="plain band"), looks(methods), rows=unique(frame["dataset"]), row="dataset", line="method",
                 columns={"epochs": "mean over layers", "layers": "by layer, after the last epoch"}, bottom=0, ticks=5,
                 ylabel="drift of running means (sd of the start)", sharex="col", sharey=False, height=1.9, per_line=4,
                 note=f"{stands_on(seeds=frame)}; {RANGE.format('bands')}",
                 entries=methods_legend(looks(methods), frame["method"], lost, "plain"))
    fig.axes[-2].set_xlabel("epochs")
    fig.axes[-1].set_xlabel("layer, from the first to the last")
    return fig


def escape(courses: Sequence[Course], methods: Sequence[str]) -> Figure:
    """Top: PGD loss on the fixed training images by epoch (`course.early_losses`). Bottom: one method's minus that of each of its
    baselines (`rate_tables.loss_differences`), which gives the look, with the 95 % interval over seeds; small dots are seeds. A
    column per data set."""
    mine = [c for c in courses if c.spec.method.name in methods]
    lost, losses, differences = _lost(courses, methods), course.early_losses(mine, EPOCHS), rate_tables.loss_differences(courses)
    if losses.empty:
        return _nothing(lost)
    beside = {pair[1]: 0.16 * (i - (len(PAIRS) - 1) / 2) for i, pair in enumerate(PAIRS)}
    differences = differences.assign(x=differences["epoch"] + differences["baseline"].map(beside).astype(float),
                                     y=differences["value"], method=differences["baseline"])
    keys = ["dataset", "method", "x"]
    means = [[*key, *student(mine)] for key, mine in differences.groupby(keys, sort=False)["value"]]
    means = pd.DataFrame(means, columns=[*keys, "y", "low", "high"])
    single = differences[differences.duplicated(keys, keep=False)]
    marks = pd.concat([over_seeds(losses.assign(x=losses["epoch"]), keys, "loss").assign(row="loss", kind="band"),
                       means.assign(row="minus", kind="points"), single.assign(row="minus", kind="seeds")])
    several, followed = losses["dataset"].nunique() > 1, [c.spec.follow.train_images for c in mine if c.spec.follow]
    fig = figure(marks, looks([*methods, *beside]), columns=unique(losses["dataset"]), column="dataset", line="method", ticks=6,
                 rows={"loss": "PGD loss (nats)", "minus": f"{method_label(PAIRS[0][0])}\nminus each (nats)"}, height=1.7,
                 xlabel="epochs", sharey=False, width=7 if several else 4.6, per_line=4 if several else 2,
                 note=f"{stands_on(followed, losses, 'training images')}; bars: 95 % over seeds, {RANGE.format('bands')}",
                 entries=methods_legend(looks(methods), losses["method"], lost) + [SINGLE_SEEDS] * bool(len(single)))
    below = fig.axes[len(fig.axes) // 2:]
    ends = [end(ax.get_ylim()[i] for ax in below) for i, end in enumerate((min, max))]
    for ax in below:
        ax.axhline(0, **RULE)
        ax.set_ylim(ends)
    return fig


def times(courses: Sequence[Course], methods: Sequence[str]) -> Figure:
    """Epochs until the training loss falls below the threshold (`course.escape_times`): a row per method, a panel per data set;
    of several seeds each is a small dot. A method of which a seed never gets there is an arrow head at the right edge."""
    lost, found = _lost(courses, methods), course.escape_times(courses)
    found = found[found["method"].isin(methods)]
    if found.empty:
        return _nothing(lost)
    datasets, finite = unique(found["dataset"]), found[np.isfinite(found["epochs"])]
    limits = {d: (0.0, 1.15 * top if (top := finite.loc[finite["dataset"] == d, "epochs"].max()) > 0 else 1.0) for d in datasets}
    groups = finite.groupby(["dataset", "method"])
    count, place = groups["epochs"].transform("size"), groups.cumcount()
    several = count > 1
    marks = pd.concat([found.groupby(["dataset", "method"], sort=False)["epochs"].mean().reset_index(),
                       finite.assign(kind="seeds", shift=10 * (place / (count - 1).clip(lower=1) - 0.5))[several],
                       pd.DataFrame({"dataset": d, "method": m, "absent": DIVERGED} for d in datasets for m in lost)])
    marks = marks.rename(columns={"dataset": "column", "epochs": "x"}).assign(row=marks["method"], line=marks["method"])
    rows = {m: method_label(m) for m in methods if m in set(marks["line"])}
    return forest(marks, rows, looks(methods), {d: dataset_label(d) for d in datasets}, limits=limits, zero=False, sharex=False,
                  width=7 if len(datasets) > 1 else 4.6, xlabel="epochs until the training loss is below the threshold",
                  note=stands_on(seeds=found), entries=[SINGLE_SEEDS] * bool(several.any()))


def accuracy_by_rate(found: pd.DataFrame, metrics: Sequence[str] = METRICS) -> Figure:
    """Accuracy in percent against the base learning rate (`rate_tables.accuracies`): a row per metric, a column per data set.
    Lines are means over seeds in a band from the lowest to the highest, a bar where one rate has several; one seed has the 95 %
    interval over its test images as a bar. A ring is a method's best rate once all are finished, hollow markers are runs of more
    epochs."""
    found = found[found["metric"].isin(metrics)]
    averaged, lost = rate_tables.mean_accuracies(found).sort_values("rate", kind="stable"), found[found["absent"] == DIVERGED]
    if averaged.empty:
        return nothing(DIVERGED if len(found) and len(lost) == len(found) else NOT_RUN)
    long, shown, several = averaged["part"] != "grid", looks(found["method"]), averaged["dataset"].nunique() > 1
    one, images = averaged["count"] == 1, found["n"].min()
    exact = [clopper_pearson(round(value * images), images)[1:3] for value in averaged["mean"]]
    averaged[["min", "max"]] = averaged[["min", "max"]].where(~one, pd.DataFrame(exact, averaged.index, ["min", "max"]))
    rings = rate_tables.best_rates(found).assign(kind="ring", min=math.nan, max=math.nan)
    lines = averaged[~long].groupby(["method", "dataset", "metric"])["rate"].nunique().groupby("method").max()
    bands = averaged[~long & ~one].groupby(["method", "dataset", "metric"])["rate"].nunique().groupby("method").max()
    bar = one | (averaged["method"].map(bands) == 1)  # where a band would have no width
    marks = pd.concat([averaged.assign(kind=long.map({True: "points hollow", False: "band"}).mask(bar & ~long, "")), rings])
    step = 1.03 if (bar & ~long).any() else 1.0  # side by side, so that bars do not hide each other
    x = [m.rate * step ** ([*shown].index(m.method) - (len(shown) - 1) / 2) for m in marks.itertuples()]
    looked = {m: look | ({} if lines.get(m, 0) > 1 else FLAGS["points"]) for m, look in shown.items()}
    entries = methods_legend(looked, averaged["method"], lost.groupby("method")["rate"].unique().to_dict(), what="rate")
    entries += [("ring: best rate", DOT | FLAGS["ring"])] * bool(len(rings))
    entries += [("hollow: more epochs", HOLLOW)] * bool(long.any())
    several_seeds = " and ".join(["bands"] * bool((~bar).any()) + ["bars"] * bool((bar & ~one).any()))
    spans = (f"{several_seeds}: lowest to highest seed" + ", of one seed 95 %" * bool(one.any()) if several_seeds
             else "bars: 95 % over test images")
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


def _lost(courses: Sequence[Course], methods: Iterable[str], dataset: str | None = None) -> dict[str, set[int]]:
    """Seeds of the runs that diverged, by method."""
    out: dict[str, set[int]] = {}
    for d, method, seed in course.lost(courses):
        if method in methods and dataset in (None, d):
            out.setdefault(method, set()).add(seed)
    return out


def _nothing(lost: Mapping[str, set[int]]) -> Figure:
    return nothing(DIVERGED if lost else NOT_RUN)


def _small(methods: Iterable[str]) -> dict[str, dict]:
    return {m: look | {"markersize": 3} for m, look in looks(methods).items()}
