"""Figures as functions of tidy rows; nothing is computed anew. Percent on every axis, 95 % intervals on every point.

A method has one colour, line style and marker in all figures, so that they read in grey and to the colour-blind. Filled
markers are PGD, hollow ones AutoAttack or a part of it. Bars are the intervals that `report.caption` describes.
"""

import contextlib
import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MultipleLocator

from . import report
from .checkpoint import atomic_write

WIDTH = 7.0  # inches, the text width of a printed page
LOOKS = {  # palette of Okabe and Ito; a family of methods shares a hue, of which TWINS has the darker one
    "at": {"color": "#56B4E9", "linestyle": "--", "marker": "o"},
    "twins_at": {"color": "#0072B2", "linestyle": "-", "marker": "^"},
    "trades": {"color": "#E69F00", "linestyle": ":", "marker": "s"},
    "twins_trades": {"color": "#D55E00", "linestyle": "-.", "marker": "D"},
    "natural": {"color": "#555555", "linestyle": (0, (5, 1, 1, 1, 1, 1)), "marker": "v"},
}
OTHERS = (  # for methods without a look of their own, by order
    {"color": "#009E73", "linestyle": (0, (8, 2)), "marker": "P"},
    {"color": "#CC79A7", "linestyle": (0, (3, 1, 1, 1)), "marker": "X"},
    {"color": "#000000", "linestyle": (0, (1, 1)), "marker": "*"},
)
TICKS = (1, 2, 5, 10, 20)  # points between ticks
SETTINGS = {
    "font.size": 9, "axes.titlesize": 9, "axes.labelsize": 9, "figure.labelsize": 9, "legend.fontsize": 9,
    "xtick.labelsize": 8, "ytick.labelsize": 8, "legend.frameon": False, "axes.spines.top": False,
    "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True, "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6, "lines.linewidth": 1.3, "lines.markersize": 4, "legend.handlelength": 3, "figure.dpi": 144,
    "savefig.dpi": 200, "pdf.fonttype": 42, "figure.constrained_layout.use": True,
}


def style() -> contextlib.AbstractContextManager:
    """The project's look, whatever the user's settings, which come out as they went in."""
    return plt.style.context(["default", SETTINGS])


def save(fig: Figure, path: str | Path, about: str = "") -> tuple[Path, Path]:
    """Write path.png and path.pdf, each whole or not at all; the same figure gives the same bytes.

    Args:
        about: goes into the metadata of both files, such as the commit and the runs that the figure rests on.
    """
    written = []
    for suffix, metadata in ((".png", {"Description": about}), (".pdf", {"Subject": about, "CreationDate": None})):
        target = Path(path).with_name(Path(path).name + suffix)
        options = {"format": suffix[1:], "metadata": {k: v for k, v in metadata.items() if v != ""}}
        with style():
            atomic_write(target, lambda tmp, options=options: fig.savefig(tmp, **options))
        written.append(target)
    return tuple(written)


def robust_curve(rows: pd.DataFrame, ax: Axes, methods: Sequence[str] | None = None) -> Axes:
    """Accuracy against the radius of the attack on one data set: one line per method, clean at radius 0.

    Lines are the strongest PGD of `rows` at each radius; AutoAttack (or the part of it that saw the most images) stands
    hollow to the right of its radius. Radii stand at equal distances. With several seeds lines are means and each seed
    is a dot.

    Args:
        rows: as `table.rows` makes them, of one data set and one threat model.
        methods: which to draw, in the order of the legend; by default all, in the order of `rows`.
    Raises:
        ValueError: no rows, several data sets or several threat models.
    """
    _check(rows)
    if rows["dataset"].nunique() > 1:
        raise ValueError(f"expected one data set, got {', '.join(rows['dataset'].unique())}; use robust_curves")
    every = report.estimates(rows)
    chosen = report.one_line(every)
    methods = list(dict.fromkeys(rows["method"])) if methods is None else methods
    looks, threat = _looks(methods), rows["threat"].iloc[0]
    place = {eps: i for i, eps in enumerate(sorted(chosen["eps"].unique()))}
    step = 0.5 / len(methods)  # side by side, so that bars do not hide each other
    for i, method in enumerate(methods):
        shift = (i - (len(methods) - 1) / 2) * step
        mine = chosen[chosen["method"] == method]
        line, hollow = _strongest(mine[~report.is_autoattack(mine)]), _widest(mine[report.is_autoattack(mine)])
        _bars(ax, line["eps"].map(place) + shift, line, label=report.method_label(method), **looks[method])
        _bars(ax, hollow["eps"].map(place) + shift + (len(methods) + 1) * step, hollow, markerfacecolor="white",
              **looks[method] | {"linestyle": "none"})
        seeds = every[(every["method"] == method) & every["attack"].isin(line["attack"])]
        if len(seeds) > len(line):
            seeds = seeds[~seeds["seed"].str.startswith("mean")]
            ax.plot(seeds["eps"].map(place) + shift, 100 * seeds["value"], ".", markersize=2, color="black", zorder=3)
    ax.set_xticks(list(place.values()), ["0" if eps == 0 else report.eps_label(eps, threat) for eps in place])
    ax.set_ylim(0, min(ax.get_ylim()[1], 102))
    ax.set(xlabel=_radius_label(rows), ylabel="accuracy (%)", title=report.dataset_label(rows["dataset"].iloc[0]))
    ax.grid(axis="x", visible=False)
    return ax


