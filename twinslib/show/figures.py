"""Figures as functions of tidy rows; nothing is computed anew. Percent on every axis, 95 % intervals as bars.

A method has one colour, line style and marker in all figures, so that they read in grey and to the colour-blind.
Filled markers are PGD, hollow ones AutoAttack or a part of it. Bars are the intervals that `report.caption` describes.
"""

import contextlib
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MultipleLocator

from ..base.files import atomic_write
from ..evidence import accuracy
from ..evidence import pairs as evidence_pairs
from ..specs import labels
from ..specs.strength import strength
from ..store import store

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
    {"color": "#8C510A", "linestyle": (0, (4, 1, 1, 1)), "marker": "h"},
)
QUIET = {"color": "#767676", "linestyle": "none", "marker": "o", "markersize": 2.2}  # methods that only give the context
SMALL = 7  # points; no text is smaller
RADII = (5.5, 8, 11, 14, 18, 22, 27, 32, 38, 46)  # points from a dot to its number, tried in this order
TURNS = [math.pi * i / 8 for i in (0, 8, 4, 12, 2, 6, 10, 14, 1, 3, 5, 7, 9, 11, 13, 15)]  # right, left, above, below first
TICKS = (1, 2, 5, 10, 20, 50)  # points between ticks
SAID = {"ha": "center", "va": "center", "color": "#555555", "bbox": {"facecolor": "white", "edgecolor": "none", "pad": 2}}
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


def said(ax: Axes, text: str) -> None:
    """Write in the middle of a panel why nothing is drawn in it."""
    ax.text(0.5, 0.5, text, transform=ax.transAxes, **SAID)


def noted(ax: Axes, names: Iterable[str], word: str = store.DIVERGED) -> None:
    """Name in a corner of a panel what is missing in it as it diverged, a line each; nothing where there is none."""
    names = labels.unique(names)
    if names:
        ax.text(0.98, 0.98, "\n".join([f"{word}:", *names]), transform=ax.transAxes, fontsize=SMALL, zorder=5,
                **SAID | {"ha": "right", "va": "top"})


def robust_curve(rows: pd.DataFrame, ax: Axes, methods: Sequence[str] | None = None) -> Axes:
    """Accuracy against the radius of the attack on one data set: one line per method, clean at radius 0.

    Lines are the strongest PGD of `rows` at each radius; AutoAttack (or the part of it that saw the most images) stands
    hollow to the right of its radius. Radii stand at equal distances. With several seeds lines are means and each seed
    is a dot. Methods that diverged are named in a corner.

    Args:
        rows: as `table.rows` makes them, of one data set and one threat model.
        methods: which to draw, in the order of the legend; by default all, in the order of `rows`.
    Raises:
        ValueError: no rows, several data sets or several threat models.
    """
    _check(rows)
    if rows["dataset"].nunique() > 1:
        raise ValueError(f"expected one data set, got {', '.join(rows['dataset'].unique())}; use robust_curves")
    every, gone = accuracy.estimates(rows), accuracy.lost(rows)
    chosen = accuracy.one_line(every)
    methods = list(dict.fromkeys(rows["method"])) if methods is None else methods
    looks, threat = _looks(methods), rows["threat"].iloc[0]
    place = {eps: i for i, eps in enumerate(sorted(chosen["eps"].unique()))}
    step = 0.5 / len(methods)  # side by side, so that bars do not hide each other
    for i, method in enumerate(methods):
        shift = (i - (len(methods) - 1) / 2) * step
        mine = chosen[chosen["method"] == method]
        parts = accuracy.is_autoattack(mine)
        line, hollow = _strongest(mine[~parts]), _strongest(mine[parts], ["n"])
        _bars(ax, line["eps"].map(place) + shift, line, label=labels.method_label(method), **looks[method])
        _bars(ax, hollow["eps"].map(place) + shift + (len(methods) + 1) * step, hollow, markerfacecolor="white",
              **looks[method] | {"linestyle": "none"})
        seeds = every[(every["method"] == method) & every["attack"].isin(line["attack"])].dropna(subset="value")
        if len(seeds) > len(line):
            seeds = seeds[~seeds["seed"].str.startswith("mean")]
            ax.plot(seeds["eps"].map(place) + shift, 100 * seeds["value"], ".", markersize=2, color="black", zorder=3)
    ax.set_xticks(list(place.values()), ["0" if eps == 0 else labels.eps_label(eps, threat) for eps in place])
    noted(ax, [labels.method_label(m) for _, m in gone if m in methods])
    ax.set_ylim(0, min(ax.get_ylim()[1], 102))
    ax.set(xlabel=_radius_label(rows), ylabel="accuracy (%)", title=labels.dataset_label(rows["dataset"].iloc[0]))
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
        handles = [Line2D([], [], label=labels.method_label(m), **look) for m, look in _looks(methods).items()]
        parts = _strongest(accuracy.final(rows.dropna(subset="value"))[accuracy.is_autoattack], ["n"])
        if len(parts):
            names = " or ".join(dict.fromkeys(map(labels.attack_label, parts["attack"])))
            handles.append(Line2D([], [], linestyle="none", marker="o", color="#555555", markerfacecolor="white",
                                  label=f"{names} (hollow)"))
        _legend(fig, spare, handles)
    return fig


