"""All figures from made-up frames: whether they can be read, say what is missing, show their rows and come out the same twice."""

import itertools
import math

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.markers import CARETLEFT, CARETRIGHT

from tests.colours_seen import nearest
from tests.figures_read import assert_legible, drawn, intervals, words
from tests.show import test_aft_plots as aft
from tests.show import test_by_rate as by_rates
from tests.show import test_overfitting as overfit
from tests.show import test_rates as rates
from tests.show import test_smoothing as smooth
from twinslib.evidence import cells
from twinslib.evidence import rows as evidence_rows
from twinslib.show import (
    cell_tables,
    figures,
    forest,
    rate_plots,
    smoothing_plots,
    smoothing_tables,
    transfer_plots,
)
from twinslib.store.statistics import STATISTICS

METHODS = {"at": (0.60, 0.30), "trades": (0.55, 0.32), "twins_at": (0.64, 0.33), "twins_trades": (0.55, 0.33)}
DATASETS = ["cifar10", "cifar100", "caltech64", "cub64", "dogs64"]
COMPARISONS = [("twins_at", "at"), ("twins_trades", "trades"), ("mine", "at")]
STRANGERS = [f"stranger{i}" for i in range(18)]  # methods without a look of their own


def made_up(datasets=DATASETS[:1], seeds=(0,), methods=METHODS):
    """Rows as `rows.rows` makes them: clean, PGD-20 at three radii, two stages of AutoAttack on fewer images."""
    out = []
    for (d, dataset), name, seed in itertools.product(enumerate(datasets), methods, seeds):
        levels = np.linspace(*METHODS.get(name, (0.5, 0.2)), 4) - 0.05 * d + 0.01 * seed
        measured = [("none", 0, levels[0], 1000), *(("pgd20", k, v, 1000) for k, v in zip((2, 4, 8), levels[1:], strict=True)),
                    ("apgd-ce", 8, levels[3] - 0.01, 300), ("apgd-ce+apgd-t", 8, levels[3] - 0.02, 300)]
        out += [["transfer", "small", dataset, "tiny_resnet", "batch", name, seed, "robust_acc" if k else "clean_acc", "linf",
                 k / 255, round(v * n) / n, n, f"{dataset}-{name}-{seed}", attack, f"{dataset}-0000[:{n}]"]
                for attack, k, v, n in measured]
    return pd.DataFrame(out, columns=evidence_rows.COLUMNS)


def crowded():
    """22 methods on five data sets: one far to the lower left of the others, the rest near."""
    rows = made_up(DATASETS, methods=[*METHODS, *STRANGERS])
    rows = rows[rows["attack"].isin(["none", "pgd20"])]
    for i, name in enumerate(STRANGERS):
        shift = np.where(rows["attack"] == "none", 0.12 + 0.01 * (5 * i % 7), 0.12 + 0.013 * (i % 5))
        rows["value"] = (rows["value"] + np.where(rows["method"] == name, shift, 0.0)).round(3)
    return rows.assign(value=rows["value"].where(rows["method"] != STRANGERS[-1], 0.0))


def differences(comparisons=COMPARISONS, datasets=DATASETS):
    """Lines as `pairs.differences` makes them: clean and PGD-20 at two radii, by data set and for their mean; values and p grow
    along the data sets."""
    out, count = [], itertools.count()
    for (method, baseline), (attack, k) in itertools.product(comparisons, [("none", 0), ("pgd20", 4), ("pgd20", 8)]):
        for i, dataset in enumerate([*datasets, "mean"]):
            value, p = 0.01 * (i - 2) + 0.001 * (next(count) % 10), math.nan if dataset == "mean" else 0.02 * (i + 1)
            out.append([dataset, method, baseline, "linf", k / 255, attack, 1, value, value - 0.01, value + 0.015, p, False, ""])
    return pd.DataFrame(out, columns=["dataset", "method", "baseline", "threat", "eps", "attack", "seeds", "value", "low", "high",
                                      "p_holm", "near", "absent"])


