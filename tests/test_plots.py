"""Figures from made-up rows: what is drawn, whether it can be read, and that equal rows give equal bytes."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Annotation, Text

from twinslib import plots, table

METHODS = {"at": (0.60, 0.30), "trades": (0.55, 0.32), "twins_at": (0.64, 0.33), "twins_trades": (0.55, 0.33)}
DATASETS = ["cifar10", "cifar100", "caltech64", "cub64", "dogs64", "toy_target"]


def made_up(datasets=DATASETS[:1], seeds=(0,), methods=METHODS):
    """Rows as `table.rows` makes them: clean, PGD-20 at three radii, two stages of AutoAttack on fewer images."""
    out = []
    for d, dataset in enumerate(datasets):
        for name in methods:
            clean, robust = METHODS.get(name, (0.5, 0.2))
            for seed in seeds:
                levels = np.linspace(clean, robust, 4) - 0.05 * d + 0.01 * seed
                measured = [("none", 0, levels[0], 1000), *(("pgd20", k, v, 1000) for k, v in zip((2, 4, 8), levels[1:],
                                                                                              strict=True)),
                            ("apgd-ce", 8, levels[3] - 0.01, 300), ("apgd-ce+apgd-t", 8, levels[3] - 0.02, 300)]
                run = f"{dataset}-{name}-{seed}"
                out += [["transfer", "small", dataset, "tiny_resnet", "batch", name, seed,
                         "robust_acc" if k else "clean_acc", "linf", k / 255, round(v * n) / n, n, run, attack,
                         f"{dataset}-0000[:{n}]"] for attack, k, v, n in measured]
    return pd.DataFrame(out, columns=table.COLUMNS)


@pytest.fixture(autouse=True)
def headless():
    """No window is opened, no figure stays."""
    plt.switch_backend("Agg")
    yield
    plt.close("all")


def filled(ax):
    """Data lines with their legend label, error bars and seed dots apart."""
    return {c.get_label(): c.lines[0] for c in ax.containers if not c.get_label().startswith("_")}


def hollow(ax):
    return [c.lines[0] for c in ax.containers if c.lines[0].get_markerfacecolor() == "white"]


def test_robust_curve_draws_the_rows():
    """One line per method with its own colour, style and marker; heights are the rows in percent, in order of eps."""
    _, ax = plt.subplots()
    rows = made_up()
    assert plots.robust_curve(rows, ax) is ax
    lines = filled(ax)
    assert list(lines) == ["AT", "TRADES", "TWINS-AT", "TWINS-TRADES"]
    for look in ("get_color", "get_linestyle", "get_marker"):
        assert len({getattr(line, look)() for line in lines.values()}) == 4
    for name, label in zip(METHODS, lines, strict=True):
        mine = rows[(rows["method"] == name) & rows["attack"].isin(["none", "pgd20"])].sort_values("eps")
        assert lines[label].get_ydata() == pytest.approx(100 * mine["value"].to_numpy())
        assert np.round(lines[label].get_xdata().astype(float)).tolist() == [0, 1, 2, 3]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["0", "2/255", "4/255", "8/255"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("attack radius eps (PGD-20)", "accuracy (%)")
    assert ax.get_title() == "CIFAR-10"


def test_autoattack_stands_hollow_beside_the_line():
    """One hollow marker per method, of the last stage, to the right of all filled ones at its radius."""
    _, ax = plt.subplots()
    plots.robust_curve(made_up(), ax)
    assert len(hollow(ax)) == 4 and all(line.get_linestyle() == "None" for line in hollow(ax))
    assert hollow(ax)[0].get_ydata() == pytest.approx([28.0])
    assert min(line.get_xdata()[0] for line in hollow(ax)) > max(line.get_xdata()[-1] for line in filled(ax).values())


def test_bars_are_the_exact_interval():
    """Bars of 5 of 10 reach from 18.7 to 81.3 percent."""
    rows = made_up(methods=["at"]).iloc[:1].assign(value=0.5, n=10)
    _, ax = plt.subplots()
    plots.robust_curve(rows, ax)
    (bar,) = ax.containers[0].lines[2][0].get_segments()
    assert bar[:, 1] == pytest.approx([18.71, 81.29], abs=0.01)


def test_strongest_pgd_is_drawn():
    """Of several PGD attacks at one radius the line takes the one with the most steps times restarts."""
    rows = made_up(methods=["at"])
    weaker = rows[rows["attack"] == "pgd20"].assign(attack="pgd10", value=0.9)
    stronger = rows[rows["attack"] == "pgd20"].assign(attack="pgd20x5", value=0.1)
    _, ax = plt.subplots()
    plots.robust_curve(pd.concat([stronger, rows, weaker]), ax)
    assert filled(ax)["AT"].get_ydata()[1:] == pytest.approx([10.0] * 3)


def test_seeds_are_dots():
    """With several seeds the line is the mean, and every seed is a dot."""
    _, ax = plt.subplots()
    rows = made_up(seeds=(0, 1, 2), methods=["at"])
    plots.robust_curve(rows, ax)
    assert filled(ax)["AT"].get_ydata()[0] == pytest.approx(61.0)
    dots = [line for line in ax.lines if line.get_marker() == "."]
    assert len(dots) == 1 and sorted(dots[0].get_ydata())[-3:] == pytest.approx([60, 61, 62])
    assert len(dots[0].get_ydata()) == 12


@pytest.mark.parametrize("n", range(1, 7))
def test_panels(n):
    """One panel per data set with its name as title, one legend for all, for every number of data sets."""
    for draw in (plots.robust_curves, plots.clean_robust):
        fig = draw(made_up(DATASETS[:n]))
        shown = [ax for ax in fig.axes if ax.axison]
        assert len({ax.get_title() for ax in shown}) == len(shown) == n
        legends = fig.legends + [ax.get_legend() for ax in fig.axes if ax.get_legend()]
        assert len(legends) == 1
        labels = [t.get_text() for t in legends[0].get_texts()]
        assert labels[:4] == ["AT", "TRADES", "TWINS-AT", "TWINS-TRADES"]
        assert labels[4:] == (["APGD-CE + APGD-T (hollow)"] if draw is plots.robust_curves else [])
        plt.close("all")


def test_missing_runs():
    """A method that is not run on a data set is left out there and keeps its look elsewhere."""
    rows = made_up(DATASETS[:2])
    rows = rows[~((rows["dataset"] == "cifar10") & (rows["method"] == "twins_at"))]
    first, second = plots.robust_curves(rows).axes
    assert list(filled(first)) == ["AT", "TRADES", "TWINS-TRADES"]
    assert filled(first)["TRADES"].get_color() == filled(second)["TRADES"].get_color()
    left, right = plots.clean_robust(rows, ["cifar10", "cifar100"]).axes
    assert [len([t for t in ax.texts if isinstance(t, Annotation)]) for ax in (left, right)] == [1, 2]


def test_panel_without_robust_numbers():
    """A data set with clean accuracy only says so in the scatter."""
    rows = made_up(DATASETS[:2])
    rows = rows[(rows["dataset"] == "cifar10") | (rows["attack"] == "none")]
    _, empty = plots.clean_robust(rows).axes
    assert [t.get_text() for t in empty.texts] == ["not run"]


def test_clean_robust_arrows_and_scale():
    """Arrows lead from baseline to TWINS at the rows' values; all panels span the same number of points."""
    rows = made_up(DATASETS[:3])
    fig = plots.clean_robust(rows)
    for ax in fig.axes:
        assert np.ptp(ax.get_xlim()) == pytest.approx(np.ptp(ax.get_ylim())) == pytest.approx(
            np.ptp(fig.axes[0].get_xlim()))
        assert min(*ax.get_xlim(), *ax.get_ylim()) >= 0
    arrow = fig.axes[0].texts[0]
    assert arrow.xyann == pytest.approx((60, 30)) and arrow.xy == pytest.approx((64, 33))
    assert fig._supylabel.get_text() == "PGD-20 accuracy at 8/255 (%)"