def clean_robust(rows: pd.DataFrame, datasets: Sequence[str] | None = None,
                 pairs: Sequence[tuple[str, str]] = evidence_pairs.PAIRS) -> Figure:
    """Robust against clean accuracy, a panel per data set; an arrow leads from each baseline to its TWINS variant.

    Robust is the strongest PGD at the largest radius of `rows`. All panels span the same number of points, so that
    lengths can be compared between data sets. Methods outside `pairs` are small grey dots without bars, numbered as the
    legend says. They widen the panels to twice the span of the others at most: what lies farther out is a triangle at
    the edge. The legends say which method diverged.

    Args:
        datasets: as for `robust_curves`.
        pairs: (method, baseline) names.
    """
    rows, datasets = _of(rows, datasets)
    found = accuracy.one_line(accuracy.estimates(rows))
    gone = {method for _, method in accuracy.lost(rows)} - set(rows.dropna(subset="value")["method"])
    robust = _strongest(found[accuracy.is_pgd(found) & (found["eps"] == found.loc[accuracy.is_pgd(found), "eps"].max())])
    clean = found[found["attack"] == "none"]
    both = clean.merge(robust, on=["dataset", "method"], suffixes=("_clean", "_robust"))
    both = both.dropna(subset=["value_clean", "value_robust"])
    if both.empty and gone:
        return nothing(store.DIVERGED)
    if both.empty:
        raise ValueError("expected clean and PGD accuracy of at least one run, got none; finish the sweep first")
    methods = list(dict.fromkeys(rows["method"]))
    paired = {name for pair in pairs for name in pair}
    looks = _looks([m for m in methods if m in paired])
    numbers = {m: str(i) for i, m in enumerate((m for m in methods if m not in paired), start=1)}
    limits, span = _windows(both, looks)
    with style():
        fig, axes, spare = _panels(len(datasets), height=2.4)
        outside = False
        for name, ax in zip(datasets, axes, strict=True):
            ax.set_title(labels.dataset_label(name))
            here = {row.method: row for row in both[both["dataset"] == name].itertuples()}
            if not here:
                said(ax, store.DIVERGED if any(d == name for d, _ in accuracy.lost(rows)) else store.NOT_RUN)
                continue
            at = {method: (100 * row.value_clean, 100 * row.value_robust) for method, row in here.items()}
            for method, look in looks.items():
                if method in here:
                    (x, y), row = at[method], here[method]
                    ax.errorbar(x, y, xerr=[[x - 100 * row.low_clean], [100 * row.high_clean - x]],
                                yerr=[[y - 100 * row.low_robust], [100 * row.high_robust - y]], elinewidth=0.8,
                                ecolor=(look["color"], 0.6), **look | {"linestyle": "none"})
            for method, baseline in pairs:
                if method in at and baseline in at:
                    _arrow(ax, at[baseline], at[method], looks[method]["color"], head=math.dist(at[baseline],
                                                                                               at[method]) > span / 10)
            for axis, (low, high) in zip("xy", limits[name], strict=True):
                ax.set(**{f"{axis}lim": (low, high)})
                getattr(ax, f"{axis}axis").set_major_locator(MultipleLocator(tick(span)))
            ax.set_box_aspect(1)
            outside |= any([_dot(ax, at[method]) for method in numbers if method in at])
        first = robust.iloc[0]
        radius = labels.eps_label(first.eps, first.threat)
        _labels(fig, "clean accuracy (%)", f"{labels.attack_label(first.attack)} accuracy at {radius} (%)")
        if looks:
            _legend(fig, spare, [Line2D([], [], label=_label(m, gone), **look | {"linestyle": "none"})
                                 for m, look in looks.items()], handlelength=1)
        if numbers:
            _key(fig, {_label(m, gone): k for m, k in numbers.items()}, outside)
            fig.draw_without_rendering()  # places the axes: only now distances between points are known
            for name, ax in zip(datasets, axes, strict=True):
                here = both[both["dataset"] == name]
                at = {row.method: (100 * row.value_clean, 100 * row.value_robust) for row in here.itertuples()}
                _number(ax, {k: at[m] for m, k in numbers.items() if m in at}, [at[m] for m in looks if m in at])
    return fig


