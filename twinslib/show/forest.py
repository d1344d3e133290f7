"""The forest plot: paired differences with their intervals, a row for each comparison.

A data set has a look that no method has; filled markers differ from 0 by a test.
"""

import textwrap
from collections.abc import Iterable, Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.markers import CARETLEFT, CARETRIGHT
from matplotlib.ticker import MultipleLocator

from ..evidence import accuracy
from ..specs import labels
from ..specs.strength import strength
from ..store import store
from .figures import SMALL, WIDTH, style, tick

DATASETS = (  # by order; colours of Tol's "muted", none of them a method's
    {"color": "#332288", "marker": "o"}, {"color": "#44AA99", "marker": "s"}, {"color": "#882255", "marker": "^"},
    {"color": "#999933", "marker": "v"}, {"color": "#CC6677", "marker": "p"}, {"color": "#117733", "marker": "h"},
    {"color": "#AA4499", "marker": "<"}, {"color": "#88CCEE", "marker": ">"},
)
MEAN = {"color": "#000000", "marker": "D", "markersize": 4.6, "elinewidth": 1.9, "markerfacecolor": "#000000"}
BANDS = ("#F1F1F1", "#FFFFFF")  # behind every other comparison
LEVEL = 0.05  # of the tests that fill a marker
FENCE = 2.0  # a difference farther than this many quartile ranges outside the quartiles stretches no axis


def forest_plot(differences: pd.DataFrame, robust: tuple[str, str, float] | None = None) -> Figure:
    """Paired differences in points with their 95 % intervals: clean accuracy on the left, robust on the right.

    A row for each comparison, in the order of `differences`; in it one marker per data set, then their mean as a diamond.
    A marker is filled where the Holm-adjusted p is at most 0.05; means are not tested and always filled. Both panels
    have the same scale. Differences far from most others do not stretch it: they are an arrow head at the edge with the
    number beside it, and bars that leave the panel end in an arrow head. A row says on how many seeds it rests if that
    number differs within `differences`. Lines without a value are left out; a row without any is "not run" or what their column
    absent says.

    Args:
        differences: as `compare.differences` makes them, values in fractions; data set "mean" is the mean over data sets.
        robust: (attack, threat, eps) on the right; by default the strongest PGD at the largest
            eps that has values.
    Raises:
        ValueError: no lines, columns are missing, several lines for one marker, `robust` is not among the lines, or no
            PGD of a single threat model to choose it from.
    """
    lines = _checked(differences)
    robust = _measurement(lines, robust)
    absent = differences[differences["value"].isna()] if "absent" in differences else differences.iloc[:0]
    words = {(r.method, r.baseline): r.absent for r in absent.itertuples() if r.absent != store.NOT_RUN}
    panels = [_single(lines[lines["attack"] == "none"]), _single(lines[_is(lines, robust)])]
    drawn = pd.concat(panels)
    names = [d for d in dict.fromkeys(lines["dataset"]) if d != "mean"]
    looks = {name: DATASETS[i % len(DATASETS)] for i, name in enumerate(names)} | {"mean": MEAN}
    limits = _range(drawn)
    beyond = drawn[~drawn["value"].between(*limits)]
    comparisons = list(dict.fromkeys(zip(lines["method"], lines["baseline"], strict=True)))
    strips = _strips(comparisons, drawn, beyond, looks)
    height = strips[-1][1]
    with style():
        fig = Figure(figsize=(WIDTH, height / 72 + 1.2))
        axes = fig.subplots(1, 2, sharex=True, sharey=True)
        titles = "clean accuracy", f"{labels.attack_label(robust[0])} at {labels.eps_label(robust[2], robust[1])}"
        for ax, panel, title in zip(axes, panels, titles, strict=True):
            ax.set_title(title)
            ax.axvline(0, color="#555555", linewidth=0.8, zorder=1)
            for i, (pair, (top, bottom, places)) in enumerate(zip(comparisons, strips, strict=True)):
                ax.axhspan(top, bottom, color=BANDS[i % 2], linewidth=0, zorder=0)
                mine = _of_pair(panel, pair)
                for line in mine.itertuples():
                    _difference(ax, places[line.dataset], line, looks[line.dataset], limits, BANDS[i % 2])
                if mine.empty:
                    _say(ax, (top + bottom) / 2, words.get(pair, store.NOT_RUN), side=1 if sum(limits) > 0 else -1)
            ax.tick_params(axis="y", length=0)
            ax.grid(axis="y", visible=False)
            ax.spines["left"].set_visible(False)
        axes[0].set(xlim=limits, ylim=(height, 0))
        axes[0].xaxis.set_major_locator(MultipleLocator(tick(limits[1] - limits[0])))
        axes[0].set_yticks([(top + bottom) / 2 for top, bottom, _ in strips],
                           ["\n".join(_row_label(pair, drawn)) for pair in comparisons], fontsize=7.5)
        fig.supxlabel("difference in points with its 95 % interval (right of 0 the first method is higher)")
        handles = [Line2D([], [], color=looks[d]["color"], marker=looks[d]["marker"], linewidth=looks[d].get("elinewidth", 0.9),
                          label="mean of data sets" if d == "mean" else labels.dataset_label(d))
                   for d in looks if d in set(drawn["dataset"])]
        plain = {"linestyle": "none", "marker": "o", "color": "#555555"}
        handles += [Line2D([], [], label=f"filled: Holm-adjusted p ≤ {LEVEL}", **plain),
                    Line2D([], [], label="hollow: p above that, or none", markerfacecolor="white", **plain)]
        if (drawn["low"] < limits[0]).any() or (drawn["high"] > limits[1]).any():
            handles.append(Line2D([], [], label="beyond the axis", **plain | {"marker": CARETLEFT, "markersize": 5}))
        fig.legend(handles=handles, loc="outside upper center", ncols=2 if len(handles) == 4 else 3, fontsize=8, handlelength=2)
        fig.draw_without_rendering()
        missing = height / 72 - axes[0].get_window_extent().height / fig.dpi
        fig.set_figheight(fig.get_figheight() + missing)  # so that a unit of y is a point of the page
    return fig