def robust_curves(rows: pd.DataFrame, datasets: Sequence[str] | None = None) -> Figure:
    """`robust_curve` for each data set, with one legend.

    Args:
        datasets: which to draw, in which order; by default all, in the order of `rows`.
    """
    rows, datasets = _of(rows, datasets)
    methods = list(dict.fromkeys(rows["method"]))
    with style():
        fig, axes, spare = _panels(len(datasets))
        for name, ax in zip(datasets, axes, strict=True):
            robust_curve(rows[rows["dataset"] == name], ax, methods)
            ax.set(xlabel="", ylabel="")
        _labels(fig, _radius_label(rows), "accuracy (%)")
        handles = [Line2D([], [], label=report.method_label(m), **look) for m, look in _looks(methods).items()]
        parts = _widest(report.final(rows)[report.is_autoattack])
        if len(parts):
            names = " or ".join(dict.fromkeys(map(report.attack_label, parts["attack"])))
            handles.append(Line2D([], [], linestyle="none", marker="o", color="#555555", markerfacecolor="white",
                                  label=f"{names} (hollow)"))
        _legend(fig, spare, handles)
    return fig


def clean_robust(rows: pd.DataFrame, datasets: Sequence[str] | None = None,
                 pairs: Sequence[tuple[str, str]] = report.PAIRS) -> Figure:
    """Robust against clean accuracy, a panel per data set; an arrow leads from each baseline to its TWINS variant.

    Robust is the strongest PGD at the largest radius of `rows`. All panels span the same number of points, so that
    lengths can be compared between data sets.

    Args:
        datasets: as for `robust_curves`.
        pairs: (method, baseline) names.
    """
    rows, datasets = _of(rows, datasets)
    found = report.one_line(report.estimates(rows))
    robust = _strongest(found[report.is_pgd(found) & (found["eps"] == found.loc[report.is_pgd(found), "eps"].max())])
    clean = found[found["attack"] == "none"]
    both = clean.merge(robust, on=["dataset", "method"], suffixes=("_clean", "_robust"))
    if both.empty:
        raise ValueError("expected clean and PGD accuracy of at least one run, got none; finish the sweep first")
    methods = list(dict.fromkeys(rows["method"]))
    looks = _looks(methods)
    ends = both.groupby("dataset")[["low_clean", "high_clean", "low_robust", "high_robust"]]
    low, high = 100 * ends.min(), 100 * ends.max()
    span = min(100, 1.08 * max((high[f"high_{k}"] - low[f"low_{k}"]).max() for k in ("clean", "robust")))
    with style():
        fig, axes, spare = _panels(len(datasets), height=2.4)
        for name, ax in zip(datasets, axes, strict=True):
            ax.set_title(report.dataset_label(name))
            here = {row.method: row for row in both[both["dataset"] == name].itertuples()}
            if not here:
                ax.text(0.5, 0.5, report.NOT_RUN, ha="center", transform=ax.transAxes)
                continue
            at = {method: (100 * row.value_clean, 100 * row.value_robust) for method, row in here.items()}
            for method, row in here.items():
                x, y = at[method]
                ax.errorbar(x, y, xerr=[[x - 100 * row.low_clean], [100 * row.high_clean - x]],
                            yerr=[[y - 100 * row.low_robust], [100 * row.high_robust - y]], elinewidth=0.8,
                            ecolor=(looks[method]["color"], 0.6), **looks[method] | {"linestyle": "none"})
            for method, baseline in pairs:
                if method in at and baseline in at:
                    _arrow(ax, at[baseline], at[method], looks[method]["color"], head=math.dist(at[baseline],
                                                                                               at[method]) > span / 10)
            for axis, kind in (("x", "clean"), ("y", "robust")):
                middle = (low.loc[name, f"low_{kind}"] + high.loc[name, f"high_{kind}"]) / 2
                start = min(max(middle - span / 2, 0), 100 - span)
                ax.set(**{f"{axis}lim": (start, start + span)})
                getattr(ax, f"{axis}axis").set_major_locator(MultipleLocator(next(t for t in TICKS if span / t < 6)))
            ax.set_box_aspect(1)
        first = robust.iloc[0]
        radius = report.eps_label(first.eps, first.threat)
        _labels(fig, "clean accuracy (%)", f"{report.attack_label(first.attack)} accuracy at {radius} (%)")
        _legend(fig, spare, [Line2D([], [], label=report.method_label(m), **look | {"linestyle": "none"})
                             for m, look in looks.items()], handlelength=1)
    return fig