def _label(method: str, gone: Iterable[str]) -> str:
    return labels.method_label(method) + (f" ({store.DIVERGED})" if method in gone else "")


def nothing(word: str) -> Figure:
    """A figure that only says why it is empty."""
    with style():
        fig = Figure(figsize=(WIDTH, 0.6))
        fig.text(0.5, 0.5, word, ha="center", va="center")
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
    attacks = _strongest(accuracy.final(rows)[accuracy.is_pgd])["attack"]
    names = " or ".join(dict.fromkeys(map(labels.attack_label, attacks)))
    return "attack radius eps" + (f" ({names})" if names else "")


def _strongest(found: pd.DataFrame, first: Sequence[str] = ()) -> pd.DataFrame:
    """Of several attacks at one radius the strongest (of those with the largest value in `first`); by radius."""
    found = found.assign(strength=found["attack"].map(strength)).sort_values([*first, "strength"])
    last = found.drop_duplicates(["dataset", "method", "seed", "eps"], keep="last")
    return last.sort_values("eps", kind="stable")


def _bars(ax: Axes, x: pd.Series, found: pd.DataFrame, **look) -> None:
    y = 100 * found["value"].astype(float)
    if len(y):
        ax.errorbar(x, y, yerr=[y - 100 * found["low"], 100 * found["high"] - y], elinewidth=0.8, **look)


def _arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float], color: str, head: bool) -> None:
    """Arrow from marker to marker; a plain line where they are too near for a head."""
    ax.annotate("", end, start, zorder=1.9, arrowprops={"arrowstyle": "-|>" if head else "-", "color": color,
                                                        "shrinkA": 0, "shrinkB": 3 if head else 0, "linewidth": 1.3})


def _windows(both: pd.DataFrame, main: Iterable[str]) -> tuple[dict[str, list[tuple[float, float]]], float]:
    """Limits of each data set's panel, clean then robust, in percent, and the span that they share.

    They hold the methods `main` with their intervals (all methods where none of these is), and those of the others that
    lie no farther outside than half the span of the former.
    """
    needed = {}
    for name, here in both.groupby("dataset", sort=False):
        loud = here[here["method"].isin(list(main))]
        loud = loud if len(loud) else here
        needed[name] = [(100 * loud[f"low_{k}"].min(), 100 * loud[f"high_{k}"].max()) for k in ("clean", "robust")]
    reach = max(high - low for ends in needed.values() for low, high in ends) / 2
    for name, here in both.groupby("dataset", sort=False):
        points = [100 * here["value_clean"], 100 * here["value_robust"]]
        near = [v.between(low - reach, high + reach) for v, (low, high) in zip(points, needed[name], strict=True)]
        points = [v[near[0] & near[1]] for v in points]
        needed[name] = [(min(low, *v), max(high, *v)) for v, (low, high) in zip(points, needed[name], strict=True)]
    span = min(100, 1.08 * max(high - low for ends in needed.values() for low, high in ends))
    starts = {name: [min(max((low + high - span) / 2, 0), 100 - span) for low, high in ends] for name, ends in needed.items()}
    return {name: [(start, start + span) for start in pair] for name, pair in starts.items()}, span


def _dot(ax: Axes, point: tuple[float, float]) -> bool:
    """A quiet marker; a triangle at the edge for a point outside, which is then True."""
    inside = _inside(ax, point)
    way = [int(p > q) - int(p < q) for p, q in zip(point, inside, strict=True)]
    angle = math.degrees(math.atan2(way[1], way[0])) - 90
    ax.plot(*inside, **QUIET | ({"marker": (3, 0, angle), "markersize": 4} if any(way) else {}), zorder=1.8, clip_on=False)
    return any(way)