@pytest.mark.parametrize("draw", [plots.robust_curves, plots.clean_robust])
def test_legible(draw):
    """At print width no text is below 8 points, nothing leaves the page, and no two tick labels touch."""
    fig = draw(made_up(DATASETS[:5]))
    assert fig.get_figwidth() <= 7
    fig.canvas.draw()
    texts = [t for t in fig.findobj(Text) if t.get_text() and t.get_visible()]
    assert min(t.get_fontsize() for t in texts) >= 8
    page = fig.get_tightbbox().padded(-0.001)
    assert page.x0 >= 0 and page.y0 >= 0 and page.x1 <= fig.get_figwidth() and page.y1 <= fig.get_figheight()
    for ax in fig.axes:
        if ax.axison:
            boxes = [t.get_window_extent() for t in ax.get_xticklabels() if t.get_text()]
            boxes = [b for b in boxes if b.width]
            assert all(a.x1 < b.x0 for a, b in zip(boxes, boxes[1:], strict=False))


def test_unknown_methods_get_looks_of_their_own():
    """Methods that the project does not know yet differ from each other and from the known ones."""
    looks = plots._looks(["at", "mine", "yours", "natural"])
    assert len({look["color"] for look in looks.values()}) == len({look["marker"] for look in looks.values()}) == 4


@pytest.mark.parametrize("draw", [plots.robust_curves, plots.clean_robust])
def test_same_rows_same_bytes(tmp_path, draw):
    """PNG and PDF are byte-identical for equal rows, whatever the user's settings; `about` is in both, no temporary."""
    rows = made_up(DATASETS[:2])
    first = plots.save(draw(rows), tmp_path / "one", about="commit 0123abc")
    with plt.rc_context({"font.size": 20, "axes.facecolor": "red", "savefig.dpi": 30}):
        second = plots.save(draw(rows.copy()), tmp_path / "two.x", about="commit 0123abc")
    assert sorted(p.name for p in tmp_path.glob("*")) == ["one.pdf", "one.png", "two.x.pdf", "two.x.png"]
    for a, b in zip(first, second, strict=True):
        assert a.read_bytes() == b.read_bytes()
        assert b"commit 0123abc" in a.read_bytes()


def test_style_is_left_as_it_was():
    """Drawing and saving leave matplotlib's settings alone."""
    before = dict(plt.rcParams)
    plots.robust_curves(made_up())
    assert dict(plt.rcParams) == before


@pytest.mark.parametrize("rows, message", [
    (made_up().iloc[:0], "expected at least one finished measurement, got none"),
    (pd.concat([made_up(), made_up().assign(threat="l2")]), "expected one threat model in a figure, got linf, l2"),
])
def test_refused_rows(rows, message):
    """Nothing to draw and two threat models on one axis are refused."""
    for draw in (plots.robust_curves, plots.clean_robust):
        with pytest.raises(ValueError, match=message):
            draw(rows)


def test_robust_curve_refuses_two_data_sets():
    """One axis shows one data set."""
    with pytest.raises(ValueError, match="expected one data set, got cifar10, cifar100; use robust_curves"):
        plots.robust_curve(made_up(DATASETS[:2]), plt.subplots()[1])