def _checked(differences: pd.DataFrame) -> pd.DataFrame:
    """The lines with values in points and an index of their own."""
    needed = ["dataset", "method", "baseline", "threat", "eps", "attack", "seeds", "value", "low", "high", "p_holm"]
    absent = [c for c in needed if c not in differences.columns]
    if absent:
        raise ValueError(f"expected differences with the columns {', '.join(needed)}, got none called {', '.join(absent)}; "
                         "pass what compare.differences returns")
    if differences.empty:
        raise ValueError("expected at least one paired difference, got none; pass pairs of methods that the study has")
    lines = differences[needed].reset_index(drop=True)
    return lines.assign(**{c: 100 * lines[c].astype(float) for c in ("value", "low", "high")})


def _measurement(lines: pd.DataFrame, robust: tuple[str, str, float] | None) -> tuple[str, str, float]:
    """(attack, threat, eps) of the panel of robust accuracy."""
    if robust is not None:
        if not _is(lines, robust).any():
            known = dict.fromkeys(zip(lines["attack"], lines["threat"], lines["eps"], strict=True))
            raise ValueError(f"expected a measurement of the lines, got {robust}; choose from {', '.join(map(str, known))}")
        return robust
    found = lines[accuracy.is_pgd(lines)]
    found = found.dropna(subset="value") if found["value"].notna().any() else found
    if found["threat"].nunique() != 1:
        threats = ", ".join(found["threat"].unique()) or "no PGD at all"
        raise ValueError(f"expected PGD of one threat model, got {threats}; pass robust=(attack, threat, eps)")
    found = found[found["eps"] == found["eps"].max()]
    best = max((row for _, row in found.iterrows()), key=lambda row: strength(row["attack"]))
    return best["attack"], best["threat"], best["eps"]


def _is(lines: pd.DataFrame, robust: tuple[str, str, float]) -> pd.Series:
    attack, threat, eps = robust
    return (lines["attack"] == attack) & (lines["threat"] == threat) & ((lines["eps"] - eps).abs() < 1e-6)


def _single(panel: pd.DataFrame) -> pd.DataFrame:
    """The lines of a panel that have a value; each is the only one for its marker."""
    again = panel[panel.duplicated(["dataset", "method", "baseline"])]
    if len(again):
        raise ValueError("expected one line per data set, method, baseline and measurement, got several for "
                         f"{', '.join(again.iloc[0][['dataset', 'method', 'baseline']])}; choose the lines to draw")
    return panel.dropna(subset=["value", "low", "high"])


def _of_pair(lines: pd.DataFrame, pair: tuple[str, str]) -> pd.DataFrame:
    return lines[(lines["method"] == pair[0]) & (lines["baseline"] == pair[1])]