def _inside(ax: Axes, point: tuple[float, float]) -> tuple[float, ...]:
    """The point itself, or the nearest one just within the panel."""
    bounds = zip(point, (ax.get_xlim(), ax.get_ylim()), strict=True)
    return tuple(p if low <= p <= high else min(max(p, low + (high - low) / 40), high - (high - low) / 40)
                 for p, (low, high) in bounds)


def _number(ax: Axes, points: dict[str, tuple[float, float]], others: Sequence[tuple[float, float]]) -> None:
    """Write each key of `points` as near to its point as it covers no other key or marker, if need be with a line to
    it; to the key of a point outside its percentages are added.

    Args:
        others: points of larger markers.
    """
    def place(point: tuple[float, float]) -> tuple[float, float]:
        return tuple(72 / ax.figure.dpi * ax.transData.transform(_inside(ax, point)))  # in points of the page

    dots = {key: place(point) for key, point in points.items()}
    taken = [(x, y, 2, 2) for x, y in dots.values()] + [(*place(point), 3.5, 3.5) for point in others]
    texts = []
    left, bottom, right, top = 72 / ax.figure.dpi * ax.get_window_extent().get_points().ravel()
    for key, (x, y) in dots.items():
        text = key if _inside(ax, points[key]) == points[key] else f"{key} ({points[key][0]:.0f}, {points[key][1]:.0f})"
        width, height = 2.1 * len(text) + 1, 3.2  # half of them
        best = math.inf
        for radius, turn in ((r, t) for r in RADII for t in TURNS):
            dx, dy = math.cos(turn) * (radius + width - 3), math.sin(turn) * radius
            u, v = x + dx, y + dy
            outside = not (left + width < u < right - width and bottom + height + 1.5 < v < top - height)
            covered = sum(abs(u - a) < width + c and abs(v - b) < height + d for a, b, c, d in taken + texts)
            crossed = sum(abs(x + t * dx - a) < c and abs(y + t * dy - b) < d  # by the line to it
                          for a, b, c, d in texts for t in (0.2, 0.4, 0.6, 0.8))
            unclear = radius == RADII[0] and any(math.dist((u, v), dot) < 1.4 * math.hypot(dx, dy)
                                                 for other, dot in dots.items() if other != key)
            faults = 9 * outside + 3 * covered + crossed + unclear
            if faults < best:
                best, away, lined = faults, (dx, dy), radius > RADII[0]
            if not faults:
                break
        texts.append((x + away[0], y + away[1], width, height))
        line = {"arrowstyle": "-", "color": QUIET["color"], "linewidth": 0.4, "shrinkA": 0, "shrinkB": 0}
        ax.annotate(text, _inside(ax, points[key]), away, textcoords="offset points", ha="center", va="center_baseline",
                    fontsize=SMALL, color="#333333", in_layout=False, annotation_clip=False,  # not even right on the edge
                    arrowprops=line if lined else None)


def tick(span: float) -> int:
    """Points between ticks, so that there are few."""
    return next(t for t in TICKS if span / t < 6)


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


def _key(fig: Figure, numbers: dict[str, str], outside: bool) -> None:
    """A second legend, of the quiet markers: below all, for which the figure grows."""
    handles = [Line2D([], [], label=f"{k} {name}", **QUIET) for name, k in numbers.items()]
    if outside:
        handles.append(Line2D([], [], label="outside (clean, robust)", **QUIET | {"marker": (3, 0, 90), "markersize": 4}))
    longest = max(len(handle.get_label()) for handle in handles)
    columns = min(len(handles), max(1, int(72 * fig.get_figwidth() / (0.56 * SMALL * longest + 18))))
    key = fig.legend(handles=handles, loc="lower center", ncols=columns, fontsize=SMALL, handlelength=1, labelspacing=0.3,
                     handletextpad=0.4, columnspacing=1, borderaxespad=0.2)
    height = key.get_window_extent().height / fig.dpi + 0.05
    fig.set_figheight(fig.get_figheight() + height)
    bottom = height / fig.get_figheight()
    if fig.get_supxlabel():  # the layout makes room for labels at the edge only
        label = fig.supxlabel(fig.get_supxlabel(), y=bottom + 0.02 / fig.get_figheight())
        bottom += (label.get_window_extent().height / fig.dpi + 0.05) / fig.get_figheight()
        fig.supylabel(fig.get_supylabel(), y=(1 + bottom) / 2)
    fig.get_layout_engine().set(rect=(0, bottom, 1, 1 - bottom))
