"""Figures of adversarial fine-tuning as functions of frames (`aft_cells.frame`), jobs and rows; nothing is computed anew.

Accuracies are in percent; bars are the 95 % intervals of `report.estimates`: over test images of one seed, else over seeds.
Drawn are networks trained and attacked in the maximum norm. A method has one colour, marker and line style in all figures.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator

from ..base.collapse import NEVER, collapsed
from ..evidence import accuracy
from ..evidence.networks import images_passed, lost
from ..specs import labels
from ..specs.labels import dataset_label, method_label, unique
from ..specs.schedules import climb, factor
from ..specs.strength import strength
from ..store.jobs import Job
from ..store.store import DIVERGED, NOT_RUN
from ..studies.finetuning import STUDY
from .embedding import Projection
from .figures import LOOKS, OTHERS, SMALL, WIDTH, noted, style

FINETUNED = {"aft": LOOKS["twins_trades"] | {"linestyle": "-"}, "at_scratch": LOOKS["at"],
             "trades_scratch": LOOKS["trades"], "aft_twins": LOOKS["twins_at"] | {"linestyle": (0, (10, 2, 2, 2))},
             "aft_random": OTHERS[0], "aft_public": OTHERS[1], "aft_free": OTHERS[3], "fast_at": LOOKS["natural"],
             "free_at": OTHERS[2] | {"color": "#7B3294", "marker": "<"}}  # not black, which edges the best epoch
SPARE = ">pd8"  # markers of methods that are not named here, in grey
OTHER_SCHEDULE = {"color": "#0072B2", "marker": "o"}
GREY = "#8A8A8A"
PLAIN = "#333333"  # of legend entries that stand for every colour
BEST = {"markeredgecolor": "black", "markeredgewidth": 0.8}
CLASSES = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#CDBE00", "#000000", "#8C510A", "#999999")
PASSES = "passes over the training set (forward and backward together are one)"
STEPS = 1000  # points of a schedule's line


def schedule_curves(jobs: Sequence[Job]) -> Figure:
    """Learning rate over its peak by epoch: a panel for AFT and for each other schedule, with AFT's behind it in grey; where the
    radius of the attack climbs too, a thin dashed line for that.

    Raises:
        ValueError: neither AFT nor another schedule is planned.
    """
    plan = {}
    for job in jobs:
        part = dict(job.labels).get("part")
        if job.study == STUDY and (part == "schedule" or (part == "main" and job.spec.method.name == "aft")):
            plan.setdefault(job.spec.method.name, job.spec)
    if not plan:
        raise ValueError("expected AFT or another schedule among the jobs, got none; pass the jobs of the whole plan")
    columns = min(3, len(plan))
    rows = -(-len(plan) // columns)
    with style():
        fig = Figure(figsize=(WIDTH, 1.3 * rows + 0.95))
        axes = list(fig.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat)
        for ax in axes[len(plan):]:
            ax.set_axis_off()
        for i, (ax, (name, spec)) in enumerate(zip(axes, plan.items(), strict=False)):
            if name != "aft" and "aft" in plan:
                ax.plot(*_factors(plan["aft"].optim), color=GREY, linewidth=0.9, label="_aft")
            ax.plot(*_factors(spec.optim), color=_looks([name])[name]["color"] if name == "aft" else OTHER_SCHEDULE["color"])
            if spec.attack.eps_warmup:
                epochs = np.linspace(0, spec.optim.epochs, STEPS)
                ax.plot(epochs, [climb(k, STEPS, spec.attack.eps_warmup) for k in range(STEPS)], color="black", linewidth=0.8,
                        linestyle=(0, (4, 2)), label="_eps")
            ax.set_title("AFT: slow start, fast decay" if name == "aft" and spec.optim.schedule == "slow_fast"
                         else method_label(name).removeprefix("AFT, "))
            if i + columns >= len(plan):
                ax.xaxis.set_tick_params(labelbottom=True)
        axes[0].set(xlim=(0, max(spec.optim.epochs for spec in plan.values())), ylim=(0, 1.06), yticks=(0, 0.5, 1))
        fig.supxlabel("epoch of fine-tuning")
        fig.supylabel("learning rate over its peak")
        handles = [Line2D([], [], color=FINETUNED["aft"]["color"], label="AFT")] * ("aft" in plan)
        handles += [Line2D([], [], color=OTHER_SCHEDULE["color"], label="other schedule"),
                    Line2D([], [], color=GREY, linewidth=0.9, label="AFT, for comparison")] * (len(plan) > 1)
        if any(spec.attack.eps_warmup for spec in plan.values()):
            handles.append(Line2D([], [], color="black", linewidth=0.8, linestyle=(0, (4, 2)), label="ε over its final value"))
        _legend(fig, handles, columns=4)
    return fig


def cost_plot(frame: pd.DataFrame, dataset: str, *, attack: str | None = None, train_images: int = 0) -> Figure:
    """Clean and robust accuracy against passes over the training set: filled with the start given, hollow with the natural
    training of the start where that is ours; black edges mark the epoch best on validation images, joined with the last one.

    Args:
        attack: on the right; by default `shared_attack`.
        train_images: of runs whose `train_images` is 0, which stands for all.
    Raises:
        ValueError: such runs are there and `train_images` is not given.
    """
    rows = _of(frame, dataset, "main")
    methods, gone, rows = unique(rows["method"]), lost(rows), rows.dropna(subset="value")
    given = _known(rows["train_images"], train_images, "train_images")
    rows = rows.assign(given=rows["images_given"] / given, whole=rows["images_whole"] / given)
    found, key = means(rows), shared_attack(rows, attack)
    panels = [found[found["attack"] == "none"], _measured(found, key)]
    looks = _looks(methods)
    with style():
        fig = Figure(figsize=(WIDTH, 4.4))
        axes = fig.subplots(1, 2, sharex=True)
        for ax, panel, title in zip(axes, panels, ("clean", _header(key)), strict=True):
            for method, mine in panel.groupby("method", sort=False):
                _networks(ax, mine.sort_values("given"), looks[method])
            front = pareto(panel["given"], panel["value"])
            ax.plot(panel["given"].iloc[front], 100 * panel["value"].iloc[front], drawstyle="steps-post", color=GREY,
                    linewidth=0.8, zorder=1, label="_front")
            ax.set_title(title + _basis(panel))
            ax.set_xscale("log")
            _plain_decades(ax)
            _empty(ax, gone)
        axes[0].set_ylabel("accuracy (%)")
        fig.supxlabel(f"{PASSES}, {dataset_label(dataset)}")
        dot = {"color": PLAIN, "marker": "o", "linestyle": "none", "markersize": 5}
        seen = set(panels[1]["method"])
        handles = [Line2D([], [], **looks[m] | {"linestyle": "none", "markersize": 5},
                          label=method_label(m) + (
            "" if m in seen else f" ({gone[m]})" if m in gone else f" (right: {NOT_RUN})")) for m in methods]
        handles += [Line2D([], [], **dot, label="last epoch, start given"),
                    Line2D([], [], **dot | BEST | {"color": "#BBBBBB"}, label="best on validation images"),
                    Line2D([], [], color=PLAIN, linestyle="--", linewidth=0.8, label="epochs of the same runs"),
                    Line2D([], [], **dot | {"linestyle": "-", "linewidth": 0.5}, markerfacecolor="white",
                           label="training of the start included"),
                    Line2D([], [], color=GREY, linewidth=0.8, label="best at its cost, start given")]
        _legend(fig, handles)
    return fig


def schedule_plot(frame: pd.DataFrame, dataset: str, methods: Sequence[str] | None = None) -> Figure:
    """Clean and robust accuracy at the end of AFT and under each other schedule, a row each with the learning rate chosen for it;
    a line where AFT is.

    Args:
        methods: which to show, in which order, finished or not; by default AFT and the schedules of `frame`.
    """
    rows = _of(frame, dataset, "main", "schedule")
    rows = rows[(rows["at"] == "last") & ((rows["part"] == "schedule") | (rows["method"] == "aft"))]
    gone, rows = lost(rows), rows.dropna(subset="value")
    found, key = means(rows), shared_attack(rows)
    methods = unique(["aft", *rows["method"], *gone]) if methods is None else list(methods)
    panels = [found[found["attack"] == "none"], _measured(found, key)]
    most = found["seeds"].max() if len(found) else 0
    labels = []
    for method in methods:
        mine, lr = found[found["method"] == method], unique(rows.loc[rows["method"] == method, "lr"])
        seeds = mine["seeds"].max() if len(mine) else most
        labels.append(method_label(method) + (f"\nlr {' or '.join(f'{x:g}' for x in lr)}" if lr else "")
                      + (f" ({seeds} seed{'s' if seeds > 1 else ''})" if seeds < most else ""))
    with style():
        fig = Figure(figsize=(WIDTH, 0.33 * len(methods) + 1.0))
        axes = fig.subplots(1, 2, sharey=True)
        for ax, panel, title in zip(axes, panels, ("clean", _header(key)), strict=True):
            here = {row.method: row for row in panel.itertuples()}
            if "aft" in here:
                ax.axvline(100 * here["aft"].value, color=GREY, linewidth=0.8, zorder=1)
            for y, method in enumerate(methods):
                if method not in here:
                    ax.text(0.02, y, gone.get(method, NOT_RUN), transform=ax.get_yaxis_transform(), va="center",
                            fontsize=SMALL, color="#555555")
                    continue
                row, look = here[method], FINETUNED["aft"] if method == "aft" else OTHER_SCHEDULE
                ax.errorbar(100 * row.value, y, xerr=_error(row), elinewidth=0.9, **look | {"linestyle": "none"})
            ax.set_title(title + _basis(panel))
            ax.grid(axis="y", visible=False)
        axes[0].set_yticks(range(len(methods)), labels)
        axes[0].set_ylim(len(methods) - 0.4, -0.6)
        fig.supxlabel(f"accuracy on {dataset_label(dataset)} at the last epoch (%)")
    return fig


def data_width_plot(frame: pd.DataFrame, dataset: str, own_width: int, *, train_images: int = 0) -> Figure:
    """Robust accuracy, and clean accuracy in lighter colour, against the number of training images and the width, of AFT and of
    the same training from random weights, at the last epoch.

    The runs with all images and own width count only for the seeds that the others have, so that lines stay with their seeds.

    Args:
        own_width: of the arch, for runs whose `width` is 0.
        train_images: likewise of runs whose `train_images` is 0.
    """
    names = ("aft", "aft_random")
    rows = _of(frame, dataset, "main", "fraction", "width")
    rows = rows[rows["method"].isin(names) & (rows["at"] == "last")]
    every, rows = rows, rows.dropna(subset="value")
    key, looks = shared_attack(rows), _looks(names)
    with style():
        fig = Figure(figsize=(WIDTH, 2.9))
        axes = fig.subplots(1, 2, sharey=True)
        for ax, part, column, own in zip(axes, ("fraction", "width"), ("train_images", "width"), (train_images, own_width),
                                         strict=True):
            some = rows[rows["part"] == part]
            full = rows[rows["part"] == "main"]
            here = pd.concat([some, full[full["seed"].isin(some["seed"])] if len(some) else full])
            here = here.assign(x=_known(here[column], own, column))
            here = here.drop_duplicates(["x", "method", "seed", "attack", "eps", "n"])  # the full size may be in both
            lines = [means(mine).assign(x=x) for x, mine in here.groupby("x")]
            lines = pd.concat(lines) if lines else means(here)
            panels = (lines[lines["attack"] == "none"], 0.4), (_measured(lines, key), 1.0)
            for panel, alpha in panels:
                for method, mine in panel.groupby("method", sort=False):
                    beside = 1.02 ** names.index(method)  # so that bars do not hide each other
                    ax.errorbar(beside * mine["x"], 100 * mine["value"], yerr=_error(mine), elinewidth=0.8, alpha=alpha,
                                markeredgewidth=0, **looks[method])
            ax.set_xscale("log")
            ax.xaxis.set_minor_locator(NullLocator())
            ax.set_xticks(sorted(here["x"].unique()), [f"{int(x):,}" for x in sorted(here["x"].unique())])
            ax.set(xlabel={"fraction": "training images", "width": "width (channels of the first stage)"}[part],
                   title=_basis(pd.concat([panel for panel, _ in panels])).strip())
            missing = every[every["value"].isna() & (every["part"] == part)].drop_duplicates(["method", column, "seed"])
            noted(ax, [f"{method_label(r.method)}, {getattr(r, column) or own:,}" for r in missing.itertuples()])
            _empty(ax, lost(every))
        axes[0].set_ylabel(f"accuracy on {dataset_label(dataset)} (%)")
        handles = [Line2D([], [], **looks[m], label=f"{method_label(m)}: {_header(key)}") for m in names]
        handles += [Line2D([], [], **looks[m], alpha=0.4, markeredgewidth=0, label=f"{method_label(m)}: clean") for m in names]
        _legend(fig, handles, columns=2)
    return fig


def embedding_plot(projections: Sequence[tuple[int, Projection]], class_names: Sequence[str]) -> Figure:
    """Test images in the plane, a panel for each epoch: dots clean, crosses attacked, a colour for each class (grey from the
    eleventh on); above how faithful the picture is, below `Projection.agreement`."""
    with style():
        fig = Figure(figsize=(WIDTH, 3.5))
        axes = fig.subplots(1, max(len(projections), 1), squeeze=False)[0]
        present = sorted({int(c) for _, p in projections for c in np.unique(p.labels)})
        colors = dict(zip(present, CLASSES, strict=False))
        for i, (ax, (epoch, p)) in enumerate(zip(axes, projections, strict=False)):
            each = [colors.get(int(c), GREY) for c in p.labels]
            ax.scatter(*p.clean.T, s=8, c=each, linewidths=0, alpha=0.85, label="_clean")
            ax.scatter(*p.attacked.T, s=11, c=each, marker="x", linewidths=0.8, label="_attacked")
            when = {0: "before: ", len(projections) - 1: "after: "}.get(i, "") if len(projections) > 1 else ""
            ax.set_title(f"{when}epoch {epoch}\ntrustworthiness {p.trustworthiness:.2f}")
            shares = (f"{100 * share:.0f} % of {kind}" for share, kind in zip(p.agreement, ("clean", "attacked"), strict=True))
            ax.set_xlabel("own class nearest:\n" + ", ".join(shares), fontsize=8)
        for ax in axes:
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set(visible=True, color="#BBBBBB", linewidth=0.6)
            ax.set_box_aspect(1)
            if not projections:
                ax.text(0.5, 0.5, f"{NOT_RUN} or {DIVERGED}", ha="center", transform=ax.transAxes)
        handles = [Line2D([], [], linestyle="none", marker="o", color=color, label=class_names[c]) for c, color in colors.items()]
        if len(present) > len(CLASSES):
            handles.append(Line2D([], [], linestyle="none", marker="o", color=GREY, label="other classes"))
        handles += [Line2D([], [], linestyle="none", marker=m, color=PLAIN, label=text) for m, text in (("o", "clean"),
                                                                                                   ("x", "attacked"))]
        fig.legend(handles=handles, loc="outside upper center", ncols=6, fontsize=8, handlelength=1)
    return fig


def course_plot(store_rows: Mapping[str, Sequence[dict]], train_images: int) -> Figure:
    """Robust accuracy on validation images while training, against passes over the training set with the start given; a cross
    where a run collapsed (`collapsed`, for ten classes and 500 images), the legend says which diverged.

    Args:
        store_rows: method -> per-epoch rows of its run (`aft_cells.rows_of`), none where it is not finished.
        train_images: that a pass goes over.
    """
    looks = _looks(list(store_rows))
    with style():
        fig = Figure(figsize=(WIDTH, 3.1))
        ax = fig.subplots()
        for method, rows in store_rows.items():
            at = {row["epoch"]: (images_passed(rows[:i]) / train_images, 100 * row["val_robust_acc"])
                  for i, row in enumerate(rows, start=1) if "val_robust_acc" in row}
            found, word = collapsed(rows), rows[-1].get("absent", "") if rows else NOT_RUN
            never = found is not None and found.kind == NEVER
            word = word or (NEVER if never else "" if at else NOT_RUN)
            label = method_label(method) + (f" ({word})" if word else "")
            ax.plot(*np.reshape(list(at.values()), (-1, 2)).T, **looks[method] | {"markersize": 3}, label=label)
            if found and not never:
                ax.plot(*at[found.epoch], linestyle="none", marker="x", color="black", markersize=9, markeredgewidth=1.6,
                        zorder=4, label="_collapsed")
        ax.set_xscale("log")
        _plain_decades(ax)
        ax.set(xlabel=PASSES, ylabel="robust accuracy on validation images (%)")
        _empty(ax)
        handles = [line for line in ax.lines if not line.get_label().startswith("_")]
        if any(line.get_label() == "_collapsed" for line in ax.lines):
            handles.append(Line2D([], [], linestyle="none", marker="x", color="black", markersize=7, label="collapsed"))
        fig.legend(handles=handles, loc="outside right center", fontsize=8, handlelength=4)
    return fig


def means(rows: pd.DataFrame) -> pd.DataFrame:
    """One line per method, `at`, attack and eps: `accuracy.estimates` (the mean where there are several seeds), the number of
    seeds, and means over them of the columns of passes, if `rows` has them."""
    key, costs = ["method", "at", "attack", "eps"], [c for c in ("given", "whole") if c in rows]
    out = [accuracy.one_line(accuracy.estimates(mine.assign(metric="accuracy", images=mine["n"]))).assign(at=at)
           for at, mine in rows.groupby("at", sort=False)]
    if not out:
        return pd.DataFrame(columns=[*key, "n", "value", "low", "high", "seeds", *costs])
    found = pd.concat(out, ignore_index=True)
    found["seeds"] = found["seed"].str.extract(r"mean of (\d+)", expand=False).fillna("1").astype(int)
    return found.merge(rows.groupby(key)[costs].mean().reset_index(), on=key) if costs else found


def shared_attack(rows: pd.DataFrame, attack: str | None = None) -> tuple[str, float] | None:
    """(attack, eps) that most methods and sizes of `rows` have, of several the strongest at the largest eps; None
    without any. A given name leaves only eps open."""
    robust = rows[(rows["attack"] != "none") & ((rows["attack"] == attack) if attack else True)]
    counts = robust.drop_duplicates(["attack", "eps", "method", "part", "train_images", "width"]).value_counts(["attack", "eps"])
    return max(counts.keys(), key=lambda k: (counts[k], strength(k[0]), k[1]), default=None)


def pareto(costs: Sequence[float], values: Sequence[float]) -> list[int]:
    """Positions of the points that no other beats in value at the same or lower cost, from cheap to dear."""
    costs, values = np.asarray(costs, float), np.asarray(values, float)
    front: list[int] = []
    for i in np.lexsort((-values, costs)):
        if not front or values[i] > values[front[-1]]:
            front.append(int(i))
    return front


def _of(frame: pd.DataFrame, dataset: str, *parts: str) -> pd.DataFrame:
    """Rows of trained networks of these parts, in the maximum norm."""
    return frame[(frame["dataset"] == dataset) & frame["part"].isin(parts) & frame["at"].isin(("best", "last"))
                 & (frame["trained_threat"] == "linf") & frame["threat"].isin(("linf", "none"))]


def _measured(found: pd.DataFrame, key: tuple[str, float] | None) -> pd.DataFrame:
    return found[(found["attack"] == key[0]) & (found["eps"] == key[1])] if key else found.iloc[:0]


def _known(values: pd.Series, own: int, name: str) -> pd.Series:
    """With `own` in the place of 0, which stands for it."""
    if own <= 0 and (values == 0).any():
        raise ValueError(f"expected {name} above 0 for runs that name none, got {own}; pass the number of the data set or arch")
    return values.where(values > 0, own)


def _looks(methods: Sequence[str]) -> dict[str, dict]:
    strangers = [m for m in methods if m not in FINETUNED]
    return {m: FINETUNED.get(m) or {"color": GREY, "linestyle": ":", "marker": SPARE[strangers.index(m) % len(SPARE)]}
            for m in methods}


def _networks(ax: Axes, mine: pd.DataFrame, look: dict) -> None:
    """The networks of one method: best and last joined, each with its bar and, hollow, its cost with that of its start."""
    y, plain = 100 * mine["value"], {"color": look["color"], "zorder": 2}
    if len(mine) > 1:
        ax.plot(mine["given"], y, linestyle="--", linewidth=0.8, label="_joined", **plain)
    for row in mine.itertuples():
        if row.whole > row.given:  # not where it is unknown
            ax.plot([row.given, row.whole], [100 * row.value] * 2, linewidth=0.5, label="_start", **plain)
            ax.plot(row.whole, 100 * row.value, linestyle="none", marker=look["marker"], markersize=5, markerfacecolor="white",
                    label="_whole", **plain)
        ax.errorbar(row.given, 100 * row.value, yerr=_error(row), elinewidth=0.8, ecolor=(look["color"], 0.6), zorder=3,
                    **look | {"linestyle": "none", "markersize": 5} | (BEST if row.at == "best" else {}))


def _error(found) -> np.ndarray:
    """Lengths of bars in points, below and above, shape (2, lines); an interval is cut at 0 and 1."""
    value, low, high = (np.atleast_1d(x).astype(float) for x in (found.value, found.low, found.high))
    return 100 * np.stack([value - np.maximum(low, 0), np.minimum(high, 1) - value])


def _header(key: tuple[str, float] | None) -> str:
    return labels.header(key[0], "linf", key[1]) if key else "robust"


def _basis(panel: pd.DataFrame) -> str:
    """A line for titles: images and seeds."""
    if panel.empty:
        return ""
    images, seeds = (" to ".join(f"{x:,}" for x in unique((panel[c].min(), panel[c].max()))) for c in ("n", "seeds"))
    return f"\n{images} test images, " + ("1 seed" if seeds == "1" else f"mean of {seeds} seeds")


def _factors(optim) -> tuple[np.ndarray, list[float]]:
    """Epochs, as real numbers, and the learning rate over its peak; steps are so narrow that jumps are upright."""
    return (np.arange(STEPS) * optim.epochs / STEPS,
            [factor(optim.schedule, k, STEPS, optim.milestones, optim.warmup) for k in range(STEPS)])


def _plain_decades(ax: Axes) -> None:
    """1, 2, 5, 10 … on a logarithmic axis, as plain numbers."""
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    ax.xaxis.set_minor_formatter(NullFormatter())


def _empty(ax: Axes, gone: Mapping[str, str] | None = None) -> None:
    """Say so where nothing could be drawn; `gone`: what is said of methods that diverged."""
    if not any(len(line.get_xdata()) for line in ax.lines):
        ax.text(0.5, 0.5, next(iter((gone or {}).values()), NOT_RUN), ha="center", transform=ax.transAxes)


def _legend(fig: Figure, handles: Sequence[Line2D], columns: int = 3) -> None:
    fig.legend(handles=handles, loc="outside upper center", ncols=columns, fontsize=8)