def _check(rows: pd.DataFrame) -> None:
    if rows.empty:
        raise ValueError("expected at least one finished measurement, got none; run the sweep first")
    if rows["threat"].nunique() > 1:
        raise ValueError(f"expected one threat model in a figure, got {', '.join(rows['threat'].unique())}; pass one")


def _of(rows: pd.DataFrame, datasets: Sequence[str] | None) -> tuple[pd.DataFrame, list[str]]:
    """Rows of the data sets to draw, and their names."""
    if datasets is not None:
        rows = rows[rows["dataset"].isin(datasets)]
    _check(rows)
    present = list(dict.fromkeys(rows["dataset"]))
    return rows, present if datasets is None else [d for d in datasets if d in present]


def _looks(methods: Sequence[str]) -> dict[str, dict]:
    strangers = [m for m in methods if m not in LOOKS]
    return {m: LOOKS[m] if m in LOOKS else OTHERS[strangers.index(m) % len(OTHERS)] for m in methods}


def _radius_label(rows: pd.DataFrame) -> str:
    attacks = _strongest(report.final(rows)[report.is_pgd])["attack"]
    names = " or ".join(dict.fromkeys(map(report.attack_label, attacks)))
    return "attack radius eps" + (f" ({names})" if names else "")


def _strongest(found: pd.DataFrame) -> pd.DataFrame:
    """Of several PGD attacks at one radius the one with the most steps times restarts; sorted by radius."""
    effort = found["attack"].str.extract(r"pgd(\d+)(?:x(\d+))?").fillna("1").astype(int).prod(axis=1)
    return found.assign(effort=effort).sort_values("effort").drop_duplicates(
        ["dataset", "method", "seed", "eps"], keep="last").sort_values("eps", kind="stable")


def _widest(found: pd.DataFrame) -> pd.DataFrame:
    """Of several parts of AutoAttack at one radius the one on the most images, then the longest."""
    return found.assign(length=found["attack"].str.len()).sort_values(["n", "length"]).drop_duplicates(
        ["dataset", "method", "seed", "eps"], keep="last").sort_values("eps", kind="stable")


def _bars(ax: Axes, x: pd.Series, found: pd.DataFrame, **look) -> None:
    y = 100 * found["value"]
    if len(y):
        ax.errorbar(x, y, yerr=[y - 100 * found["low"], 100 * found["high"] - y], elinewidth=0.8, **look)


def _arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float], color: str, head: bool) -> None:
    """Arrow from marker to marker; a plain line where they are too near for a head."""
    ax.annotate("", end, start, zorder=1.9, arrowprops={"arrowstyle": "-|>" if head else "-", "color": color,
                                                        "shrinkA": 0, "shrinkB": 3 if head else 0, "linewidth": 1.3})


def _panels(n: int, height: float = 2.1) -> tuple[Figure, list[Axes], list[Axes]]:
    """A figure with n panels, and the axes that are left over, switched off."""
    columns = {1: 1, 2: 2, 4: 2}.get(n, 3)
    lines = math.ceil(n / columns)
    height *= {1: 1.3, 2: 1.2, 3: 1}[columns]
    fig = Figure(figsize=(5.5 if n == 1 else WIDTH, height * lines + 0.5))  # not pyplot's: nothing is shown by itself
    axes = list(fig.subplots(lines, columns, squeeze=False).flat)
    for ax in axes[n:]:
        ax.set_axis_off()
    return fig, axes[:n], axes[n:]


def _labels(fig: Figure, x: str, y: str) -> None:
    """One label for all horizontal axes and one for all vertical ones."""
    if len(fig.axes) == 1:
        fig.axes[0].set(xlabel=x, ylabel=y)
    else:
        fig.supxlabel(x)
        fig.supylabel(y)


def _legend(fig: Figure, spare: list[Axes], handles: list[Line2D], **options: float) -> None:
    """In the first spare panel, else beside a single panel, else above all."""
    if spare:
        spare[0].legend(handles=handles, loc="center", **options)
    elif len(fig.axes) == 1:
        fig.legend(handles=handles, loc="outside right center", **options)
    else:
        fig.legend(handles=handles, loc="outside upper center", ncols=4 if len(handles) == 4 else 3, **options)
