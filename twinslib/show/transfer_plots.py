"""Figures of notebook 01 from tidy rows (`rows.rows`, `pairs.differences`); percent on every axis, 95 % intervals as bars.

Filled markers are PGD, hollow ones AutoAttack or a part of it; in the forest what is filled differs from 0 by a test.
"""

from collections.abc import Collection, Iterable, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.markers import CARETLEFT
from matplotlib.ticker import MaxNLocator

from ..claims.effects import pair_label
from ..evidence import accuracy
from ..evidence.pairs import MEANS, PAIRS
from ..specs.labels import DIVERGED, MEAN_OF_ALL, NOT_RUN, attack_label, dataset_label, eps_label, header, method_label, unique
from ..specs.strength import strength
from .figures import DOT, HOLLOW, SINGLE_SEEDS, SMALL, figure, looks, nothing, stands_on, styled
from .forest import fences, forest, row_label

DATASETS = (  # by order; colours of Tol's "muted", none of them a method's
    {"color": "#332288", "marker": "o"}, {"color": "#44AA99", "marker": "s"}, {"color": "#882255", "marker": "^"},
    {"color": "#999933", "marker": "v"}, {"color": "#CC6677", "marker": "p"}, {"color": "#117733", "marker": "h"},
    {"color": "#AA4499", "marker": "<"}, {"color": "#88CCEE", "marker": ">"},
)
MEAN = {"color": "#000000", "marker": "D", "markersize": 4.6, "elinewidth": 1.9}
SMALLER = {"markersize": 3.2, "elinewidth": 0.9, "markeredgewidth": 0.8}
OTHER = {"color": "#8A8A8A", "linestyle": "none", "marker": "o", "markersize": 2.6}  # methods that only give the context
LEVEL = 0.05  # of the tests that fill a marker


def robust_curves(rows: pd.DataFrame, near: Collection[str] = ()) -> Figure:
    """Accuracy against the radius of the attack, a panel per data set, a line per method, clean at radius 0.

    Lines are the strongest PGD at each radius; AutoAttack (or the part of it that saw the most images) stands hollow to the right
    of its radius. Radii stand at equal distances. With several seeds lines are means and each seed is a dot.

    Args:
        rows: as `rows.rows` makes them, of one threat model. near: data sets that verdicts leave out.
    Raises:
        ValueError: no rows or several threat models.
    """
    _check(rows)
    every, shown, datasets = accuracy.estimates(rows), looks(rows["method"]), unique(rows["dataset"])
    chosen, single = accuracy.one_line(every), every[~every["seed"].str.startswith("mean")]
    parts = accuracy.kinds(chosen) == "autoattack"
    lines, hollow = strongest(chosen[~parts]), strongest(chosen[parts], ["n"])
    seeds = single[single["attack"].isin(lines["attack"]) & single.duplicated(["dataset", "method", "eps", "attack"], keep=False)]
    marks = pd.concat([lines.assign(kind=""), hollow.assign(kind="points hollow"),
                       seeds.assign(kind="seeds", low=float("nan"), high=float("nan"))])
    place = {eps: i for i, eps in enumerate(sorted(every["eps"].unique()))}
    step = 0.5 / len(shown)  # side by side, so that bars do not hide each other
    beside = {m: (i - (len(shown) - 1) / 2) * step for i, m in enumerate(shown)}
    marks["x"], marks["name"] = marks["eps"].map(place) + marks["method"].map(beside), marks["method"].map(method_label)
    marks.loc[marks["kind"] == "points hollow", "x"] += (len(shown) + 1) * step
    pgd, names = (unique(map(attack_label, attacks)) for attacks in (lines.loc[lines["eps"] > 0, "attack"], hollow["attack"]))
    entries = [(method_label(m), look) for m, look in shown.items()] + [(f"{' or '.join(names)} (hollow)", HOLLOW)] * bool(names)
    entries += [SINGLE_SEEDS] * bool(len(seeds))
    fig = figure(marks, shown, columns=_titles(datasets, near), column="dataset", line="method", y="value", scale=100, wrap=3,
                 sharey=False, ylabel="accuracy (%)",
                 xlabel="attack radius eps" + (f" ({' or '.join(pgd)})" if pgd else ""), entries=entries,
                 note=f"{stands_on(chosen['n'], rows.dropna(subset='value'))}; bars: 95 % intervals")
    for ax in fig.axes:
        ax.set_xticks(list(place.values()), ["0" if eps == 0 else eps_label(eps, rows["threat"].iloc[0]) for eps in place])
        ax.set_ylim(0, min(ax.get_ylim()[1], 102))
        ax.grid(axis="x", visible=False)
    return fig


