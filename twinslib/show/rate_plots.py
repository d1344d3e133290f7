"""Figures of notebook 02 as functions of frames: how the weights move, layer by layer, and how the start is left.

A method has the look that it has in `plots` in every figure; lines are means over seeds, bands and bars reach
from the lowest seed to the highest unless they are said to be intervals. Without any run a figure says so.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator, NullLocator

from ..base.errors import choose
from ..claims.effects import pair_label
from ..evidence.course import KEYS
from ..specs import labels
from ..store import store
from .figures import LOOKS, OTHERS, SMALL, WIDTH, nothing, style
from .rate_tables import PAIRS, RATES, over_seeds

FOLLOWED = LOOKS | dict(zip(("at_lr", "at_split", "frozen_at", "twins_shared"), OTHERS, strict=True))
COURSES = {"w_norm": "‖w‖ / start", "g_norm": "‖g‖", "lr_over_w2": "lr/‖w‖²", "angle": "angle (mrad)"}
STATISTICS = {"batch": LOOKS["twins_at"] | {"marker": "o"}, "frozen": {"color": "#000000", "linestyle": "--", "marker": "s"}}
BAND = {"linewidth": 0, "alpha": 0.2, "zorder": 1.5}
DOT = {"linestyle": "none", "marker": ".", "markersize": 3, "zorder": 3}


def scale_law(found: pd.DataFrame) -> Figure:
    """`dynamics.scale_check`: ||g|| ||w|| and |cos(w, g)| against the factor, a line for each kind of statistics."""
    with style():
        fig = Figure(figsize=(5.5, 2.3))
        axes, labels = fig.subplots(1, 2), {"product": "‖g‖·‖w‖", "cos_wg": "|cos(w, g)|"}
        for ax, (name, label) in zip(axes, labels.items(), strict=True):
            for kind, mine in found.groupby("statistics", sort=False):
                ax.plot(mine["factor"], mine[name].abs(), **STATISTICS[kind])
            ax.set(xscale="log", yscale="log", xlabel="factor c", title=label)
            ax.xaxis.set_major_locator(FixedLocator(sorted(found["factor"].unique())))
            ax.xaxis.set_minor_locator(NullLocator())
            ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
            _decades(ax)
        _legend(fig, [Line2D([], [], label=f"{kind} statistics", **STATISTICS[kind]) for kind in found["statistics"].unique()])
    return fig


def layer_courses(frame: pd.DataFrame, dataset: str, methods: Sequence[str]) -> Figure:
    """COURSES against epochs on one data set: columns are the first, middle and last convolution of the main path.

    Args:
        frame: as `course.quantities` makes it; values are means over the recorded steps of an epoch.
        methods: which of FOLLOWED to draw, in the order of the legend; those without a run leave no line.
    """
    lost = _lost(frame, methods, dataset)
    frame = _of(frame[(frame["dataset"] == dataset) & frame["convolution"].astype(bool)], methods)
    if frame.empty:
        return _nothing(lost)
    start = frame.groupby([*KEYS, "layer"])["w_norm"].transform("first")
    frame = frame.assign(w_norm=frame["w_norm"] / start, angle=1e3 * frame["angle"], epoch=np.floor(frame["epoch"]) + 0.5)
    chosen = three_layers(frame)
    with style():
        fig = Figure(figsize=(6.4, 4.8))
        axes = fig.subplots(len(COURSES), len(chosen), sharex=True, sharey="row", squeeze=False)
        for (place, layer), column in zip(chosen.items(), axes.T, strict=True):
            mine = frame[frame["layer"] == layer]
            column[0].set_title(f"{place} convolution\n{layer.removeprefix('network.')}", fontsize=8)
            column[0].axhline(1, color="#555555", linewidth=0.8, zorder=1)
            for ax, name in zip(column, COURSES, strict=True):
                _by_seed(ax, mine, "epoch", name, methods)
                ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
                if name != "w_norm":
                    ax.set_yscale("log")
                    _decades(ax)
        for ax, label in zip(axes[:, 0], COURSES.values(), strict=True):
            ax.set_ylabel(label)
        fig.align_ylabels(axes[:, 0])
        fig.supxlabel(f"epochs on {labels.dataset_label(dataset)}")
        _legend(fig, _handles(frame, methods, lost, marker=False))
    return fig


def three_layers(frame: pd.DataFrame) -> dict[str, str]:
    """first, middle and last -> layer, by depth, without the convolutions of shortcuts; fewer for a smaller network."""
    names = [n for n in labels.unique(frame.sort_values("depth")["layer"]) if "downsample" not in n and "shortcut" not in n]
    picked = {"first": names[0], "middle": names[len(names) // 2], "last": names[-1]}
    return {place: name for place, name in picked.items() if list(picked.values()).index(name) == list(picked).index(place)}


def layer_ratios(ratios: pd.DataFrame, pairs: Sequence[tuple[str, str]] = PAIRS) -> Figure:
    """RATES of a method over those of each baseline, convolution by convolution: a row per data set, a column per rate.

    Args:
        ratios: as `rate_tables.layer_ratios` makes them. Lines are geometric means over seeds, dots single seeds.
    """
    lost = _lost(ratios, {name for pair in pairs for name in pair})
    if ratios.empty:
        return _nothing(lost)
    datasets = labels.unique(ratios["dataset"])
    shown = [pair for pair in pairs if ((ratios["method"] == pair[0]) & (ratios["baseline"] == pair[1])).any()]
    with style():
        fig = Figure(figsize=(WIDTH, 2.1 * len(datasets) + 0.6))
        axes = fig.subplots(len(datasets), len(RATES), sharex="row", sharey=True, squeeze=False)
        for dataset, line in zip(datasets, axes, strict=True):
            for ax, (name, label) in zip(line, RATES.items(), strict=True):
                ax.axhline(1, color="#555555", linewidth=0.8, zorder=1)
                for method, baseline in shown:
                    mine = ratios[(ratios["dataset"] == dataset) & (ratios["method"] == method)
                                  & (ratios["baseline"] == baseline)]
                    if len(mine):
                        mean = np.exp(np.log(mine[name]).groupby(mine["place"]).mean())
                        ax.plot(mean.index, mean, **FOLLOWED[baseline] | {"markersize": 3})
                        if mine["seed"].nunique() > 1:
                            ax.plot(mine["place"], mine[name], color=FOLLOWED[baseline]["color"], **DOT)
                ax.set_yscale("log")
                ax.set_title(label if dataset == datasets[0] else "")
                ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
            line[0].set_ylabel(labels.dataset_label(dataset))
        _ratio_ticks(axes[0, 0])
        fig.supxlabel("convolution, from the first to the last")
        handles = [Line2D([], [], label=pair_label(pair, "times"), **FOLLOWED[pair[1]]) for pair in shown]
        _legend(fig, [*handles, *_missing(set(ratios["method"]) | set(ratios["baseline"]), lost)])
    return fig


def wings(layers: pd.DataFrame, methods: Sequence[str]) -> Figure:
    """Gradients of both halves at equal weight, of methods that have halves (left), and |cos(w, g)| (right), by convolution; a
    row per data set.

    Args:
        layers: as `rate_tables.by_layer` makes it. methods: as for `layer_courses`.
    """
    lost, layers = _lost(layers, methods), _of(layers, methods)
    if layers.empty:
        return _nothing(lost)
    datasets = labels.unique(layers["dataset"])
    with style():
        fig = Figure(figsize=(WIDTH, 2.2 * len(datasets) + 0.9))
        axes = fig.subplots(len(datasets), 2, sharex="row", squeeze=False)
        for dataset, (left, right) in zip(datasets, axes, strict=True):
            here = layers[layers["dataset"] == dataset]
            for method, mine in here.groupby("method", sort=False):
                if mine["g_first"].notna().any():
                    _over_layers(left, mine, "g_first", FOLLOWED[method] | {"markerfacecolor": "white"})
                    _over_layers(left, mine, "g_second", FOLLOWED[method])
                _over_layers(right, mine, "cos_wg", FOLLOWED[method])
            for ax in (left, right):
                ax.set_yscale("log")
                ax.xaxis.set_major_locator(MaxNLocator(8, integer=True))
                _decades(ax)
            left.set_ylabel(labels.dataset_label(dataset))
        axes[0, 0].set_title("‖g‖ of a half's loss, at weight 1")
        axes[0, 1].set_title("|cos(w, g)|")
        fig.supxlabel("convolution, from the first to the last")
        handles = _handles(layers, methods, lost)
        if layers["g_first"].notna().any():
            handles.append(Line2D([], [], linestyle="none", marker="o", color="#555555", markerfacecolor="white",
                                  label="hollow: first half"))
        _legend(fig, handles)
    return fig


def drift(frame: pd.DataFrame, methods: Sequence[str]) -> Figure:
    """How far the means of the deployed statistics are from those of the start (`dynamics.statistics_drift`): by epoch, as the
    mean over layers, and at the last epoch by layer.

    Args:
        frame: as `course.drift` makes it. methods: as for `layer_courses`.
    """
    lost, frame = _lost(frame, methods), _of(frame, methods)
    if frame.empty:
        return _nothing(lost)
    frame, datasets = frame.assign(depth=frame["depth"] + 1), labels.unique(frame["dataset"])
    last = frame[frame["epoch"] == frame.groupby(KEYS)["epoch"].transform("max")]
    columns = [(frame, "epoch", "epochs", "mean of layers (sd)"),
               (last, "depth", "layer, from the first to the last", "after the last epoch (sd)")]
    with style():
        fig = Figure(figsize=(WIDTH, 1.9 * len(datasets) + 0.8))
        axes = fig.subplots(len(datasets), 2, sharex="col", squeeze=False)
        for dataset, line in zip(datasets, axes, strict=True):
            for ax, (part, x, below, title) in zip(line, columns, strict=True):
                _by_seed(ax, part[part["dataset"] == dataset], x, "mean_drift", methods)
                ax.set_ylim(bottom=0)
                ax.set_title(title if dataset == datasets[0] else "")
                ax.set_xlabel(below if dataset == datasets[-1] else "")
                ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            line[0].set_ylabel(labels.dataset_label(dataset))
        _legend(fig, _handles(frame, methods, lost, marker=False))
    return fig


def escape(losses: pd.DataFrame, differences: pd.DataFrame, methods: Sequence[str],
           pairs: Sequence[tuple[str, str]] = PAIRS) -> Figure:
    """Top: PGD loss on the fixed training images by epoch. Bottom: one method's minus that of each of its baselines, which
    gives the look, with the 95 % interval over seeds; small dots are seeds. A column per data set.

    Args:
        losses: as `course.early_losses` makes them. differences: as `rate_tables.loss_differences` makes them.
        methods: as for `layer_courses`. pairs: of the same method.
    """
    lost, losses = _lost(losses, methods), _of(losses, methods)
    if losses.empty:
        return _nothing(lost)
    datasets = labels.unique(losses["dataset"])
    with style():
        fig = Figure(figsize=(WIDTH if len(datasets) > 1 else 4.6, 4.2))
        axes = fig.subplots(2, len(datasets), sharex=True, squeeze=False)
        for dataset, (top, bottom) in zip(datasets, axes.T, strict=True):
            _by_seed(top, losses[losses["dataset"] == dataset], "epoch", "loss", methods, marker=True)
            top.set_title(labels.dataset_label(dataset))
            bottom.axhline(0, color="#555555", linewidth=0.8, zorder=1)
            for i, pair in enumerate(pairs):
                mine = differences[(differences["dataset"] == dataset) & (differences["method"] == pair[0])
                                   & (differences["baseline"] == pair[1])]
                shift = 0.16 * (i - (len(pairs) - 1) / 2)
                for epoch, group in mine.groupby("epoch"):
                    _interval(bottom, epoch + shift, group["value"], FOLLOWED[pair[1]])
            bottom.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        for other in axes[1, 1:]:
            other.sharey(axes[1, 0])
        axes[0, 0].set_ylabel("PGD loss (nats)")
        axes[1, 0].set_ylabel(f"{labels.method_label(pairs[0][0])} minus it (nats)")
        fig.align_ylabels(axes[:, 0])
        fig.supxlabel("epochs")
        _legend(fig, _handles(losses, methods, lost))
    return fig


def times(found: pd.DataFrame, methods: Sequence[str]) -> Figure:
    """Epochs until the training loss falls below the threshold: a row per method, a panel per data set; small dots are seeds.

    Args:
        found: as `course.escape_times` makes it; a seed that never gets there is a triangle at the right edge.
    """
    lost, found = _lost(found, methods), _of(found, methods)
    if found.empty:
        return _nothing(lost)
    datasets = labels.unique(found["dataset"])
    shown = [m for m in methods if m in set(found["method"]) or m in lost]
    with style():
        fig = Figure(figsize=(WIDTH if len(datasets) > 1 else 4.6, 0.24 * len(shown) + 0.8))
        axes = fig.subplots(1, len(datasets), sharey=True, squeeze=False)[0]
        for dataset, ax in zip(datasets, axes, strict=True):
            here = found[found["dataset"] == dataset]
            top = here.loc[np.isfinite(here["epochs"]), "epochs"].max()
            limit = 1.15 * top if np.isfinite(top) else 1.0
            for y, method in enumerate(shown):
                mine = here.loc[here["method"] == method, "epochs"]
                if mine.empty and method in lost:
                    ax.text(0.02 * limit, y, store.DIVERGED, va="center", fontsize=SMALL, color="#555555")
                done = mine[np.isfinite(mine)]
                if len(done) == len(mine) > 0:
                    ax.plot(mine.mean(), y, **FOLLOWED[method] | {"linestyle": "none", "markersize": 5})
                ax.plot(done, y + np.linspace(-0.25, 0.25, len(done)) if len(done) > 1 else np.full(len(done), y),
                        color="#000000", **DOT)
                if len(done) < len(mine):
                    ax.plot(limit, y, linestyle="none", marker=">", color=FOLLOWED[method]["color"], clip_on=False)
            ax.set(xlim=(0, limit), ylim=(len(shown) - 0.5, -0.5), title=labels.dataset_label(dataset))
            ax.grid(axis="y", visible=False)
        axes[0].set_yticks(range(len(shown)), [labels.method_label(m) for m in shown])
        fig.supxlabel("epochs until the training loss is below the threshold")
    return fig


def _of(frame: pd.DataFrame, methods: Sequence[str]) -> pd.DataFrame:
    for method in methods:
        choose(method, FOLLOWED, "method")
    return frame[frame["method"].isin(methods)]


def _lost(frame: pd.DataFrame, methods: Iterable[str], dataset: str | None = None) -> dict[str, set[int]]:
    """Seeds of the runs that diverged, by method (`course.lost`)."""
    out: dict[str, set[int]] = {}
    for d, method, seed in frame.attrs.get("lost", {}):
        if method in methods and dataset in (None, d):
            out.setdefault(method, set()).add(seed)
    return out


def _nothing(lost: dict) -> Figure:
    return nothing(store.DIVERGED if lost else store.NOT_RUN)


def _missing(there: Iterable[str], lost: dict[str, set[int]]) -> list[Line2D]:
    """Entries of a legend for methods without a line of their own."""
    return [Line2D([], [], linestyle="none", label=labels.marked(m, seeds, left=False)) for m, seeds in lost.items()
            if m not in there]


def _by_seed(ax: Axes, frame: pd.DataFrame, x: str, y: str, methods: Sequence[str], marker: bool = False) -> None:
    """A line per method, mean over seeds, in a band from the lowest seed to the highest."""
    for method in methods:
        mine, look = frame[frame["method"] == method], FOLLOWED[method]
        if mine.empty:
            continue
        seeds = mine.groupby([x, "seed"])[y].mean().groupby(level=x)
        mean = seeds.mean()
        ax.plot(mean.index, mean, **look | ({} if marker else {"marker": ""}))
        if mine["seed"].nunique() > 1:
            ax.fill_between(mean.index, seeds.min(), seeds.max(), color=look["color"], **BAND)


def _over_layers(ax: Axes, frame: pd.DataFrame, y: str, look: dict) -> None:
    """Mean over seeds by convolution; bars reach from the lowest to the highest seed."""
    seeds = frame.groupby("place")[y]
    mean = seeds.mean()
    ax.errorbar(mean.index, mean, yerr=[mean - seeds.min(), seeds.max() - mean], elinewidth=0.8, **look | {"markersize": 3.5})


def _interval(ax: Axes, x: float, values: pd.Series, look: dict) -> None:
    value, low, high = over_seeds(values)
    ends = [[value - low], [high - value]] if np.isfinite(low) else None
    ax.errorbar(x, value, yerr=ends, elinewidth=0.8, **look | {"linestyle": "none"})
    if len(values) > 1:
        ax.plot(np.full(len(values), x), values, color="#000000", **DOT | {"markersize": 2})


def _handles(frame: pd.DataFrame, methods: Sequence[str], lost: dict[str, set[int]], marker: bool = True) -> list[Line2D]:
    there = set(frame["method"])
    return [Line2D([], [], label=labels.marked(m, lost.get(m, ()), left=True), **FOLLOWED[m] | ({} if marker else {"marker": ""}))
            for m in methods if m in there] + _missing(there, lost)


def _legend(fig: Figure, handles: list[Line2D]) -> None:
    columns = 2 if fig.get_figwidth() < 6 else 4 if len(handles) in (4, 7, 8) else 3
    fig.legend(handles=handles, loc="outside upper center", ncols=columns, fontsize=8, handlelength=3.6)


def _decades(ax: Axes) -> None:
    """Few ticks on a logarithmic axis: decades on a long one, round numbers on a short one."""
    low, high = ax.get_ylim()
    if high / low > 100:
        ax.yaxis.set_major_locator(LogLocator(numticks=5))
    else:
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low > 3 else (1, 1.5, 2, 3, 4, 5, 6, 7, 8), numticks=20))
        ax.yaxis.set_major_formatter(lambda value, _: f"{value:.4g}")
    ax.yaxis.set_minor_locator(NullLocator())


def _ratio_ticks(ax: Axes) -> None:
    """1 and round factors on both sides."""
    low, high = ax.get_ylim()
    if high / low < 1.5:
        low, high = min(low, 1 / 1.25), max(high, 1.25)
        ax.set_ylim(low, high)
    steps = [v for v in (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 7, 10, 20, 50, 100) if low <= v <= high]
    ax.yaxis.set_major_locator(FixedLocator(steps))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