def many_differences():
    """Twenty comparisons, some far, some not run, with long names."""
    lines = differences([*COMPARISONS, *((f"a long name of stranger {i}, with a switch", "at") for i in range(17))])
    lines.loc[lines["method"].str.contains("1[0-2],"), ["value", "low", "high"]] -= 0.3
    lines.loc[lines["method"].str.contains(" [3-5],"), ["value", "low", "high"]] = np.nan
    return lines


def mismatch(made):
    lines = [["r", "toy_target", f"mixed/{f}/batch", 0, s, 9, layer, *[0.1 * (s + 0.1)] * 4]
             for f in ("-", "clean") for s in (0.0, 0.5) for layer in ("a", "b")]
    return pd.DataFrame(lines if made else [], columns=STATISTICS)


def smoothed(number, made):
    return smooth.grid(number) if made else cells.planned(smooth.jobs(number))


def courses(made, several=("cifar10", "dogs64")):
    return rates.study(datasets=several, seeds=(0, 1)) if made else []


def estimates(number, made):
    return smoothing_tables.estimates(smoothed(number, made))


FIGURES = {  # name -> figure from whatever is finished, or from nothing
    "robust_curves": lambda made: transfer_plots.robust_curves(made_up(DATASETS, (0, 1)) if made
                                                               else made_up().assign(value=np.nan, images="diverged")),
    "clean_robust": lambda made: transfer_plots.clean_robust(crowded() if made else made_up().assign(value=np.nan)),
    "forest": lambda made: transfer_plots.forest_plot(many_differences() if made else differences().assign(value=np.nan)),
    "by_rate": lambda made: rate_plots.accuracy_by_rate(by_rates.made(lambda row: not made)),
    "law": lambda made: rate_plots.scale_law(rates.LAW),
    "ratios": lambda made: rate_plots.layer_ratios(courses(made)),
    "layers": lambda made: rate_plots.layer_courses(courses(made), "cifar10", rates.METHODS),
    **{draw.__name__: lambda made, draw=draw: draw(courses(made), rates.METHODS)
       for draw in (rate_plots.wings, rate_plots.drift, rate_plots.escape, rate_plots.times)},
    **{draw.__name__: lambda made, draw=draw: draw(overfit.study(seeds=(0, 1, 2), done=overfit.ALL if made else []))
       for draw in overfit.FIGURES},
    "transfer_curves": lambda made: smoothing_plots.transfer_curves(estimates("04", made), "toy_target", 0.5),
    "losses": lambda made: smoothing_plots.loss_plot(cell_tables.losses(smoothed("04", made), "toy_target", smooth.LEVELS)),
    "mismatch": lambda made: smoothing_plots.mismatch_plot(mismatch(made)),
    "certified": lambda made: smoothing_plots.certified_curves(estimates("05", made), "toy_target"),
    "confidence": lambda made: smoothing_plots.confidence_plot(smoothed("05", made), "toy_target", smooth.LEVELS),
    "strength": lambda made: smoothing_plots.strength_plot(cell_tables.strengths(estimates("05", made), smooth.jobs("05"))),
    "crossed": lambda made: smoothing_plots.crossed_curves(smoothed("05", made), "toy_target"),
    **{f"aft_{name}": draw for name, draw in aft.FIGURES.items()},
}


@pytest.fixture(autouse=True)
def headless():
    """No window is opened, no figure stays."""
    plt.switch_backend("Agg")
    yield
    plt.close("all")


@pytest.mark.parametrize("name", FIGURES)
def test_legible(name):
    """Whole and empty, at print width: labels are there, no text is below 7 points, none touches another or leaves the page. What
    a panel tells apart by colour looks different to the colour-blind too."""
    whole, empty = FIGURES[name](True), FIGURES[name](False)
    for fig in (whole, empty):
        assert_legible(fig)
    assert any(ax.get_xlabel() or ax.get_title() for ax in whole.axes) or whole.get_supxlabel()
    for ax in whole.axes:
        colours = {to_hex(c.lines[0].get_color()) for c in ax.containers}
        assert len(colours) < 2 or nearest(colours)[0] > 12, nearest(colours)
    if name not in ("law", "aft_schedules"):  # which need no run
        assert any("not run" in word or "diverged" in word for word in words(empty))