@styled
def clean_robust(rows: pd.DataFrame, near: Collection[str] = ()) -> Figure:
    """Robust against clean accuracy, a panel per data set; an arrow leads from each baseline to its variant (`pairs.PAIRS`).

    Robust is the strongest PGD at the largest radius of `rows`. Other methods are small grey dots without bars. All panels span
    the same number of points, so that lengths can be compared between them, and say how many dots lie outside. The legend says
    which method diverged, the title of a panel that its data set is `near` chance, so that verdicts leave it out.
    """
    _check(rows)
    found, lost = accuracy.one_line(accuracy.estimates(rows)), accuracy.lost(rows, ["dataset", "method"])
    gone = {method for _, method in lost} - set(rows.dropna(subset="value")["method"])
    pgd = found[accuracy.kinds(found) == "pgd"]
    robust = strongest(pgd[pgd["eps"] == pgd["eps"].max()])
    both = found[found["attack"] == "none"].merge(robust, on=["dataset", "method"], suffixes=("_clean", "_robust"))
    both = both.dropna(subset=["value_clean", "value_robust"])
    if both.empty:
        return nothing(DIVERGED if gone else NOT_RUN)
    shown = looks(m for m in unique(rows["method"]) if m in {name for pair in PAIRS for name in pair})
    names = {"value_clean": "x", "low_clean": "xlow", "high_clean": "xhigh", "value_robust": "y", "low_robust": "low",
             "high_robust": "high", "dataset": "column"}
    marks = both.rename(columns=names).assign(kind="points", line=both["method"].where(both["method"].isin(list(shown)), "other"))
    marks[["x", "xlow", "xhigh", "y", "low", "high"]] *= 100
    quiet = marks["line"] == "other"
    boxes = {d: (near[["xlow", "low"]].min().to_numpy(), near[["xhigh", "high"]].max().to_numpy())
             for d, near in marks[~quiet | quiet.all()].groupby("column")}
    span = 1.2 * max(1.0, *((high - low).max() for low, high in boxes.values()))
    marks.loc[quiet, ["xlow", "xhigh", "low", "high"]] = float("nan")
    entries = [(method_label(m) + (f" ({DIVERGED})" if m in gone else ""), look | {"linestyle": "none"})
               for m, look in shown.items()] + [("others, compared below", OTHER)] * bool(quiet.any())
    fig = figure(marks, shown | {"other": OTHER}, columns=_titles(rows["dataset"], near), wrap=3, height=2.25, sharex=False,
                 sharey=False,
                 words={("", d): DIVERGED for d, _ in lost if d not in set(both["dataset"])}, xlabel="clean accuracy (%)",
                 ylabel=f"{header(*robust.iloc[0][['attack', 'threat', 'eps']])} (%)", entries=entries, per_line=5,
                 note=stands_on(both["n_clean"], rows.dropna(subset="value")))
    for ax, d in zip(fig.axes, unique(rows["dataset"]), strict=True):
        here = marks[marks["column"] == d].set_index("method")
        ax.set_box_aspect(1)
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_locator(MaxNLocator(5, integer=True))
        if d in boxes:
            low, high = boxes[d]
            start = np.maximum((low + high - span) / 2, 0)
            ax.set(xlim=(start[0], start[0] + span), ylim=(start[1], start[1] + span))
        outside = ~(here["x"].between(*ax.get_xlim()) & here["y"].between(*ax.get_ylim()))
        if outside.any():
            ax.text(0.97, 0.03, f"{outside.sum()} further out", transform=ax.transAxes, ha="right", fontsize=SMALL,
                    color="#555555")
        for end, start in ((a, b) for a, b in PAIRS if a in here.index and b in here.index):
            ax.annotate("", here.loc[end, ["x", "y"]], here.loc[start, ["x", "y"]], zorder=1.9, arrowprops={
                "arrowstyle": "-|>", "color": shown[end]["color"], "linewidth": 1.3, "shrinkA": 0, "shrinkB": 3})
    return fig