def _strips(comparisons: Sequence[tuple[str, str]], drawn: pd.DataFrame, beyond: pd.DataFrame,
            looks: Iterable[str]) -> list[tuple[float, float, dict[str, float]]]:
    """Of each comparison its top and bottom and the heights of its data sets, in points of the page from above.

    Data sets without a line take no room; those with a number take that of the number.
    """
    out, top = [], 0.0
    for pair in comparisons:
        present, numbered = (set(_of_pair(lines, pair)["dataset"]) for lines in (drawn, beyond))
        rooms = {d: 8.5 if d in numbered else 5 if d == "mean" else 4 for d in looks if d in present}
        height = max(sum(rooms.values()), 9 * len(_row_label(pair, drawn))) + 5
        y, places = top + (height - sum(rooms.values())) / 2, {}
        for name, room in rooms.items():
            places[name] = y + room / 2
            y += room
        out.append((top, top + height, places))
        top += height
    return out


def _row_label(pair: tuple[str, str], drawn: pd.DataFrame, width: int = 32) -> list[str]:
    """Lines of a comparison's label, broken before the minus if it is long; with the number of seeds if that differs."""
    seeds, every = _of_pair(drawn, pair)["seeds"], drawn["seeds"]
    counts = dict.fromkeys(f"{count:.0f}" for count in (seeds.min(), seeds.max()))
    unit = "seed" if seeds.max() == 1 else "seeds"
    tail = f" ({' to '.join(counts)} {unit})".replace(" ", "\u00a0") if len(seeds) and every.nunique() > 1 else ""
    parts = [labels.method_label(pair[0]), f"- {labels.method_label(pair[1])}{tail.replace(chr(160), ' ', 1)}"]
    parts = [" ".join(parts)] if len(" ".join(parts)) <= width else parts
    wrapped = [line for part in parts for line in textwrap.wrap(part, width, break_on_hyphens=False)]
    return [line.replace("\u00a0", " ") for line in wrapped]


def _range(drawn: pd.DataFrame) -> tuple[float, float]:
    """Limits in points that hold 0 and all interval ends but those far from most (Tukey's fences)."""
    ends = pd.Series(drawn[["value", "low", "high"]].to_numpy().ravel())
    first, third = ends.quantile([0.25, 0.75]) if len(ends) else (0.0, 0.0)
    reach = FENCE * max(third - first, 1.0)
    ends = [*ends[ends.between(first - reach, third + reach)], 0.0]
    margin = 0.04 * max(max(ends) - min(ends), 2.0)
    return min(ends) - margin, max(ends) + margin


def _difference(ax: Axes, y: float, line: tuple, look: dict, limits: tuple[float, float], band: str) -> None:
    """One marker with its interval; arrow heads where it leaves the limits, with the number if the marker does."""
    face = look["color"] if line.p_holm <= LEVEL else "white"
    style = {"markersize": 3.2, "elinewidth": 0.9, "markerfacecolor": face, "markeredgewidth": 0.8, "linestyle": "none"} | look
    ax.errorbar(line.value, y, xerr=[[line.value - line.low], [line.high - line.value]], zorder=3,
                label=f"_{line.dataset}", **style)
    for edge, head, sign in ((limits[0], CARETLEFT, -1), (limits[1], CARETRIGHT, 1)):
        if max(sign * (line.low - edge), sign * (line.high - edge)) > 0:
            ax.plot(edge, y, marker=head, color=look["color"], markersize=4.5, markeredgewidth=0, zorder=2.9)
        if sign * (line.value - edge) > 0:
            ax.annotate(f"{line.value:+.1f}".replace("-", "−"), (edge, y), (-6 * sign, 0), textcoords="offset points",
                        ha="left" if sign < 0 else "right", va="center", fontsize=SMALL, in_layout=False, annotation_clip=False,
                        zorder=3.5, weight="bold" if line.dataset == "mean" else "normal",
                        bbox={"facecolor": band, "edgecolor": "none", "pad": 0.4})


def _say(ax: Axes, y: float, word: str, side: int) -> None:
    """Write why there is nothing beside the line at 0, to its right (1) or left (-1)."""
    ax.annotate(word, (0, y), (4 * side, 0), textcoords="offset points", ha="left" if side > 0 else "right",
                va="center", fontsize=SMALL, color="#555555")