def test_same_bytes(tmp_path):
    """PNG and PDF are byte-identical for equal frames, whatever the user's settings, which come out as they went in; no temporary
    file stays."""
    before = dict(plt.rcParams)
    first = figures.save(FIGURES["clean_robust"](True), tmp_path / "one")
    assert dict(plt.rcParams) == before
    with plt.rc_context({"font.size": 20, "axes.facecolor": "red", "savefig.dpi": 30}):
        second = figures.save(FIGURES["clean_robust"](True), tmp_path / "two.x")
    assert sorted(p.name for p in tmp_path.glob("*")) == ["one.pdf", "one.png", "two.x.pdf", "two.x.png"]
    for a, b in zip(first, second, strict=True):
        assert a.read_bytes() == b.read_bytes()


@pytest.mark.parametrize("methods", [[*METHODS, "natural", "mine", "yours"], rates.METHODS, overfit.METHODS,
                                     [*overfit.SCHEDULES, "at"],
                                     [*overfit.PLATEAUS], [*aft.MAIN]])
def test_looks_differ(methods):
    """Methods of one figure, strangers among them, differ in colour and marker; data sets from each other and from methods."""
    looks = figures.looks(methods).values()
    assert len({to_hex(look["color"]) for look in looks}) == len({look["marker"] for look in looks}) == len(methods)
    colours = {look["color"] for look in transfer_plots.DATASETS}
    assert len(colours) == len(transfer_plots.DATASETS) and not colours & {look["color"] for look in figures.LOOKS.values()}


# -- general pieces -----------------------------------------------------------------------------------------------------
def test_marks_are_the_rows():
    """Lines, intervals, flags and words of a small frame; what is missing and what diverged is said in its panel."""
    marks = pd.DataFrame({"column": ["a", "a", "a", "b"], "who": ["at", "at", "mine", "at"], "x": [1, 2, 1, 1],
                          "value": [0.1, 0.2, 0.3, 0.4], "low": [0.05, 0.1, np.nan, 0.3], "high": [0.2, 0.4, np.nan, 0.5],
                          "kind": ["", "", "points hollow", "band"], "text": ["", "!", "", ""], "name": "who"})
    gone = pd.DataFrame({"column": ["a", "d"], "who": "mine", "absent": "diverged", "name": ["who", "mine"]})
    marks = pd.concat([marks, gone])
    fig = figures.figure(marks, figures.looks(["at", "mine"]), columns={"a": "first", "b": "second", "c": "third", "d": "fourth"},
                         y="value", line="who", scale=100, wrap=2)
    assert [ax.get_title() for ax in fig.axes] == ["first", "second", "third", "fourth"]
    assert drawn(fig.axes[0]) == [[(1, 10), (2, 20)], [(1, 30)]] and intervals(fig.axes[0]) == [(5, 20), (10, 40)]
    assert fig.axes[0].containers[1].lines[0].get_markerfacecolor() == "white"
    assert intervals(fig.axes[1]) == [] and len(fig.axes[1].collections) == 1  # a band instead
    assert [[t.get_text() for t in ax.texts] for ax in fig.axes] == [["!"], [], ["not run"], ["diverged:\nmine", "diverged"]]