def forest_plot(differences: pd.DataFrame) -> Figure:
    """Paired differences in points with their 95 % intervals (`pairs.differences`): clean accuracy on the left, the strongest PGD
    at the largest radius on the right; a row for each comparison, in it a marker per data set, then their mean as a diamond; the
    mean that has data sets near chance in it is in the table alone.

    A marker is filled where the Holm-adjusted p is at most 0.05; means are not tested and always filled.
    """
    differences = differences[differences["dataset"] != MEAN_OF_ALL]
    attack, threat, eps = strongest_pgd(differences)
    robust = (differences["attack"] == attack) & (differences["threat"] == threat) & (differences["eps"] == eps)
    filled = (differences["p_holm"] <= LEVEL) | differences["dataset"].isin(MEANS)
    pairs = zip(differences["method"], differences["baseline"], strict=True)
    marks = differences.assign(x=100 * differences["value"], low=100 * differences["low"], high=100 * differences["high"],
                               row=[pair_label(pair) for pair in pairs], column=robust.map({True: "robust", False: "clean"}),
                               kind=filled.map({True: "points", False: "points hollow"}), line=differences["dataset"],
                               lane=differences["dataset"])[robust | (differences["attack"] == "none")]
    drawn, names = marks.dropna(subset="x"), unique(marks["row"])
    shown = {d: DATASETS[i % len(DATASETS)] | SMALLER for i, d in enumerate(d for d in unique(marks["line"]) if d != MEANS[0])}
    shown[MEANS[0]] = MEAN
    rows = {name: row_label(name, drawn.loc[drawn["row"] == name, "seeds"], drawn["seeds"]) for name in names}
    marks, limits = marks.sort_values("lane", key=lambda lanes: lanes.map([*shown].index), kind="stable"), fences(drawn)
    near = set(drawn.loc[drawn["near"].astype(bool), "dataset"])
    there = set(drawn["dataset"])
    entries = [(dataset_label(d) + " (near chance)" * (d in near), look) for d, look in shown.items() if d in there]
    entries += [(f"filled: Holm p ≤ {LEVEL}, or a mean", DOT), ("hollow: p above, or none", HOLLOW)]
    if (drawn["low"] < limits[0]).any() or (drawn["high"] > limits[1]).any():
        entries.append(("beyond the axis", DOT | {"marker": CARETLEFT, "markersize": 5}))
    return forest(marks, rows, shown, {"clean": "clean accuracy", "robust": header(attack, threat, eps)}, entries=entries,
                  limits=dict.fromkeys(("clean", "robust"), limits),
                  xlabel="difference in points with its 95 % interval (right of 0 the first method is higher)",
                  note=stands_on(drawn.get("n", ()), drawn["seeds"]))


def _titles(datasets: Iterable[str], near: Collection[str]) -> dict[str, str]:
    return {d: dataset_label(d) + "\nnear chance, not judged" * (d in near) for d in unique(datasets)}


def strongest(found: pd.DataFrame, first: Sequence[str] = ()) -> pd.DataFrame:
    """Of several attacks at one radius the strongest (of those with the largest value in `first`); by radius."""
    found = found.assign(strength=found["attack"].map(strength)).sort_values([*first, "strength"])
    return found.drop_duplicates(["dataset", "method", "seed", "eps"], keep="last").sort_values("eps", kind="stable")


def strongest_pgd(differences: pd.DataFrame) -> tuple[str, str, float]:
    """(attack, threat, eps) of the strongest PGD at the largest radius, of those with a value if there are any."""
    found = differences[accuracy.kinds(differences) == "pgd"]
    found = found.dropna(subset="value") if found["value"].notna().any() else found
    if found["threat"].nunique() != 1:
        raise ValueError(f"expected PGD of one threat model, got {', '.join(found['threat'].unique()) or 'no PGD at all'}")
    found = found[found["eps"] == found["eps"].max()]
    return max(zip(found["attack"], found["threat"], found["eps"], strict=True), key=lambda key: strength(key[0]))


def _check(rows: pd.DataFrame) -> None:
    if rows.empty:
        raise ValueError("expected at least one finished measurement, got none; run the sweep first")
    if rows["threat"].nunique() > 1:
        raise ValueError(f"expected one threat model in a figure, got {', '.join(rows['threat'].unique())}; pass one")