def test_forest_rows():
    """Rows stand in order with what is missing in words; what lies beyond the axis is an arrow head, with a number if finite."""
    marks = pd.DataFrame({"row": ["a", "a", "b", "c"], "column": "k", "line": "at", "x": [1.0, 2.0, -50.0, np.inf],
                          "low": [0.0, 1.0, -60.0, np.nan], "high": [2.0, 9.0, -40.0, np.nan], "lane": ["1", "2", "", ""]})
    gone = pd.DataFrame([["d", "k", "diverged"]], columns=["row", "column", "absent"])
    labels = {k: f"row {k}" for k in "abcde"}
    fig = forest.forest(pd.concat([marks, gone]), labels, figures.looks(["at"]), {"k": "title"}, limits={"k": (-5.0, 5.0)})
    ax, = fig.axes
    assert [t.get_text() for t in ax.get_yticklabels()] == list(labels.values()) and ax.get_ylim()[0] > ax.get_ylim()[1]
    assert [x for line in drawn(ax) for x, _ in line][:3] == [1, 2, -50]
    assert intervals(ax) == [(0, 2), (1, 9), (-60, -40)]
    assert [t.get_text() for t in ax.texts if t.get_text()] == ["diverged", "not run", "−50.0"]
    heads = [(line.get_marker(), line.get_xdata()[0]) for line in ax.lines if line.get_marker() in (CARETLEFT, CARETRIGHT)]
    assert heads == [(CARETRIGHT, 5.0), (CARETLEFT, -5.0), (CARETRIGHT, 5.0)]


# -- notebook 01 --------------------------------------------------------------------------------------------------------
def test_robust_curves():
    """Filled the strongest PGD at each radius, hollow the last stage of AutoAttack, dots the seeds; a lost method is named."""
    rows = made_up(seeds=(0, 1))
    weaker = rows[rows["attack"] == "pgd20"].assign(attack="pgd10", value=0.9)
    lost = made_up(methods=["natural"]).assign(value=np.nan, images="diverged")
    fig = transfer_plots.robust_curves(pd.concat([weaker, rows, lost]))
    heights = [[y for _, y in line] for line in drawn(fig.axes[0], figures.LOOKS["at"])]
    assert heights[0] == pytest.approx([60.5, 50.5, 40.5, 30.5]) and heights[1] == pytest.approx([28.5], abs=0.2)
    assert len(drawn(fig.axes[0], {"color": "#000000"})) == 4 and "diverged:\nnatural" in words(fig)  # dots of four methods


def test_clean_robust():
    """The four methods stand at their values, the others are grey dots; panels span the same; what is far is counted."""
    fig = transfer_plots.clean_robust(crowded())
    for ax in fig.axes:
        assert np.ptp(ax.get_xlim()) == pytest.approx(np.ptp(ax.get_ylim())) == pytest.approx(np.ptp(fig.axes[0].get_xlim()))
        assert [t.get_text() for t in ax.texts if t.get_text()] == ["1 further out"]
        (others,) = drawn(ax, transfer_plots.OTHER)
        assert len(others) == len(STRANGERS) and (0, 0) in others
    assert drawn(fig.axes[0])[:2] == [[(60, 30)], [(55, 32)]] and len(drawn(fig.axes[0])) == 5
    arrows = [(tuple(t.xyann), tuple(t.xy)) for t in fig.axes[0].texts if not t.get_text()]
    assert np.allclose(arrows, [((60, 30), (64, 33)), ((55, 32), (55, 33))])
    assert "1,000 test images, 1 seed" in fig.get_supxlabel()


@pytest.mark.parametrize("draw", [lambda: transfer_plots.robust_curves(made_up().iloc[:0]),
                                  lambda: transfer_plots.clean_robust(pd.concat([made_up(), made_up().assign(threat="l2")])),
                                  lambda: transfer_plots.forest_plot(differences().query("attack == 'none'")),
                                  lambda: overfit.method_curves([]), lambda: aft.schedule_curves([]),
                                  lambda: smoothing_plots.transfer_curves(estimates("04", True), "cifar10", 0.5),
                                  lambda: overfit.plateau_curves(overfit.study(datasets=("cifar10", "cub64")))])
def test_refused(draw):
    """What cannot be one figure is refused with what was expected."""
    with pytest.raises(ValueError, match="expected"):
        draw()
