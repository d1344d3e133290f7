"""Figures from made-up rows: what is drawn, whether it can be read, and that equal rows give equal bytes."""

import itertools

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.markers import CARETLEFT, CARETRIGHT
from matplotlib.text import Annotation, Text

from twinslib.evidence import rows as evidence_rows
from twinslib.show import figures, forest

METHODS = {"at": (0.60, 0.30), "trades": (0.55, 0.32), "twins_at": (0.64, 0.33), "twins_trades": (0.55, 0.33)}
DATASETS = ["cifar10", "cifar100", "caltech64", "cub64", "dogs64", "toy_target"]
COMPARISONS = [("twins_at", "at"), ("twins_trades", "trades"), ("mine", "at")]
STRANGERS = [f"stranger{i}" for i in range(18)]  # methods without a look of their own


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
    return pd.DataFrame(out, columns=evidence_rows.COLUMNS)


def made_up_differences(comparisons=COMPARISONS, datasets=DATASETS[:5], seeds=1):
    """Lines as `compare.differences` makes them: clean and PGD-20 at two radii, by data set and for their mean; values and
    p grow along the data sets."""
    columns = ["dataset", "method", "baseline", "metric", "threat", "eps", "attack", "n", "seeds", "value", "low", "high",
               "p_value", "p_holm"]
    out, count = [], itertools.count()
    for (method, baseline), (attack, k) in itertools.product(comparisons, [("none", 0), ("pgd20", 4), ("pgd20", 8)]):
        for i, dataset in enumerate([*datasets, "mean"]):
            value, p = 0.01 * (i - 2) + 0.001 * (next(count) % 10), np.nan if dataset == "mean" else 0.02 * (i + 1)
            out.append([dataset, method, baseline, "robust_acc" if k else "clean_acc", "linf", k / 255, attack, 1000, seeds,
                        value, value - 0.01, value + 0.015, p / 2, p])
    return pd.DataFrame(out, columns=columns)


@pytest.fixture(autouse=True)
def headless():
    """No window is opened, no figure stays."""
    plt.switch_backend("Agg")
    yield
    plt.close("all")


def filled(ax):
    """Data lines with their legend label, error bars and seed dots apart."""
    return {c.get_label(): c.lines[0] for c in ax.containers if not c.get_label().startswith("_")}


def markers(ax):
    """Markers of a forest with their bars, by data set in the order of the rows."""
    out = {}
    for c in ax.containers:
        out.setdefault(c.get_label().removeprefix("_"), []).append(c)
    return out


def written(ax):
    return [t.get_text() for t in ax.texts if t.get_text()]


def assert_legible(fig, size):
    """No text is below `size` points or leaves the page, and no two texts touch."""
    fig.draw_without_rendering()
    texts = [*fig.texts]
    for ax in fig.axes:
        ticks = [t for axis in (ax.xaxis, ax.yaxis) for t in axis.get_major_ticks()
                 if min(axis.get_view_interval()) <= t.get_loc() <= max(axis.get_view_interval())]
        texts += [ax.title, ax.xaxis.label, ax.yaxis.label, *ax.texts, *(t.label1 for t in ticks if ax.axison)]
    for legend in [*fig.legends, *(ax.get_legend() for ax in fig.axes)]:
        texts += legend.get_texts() if legend else []
    boxes = {t: Text.get_window_extent(t) for t in texts if t.get_text() and t.get_visible()}  # of the text, not its arrow
    assert min(t.get_fontsize() for t in boxes) >= size
    for box in boxes.values():
        assert -0.5 <= box.x0 and box.x1 <= fig.bbox.x1 + 0.5 and -0.5 <= box.y0 and box.y1 <= fig.bbox.y1 + 0.5
    touching = [(a.get_text(), b.get_text()) for (a, first), (b, second) in itertools.combinations(boxes.items(), 2)
                if first.padded(-1).overlaps(second.padded(-1))]
    assert not touching


def hollow(ax):
    return [c.lines[0] for c in ax.containers if c.lines[0].get_markerfacecolor() == "white"]


def test_robust_curve_draws_the_rows():
    """One line per method with its own colour, style and marker; heights are the rows in percent, in order of eps."""
    _, ax = plt.subplots()
    rows = made_up()
    assert figures.robust_curve(rows, ax) is ax
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
    figures.robust_curve(made_up(), ax)
    assert len(hollow(ax)) == 4 and all(line.get_linestyle() == "None" for line in hollow(ax))
    assert hollow(ax)[0].get_ydata() == pytest.approx([28.0])
    assert min(line.get_xdata()[0] for line in hollow(ax)) > max(line.get_xdata()[-1] for line in filled(ax).values())


def test_bars_are_the_exact_interval():
    """Bars of 5 of 10 reach from 18.7 to 81.3 percent."""
    rows = made_up(methods=["at"]).iloc[:1].assign(value=0.5, n=10)
    _, ax = plt.subplots()
    figures.robust_curve(rows, ax)
    (bar,) = ax.containers[0].lines[2][0].get_segments()
    assert bar[:, 1] == pytest.approx([18.71, 81.29], abs=0.01)


def test_strongest_pgd_is_drawn():
    """Of several PGD attacks at one radius the line takes the one with the most steps times restarts."""
    rows = made_up(methods=["at"])
    weaker = rows[rows["attack"] == "pgd20"].assign(attack="pgd10", value=0.9)
    stronger = rows[rows["attack"] == "pgd20"].assign(attack="pgd20x5", value=0.1)
    _, ax = plt.subplots()
    figures.robust_curve(pd.concat([stronger, rows, weaker]), ax)
    assert filled(ax)["AT"].get_ydata()[1:] == pytest.approx([10.0] * 3)


def test_seeds_are_dots():
    """With several seeds the line is the mean, and every seed is a dot."""
    _, ax = plt.subplots()
    rows = made_up(seeds=(0, 1, 2), methods=["at"])
    figures.robust_curve(rows, ax)
    assert filled(ax)["AT"].get_ydata()[0] == pytest.approx(61.0)
    dots = [line for line in ax.lines if line.get_marker() == "."]
    assert len(dots) == 1 and sorted(dots[0].get_ydata())[-3:] == pytest.approx([60, 61, 62])
    assert len(dots[0].get_ydata()) == 12


@pytest.mark.parametrize("n", range(1, 7))
def test_panels(n):
    """One panel per data set with its name as title, one legend for all, for every number of data sets."""
    for draw in (figures.robust_curves, figures.clean_robust):
        fig = draw(made_up(DATASETS[:n]))
        shown = [ax for ax in fig.axes if ax.axison]
        assert len({ax.get_title() for ax in shown}) == len(shown) == n
        legends = fig.legends + [ax.get_legend() for ax in fig.axes if ax.get_legend()]
        assert len(legends) == 1
        labels = [t.get_text() for t in legends[0].get_texts()]
        assert labels[:4] == ["AT", "TRADES", "TWINS-AT", "TWINS-TRADES"]
        assert labels[4:] == (["APGD-CE + APGD-T (hollow)"] if draw is figures.robust_curves else [])
        plt.close("all")


def test_missing_runs():
    """A method that is not run on a data set is left out there and keeps its look elsewhere."""
    rows = made_up(DATASETS[:2])
    rows = rows[~((rows["dataset"] == "cifar10") & (rows["method"] == "twins_at"))]
    first, second = figures.robust_curves(rows).axes
    assert list(filled(first)) == ["AT", "TRADES", "TWINS-TRADES"]
    assert filled(first)["TRADES"].get_color() == filled(second)["TRADES"].get_color()
    left, right = figures.clean_robust(rows, ["cifar10", "cifar100"]).axes
    assert [len([t for t in ax.texts if isinstance(t, Annotation)]) for ax in (left, right)] == [1, 2]


def test_panel_without_robust_numbers():
    """A data set with clean accuracy only says so in the scatter."""
    rows = made_up(DATASETS[:2])
    rows = rows[(rows["dataset"] == "cifar10") | (rows["attack"] == "none")]
    _, empty = figures.clean_robust(rows).axes
    assert [t.get_text() for t in empty.texts] == ["not run"]


def test_clean_robust_arrows_and_scale():
    """Arrows lead from baseline to TWINS at the rows' values; all panels span the same number of points."""
    rows = made_up(DATASETS[:3])
    fig = figures.clean_robust(rows)
    for ax in fig.axes:
        assert np.ptp(ax.get_xlim()) == pytest.approx(np.ptp(ax.get_ylim())) == pytest.approx(
            np.ptp(fig.axes[0].get_xlim()))
        assert min(*ax.get_xlim(), *ax.get_ylim()) >= 0
    arrow = fig.axes[0].texts[0]
    assert arrow.xyann == pytest.approx((60, 30)) and arrow.xy == pytest.approx((64, 33))
    assert fig._supylabel.get_text() == "PGD-20 accuracy at 8/255 (%)"


@pytest.mark.parametrize("draw", [figures.robust_curves, figures.clean_robust])
def test_legible(draw):
    """At print width no text is below 8 points, nothing leaves the page, and no two tick labels touch."""
    fig = draw(made_up(DATASETS[:5]))
    assert fig.get_figwidth() <= 7
    fig.draw_without_rendering()
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
    looks = figures._looks(["at", "mine", "yours", "natural"])
    assert len({look["color"] for look in looks.values()}) == len({look["marker"] for look in looks.values()}) == 4


@pytest.mark.parametrize("draw", [figures.robust_curves, figures.clean_robust])
def test_same_rows_same_bytes(tmp_path, draw):
    """PNG and PDF are byte-identical for equal rows, whatever the user's settings; `about` is in both, no temporary."""
    rows = made_up(DATASETS[:2])
    first = figures.save(draw(rows), tmp_path / "one", about="commit 0123abc")
    with plt.rc_context({"font.size": 20, "axes.facecolor": "red", "savefig.dpi": 30}):
        second = figures.save(draw(rows.copy()), tmp_path / "two.x", about="commit 0123abc")
    assert sorted(p.name for p in tmp_path.glob("*")) == ["one.pdf", "one.png", "two.x.pdf", "two.x.png"]
    for a, b in zip(first, second, strict=True):
        assert a.read_bytes() == b.read_bytes()
        assert b"commit 0123abc" in a.read_bytes()


def test_style_is_left_as_it_was():
    """Drawing and saving leave matplotlib's settings alone."""
    before = dict(plt.rcParams)
    figures.robust_curves(made_up())
    assert dict(plt.rcParams) == before


@pytest.mark.parametrize("rows, message", [
    (made_up().iloc[:0], "expected at least one finished measurement, got none"),
    (pd.concat([made_up(), made_up().assign(threat="l2")]), "expected one threat model in a figure, got linf, l2"),
])
def test_refused_rows(rows, message):
    """Nothing to draw and two threat models on one axis are refused."""
    for draw in (figures.robust_curves, figures.clean_robust):
        with pytest.raises(ValueError, match=message):
            draw(rows)


def test_robust_curve_refuses_two_data_sets():
    """One axis shows one data set."""
    with pytest.raises(ValueError, match="expected one data set, got cifar10, cifar100; use robust_curves"):
        figures.robust_curve(made_up(DATASETS[:2]), plt.subplots()[1])


# -- methods that only give the context -------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def crowded():
    """All 22 methods on five data sets: one stranger far to the lower left of the others, the rest near."""
    plt.switch_backend("Agg")
    rows = made_up(DATASETS[:5], methods=[*METHODS, *STRANGERS])
    rows = rows[rows["attack"].isin(["none", "pgd20"])]
    for i, name in enumerate(STRANGERS):
        shift = np.where(rows["attack"] == "none", 0.12 + 0.01 * (5 * i % 7), 0.12 + 0.013 * (i % 5))
        rows["value"] = (rows["value"] + np.where(rows["method"] == name, shift, 0.0)).round(3)
    return rows.assign(value=rows["value"].where(rows["method"] != STRANGERS[-1], 0.0))


def dots(ax):
    """Positions of quiet markers, those at the edge apart."""
    quiet = [line for line in ax.lines if line.get_color() == figures.QUIET["color"]]
    found = {True: [], False: []}
    for line in quiet:
        found[line.get_marker() == "o"].append((line.get_xdata()[0], line.get_ydata()[0]))
    return found[True], found[False]


def test_other_methods_are_numbered_dots(crowded):
    """Methods outside the pairs are grey dots at their values without bars, with the number that the key gives them."""
    fig = figures.clean_robust(crowded)
    (key,) = fig.legends
    assert [t.get_text() for t in key.get_texts()][:2] == ["1 stranger0", "2 stranger1"]
    assert [t.get_text() for t in key.get_texts()][17:] == ["18 stranger17", "outside (clean, robust)"]
    for name, ax in zip(DATASETS[:5], fig.axes, strict=False):
        assert len(ax.containers) == 4
        numbers = {t.get_text().split()[0]: t.xy for t in ax.texts if t.get_text()}
        assert set(numbers) == {str(i) for i in range(1, 19)}
        mine = crowded[(crowded["dataset"] == name) & (crowded["method"] == "stranger3")]
        clean, robust = (mine.loc[mine["attack"] == a, "value"].iloc[-1] for a in ("none", "pgd20"))
        assert numbers["4"] == pytest.approx((100 * clean, 100 * robust)) and numbers["4"] in dots(ax)[0]


def test_far_method_stands_at_the_edge(crowded):
    """It is a triangle within the panel, with its percentages; the panels span little more than without it."""
    fig = figures.clean_robust(crowded)
    without = figures.clean_robust(crowded[crowded["method"].isin(METHODS)])
    for ax, narrow in zip(fig.axes[:5], without.axes, strict=False):
        ((x, y),) = dots(ax)[1]
        assert ax.get_xlim()[0] < x < ax.get_xlim()[1] and ax.get_ylim()[0] <= y < ax.get_ylim()[1]
        assert "18 (0, 0)" in written(ax)
        assert np.ptp(ax.get_xlim()) <= 2 * np.ptp(narrow.get_xlim())


def test_crowd_is_legible(crowded):
    """With 22 methods no text is below 7 points, none touches another and none leaves the page."""
    fig = figures.clean_robust(crowded)
    assert fig.get_figwidth() <= 7
    assert_legible(fig, 7)


def test_only_other_methods():
    """Without any of the paired methods the panels fit the dots, and the key is the only legend."""
    fig = figures.clean_robust(made_up(DATASETS[:1], methods=["mine", "yours"]))
    assert [[t.get_text() for t in legend.get_texts()] for legend in fig.legends] == [["1 mine", "2 yours"]]
    assert len(dots(fig.axes[0])[0]) == 2 and dots(fig.axes[0])[1] == []


# -- forest -----------------------------------------------------------------------------------------------------------
def test_forest_draws_the_lines():
    """Markers and bars are the lines in points: clean left, the PGD at the largest eps right, rows in order of the lines."""
    lines = made_up_differences()
    fig = forest.forest_plot(lines)
    assert [ax.get_title() for ax in fig.axes] == ["clean accuracy", "PGD-20 at 8/255"]
    assert [t.get_text() for t in fig.axes[0].get_yticklabels()] == ["TWINS-AT - AT", "TWINS-TRADES - TRADES", "mine - AT"]
    for ax, eps in zip(fig.axes, (0, 8 / 255), strict=True):
        assert list(dict.fromkeys(markers(ax))) == [*DATASETS[:5], "mean"]
        for name, drawn in markers(ax).items():
            mine = lines[(lines["dataset"] == name) & (lines["eps"] == eps)]
            assert [c.lines[0].get_xdata()[0] for c in drawn] == pytest.approx(list(100 * mine["value"]))
            bars = [c.lines[2][0].get_segments()[0][:, 0] for c in drawn]
            assert np.array(bars) == pytest.approx(100 * mine[["low", "high"]].to_numpy())
        heights = [c.lines[0].get_ydata()[0] for c in ax.containers]
        assert heights == sorted(heights) and ax.get_ylim()[0] > ax.get_ylim()[1]  # downwards
        assert any(list(line.get_xdata()) == [0, 0] for line in ax.lines)


def test_forest_order_is_that_of_the_lines():
    """Comparisons stand in order of first appearance."""
    fig = forest.forest_plot(made_up_differences(COMPARISONS[::-1], DATASETS[:1]))
    assert [t.get_text() for t in fig.axes[0].get_yticklabels()] == ["mine - AT", "TWINS-TRADES - TRADES", "TWINS-AT - AT"]


def test_data_sets_have_looks_of_their_own():
    """Data sets differ in colour and marker from each other, in colour from every method; their mean is a bold diamond."""
    (ax, _) = forest.forest_plot(made_up_differences()).axes
    first = {name: drawn[0].lines[0] for name, drawn in markers(ax).items()}
    for look in ("get_color", "get_marker"):
        assert len({getattr(line, look)() for line in first.values()}) == 6
    known = {look["color"] for look in [*figures.LOOKS.values(), *figures.OTHERS, figures.QUIET]} - {forest.MEAN["color"]}
    assert not known & {look["color"] for look in forest.DATASETS}
    assert first["mean"].get_marker() == "D" and first["mean"].get_markersize() > first["cifar10"].get_markersize()


def test_filled_where_the_adjusted_p_is_small():
    """Filled up to 0.05 and never by the unadjusted p; hollow without a p, but means are filled; the legend says so."""
    lines = made_up_differences(COMPARISONS[:1])
    p = dict(zip(DATASETS, [0.05, 0.0501, np.nan, 0.0, 1.0], strict=False))
    fig = forest.forest_plot(lines.assign(p_holm=lines["dataset"].map(p), p_value=0.0))
    for ax in fig.axes:
        full = {name: c.lines[0].get_markerfacecolor() == c.lines[0].get_color() for name, (c,) in markers(ax).items()}
        assert full == dict(zip([*DATASETS[:5], "mean"], [True, False, False, True, False, True], strict=True))
    (legend,) = fig.legends
    labels = [t.get_text() for t in legend.get_texts()]
    assert labels == ["CIFAR-10", "CIFAR-100", "Caltech-101", "CUB-200 (2010)", "Stanford Dogs (boxes)", "mean of data sets",
                      "filled: Holm-adjusted p ≤ 0.05", "hollow: p above that, or none"]


def test_far_difference_is_an_arrow_head_with_its_number():
    """It stretches no axis; both panels share one scale, and all other markers are inside."""
    lines = made_up_differences()
    far = (lines["dataset"] == "cub64") & (lines["method"] == "mine") & (lines["attack"] == "none")
    lines.loc[far, ["value", "low", "high"]] = [-0.204, -0.23, -0.18]
    wide = (lines["dataset"] == "cifar10") & (lines["method"] == "mine") & (lines["eps"] == 8 / 255)
    lines.loc[wide, "high"] = 0.4
    left, right = forest.forest_plot(lines).axes
    assert left.get_xlim() == right.get_xlim() and left.get_xlim()[0] > -10 and right.get_xlim()[1] < 10
    assert (written(left), written(right)) == (["−20.4"], [])
    heads = [[(line.get_marker(), line.get_xdata()[0]) for line in ax.lines if line.get_marker() in (CARETLEFT, CARETRIGHT)]
             for ax in (left, right)]
    assert heads == [[(CARETLEFT, left.get_xlim()[0])], [(CARETRIGHT, left.get_xlim()[1])]]
    inside = [left.get_xlim()[0] < c.lines[0].get_xdata()[0] < left.get_xlim()[1] for c in left.containers + right.containers]
    assert inside.count(False) == 1


def test_forest_not_run():
    """Lines without a value leave no marker; a row without any says so, in each panel by itself."""
    lines = made_up_differences()
    gone = (lines["method"] == "mine") | ((lines["method"] == "twins_at") & (lines["eps"] == 8 / 255))
    gone |= (lines["method"] == "twins_trades") & (lines["dataset"] == "cub64")
    lines.loc[gone, ["value", "low", "high", "p_value", "p_holm"]] = np.nan
    left, right = forest.forest_plot(lines).axes
    assert (written(left), written(right)) == (["not run"], ["not run"] * 2)
    assert (len(left.containers), len(right.containers)) == (6 + 5, 5)
    assert len(left.get_yticklabels()) == 3


def test_forest_with_nothing_run():
    """A study whose runs are all to come has its rows already."""
    lines = made_up_differences().assign(value=np.nan, low=np.nan, high=np.nan)
    assert [written(ax) for ax in forest.forest_plot(lines).axes] == [["not run"] * 3] * 2


def test_seeds_in_the_row():
    """Where lines rest on different numbers of seeds each row says on how many; else none does."""
    lines = made_up_differences()
    counts = lines["method"].map({"twins_at": 1, "twins_trades": 3, "mine": 3})
    lines = lines.assign(seeds=counts.where((lines["method"] != "mine") | (lines["dataset"] != "cub64"), 2))
    lines.loc[(lines["method"] == "twins_at") & (lines["eps"] == 4 / 255), "seeds"] = 9  # not drawn
    assert [t.get_text() for t in forest.forest_plot(lines).axes[0].get_yticklabels()] == [
        "TWINS-AT - AT (1 seed)", "TWINS-TRADES - TRADES (3 seeds)", "mine - AT (2 to 3 seeds)"]
    same = forest.forest_plot(made_up_differences(seeds=3)).axes[0]
    assert [t.get_text() for t in same.get_yticklabels()][0] == "TWINS-AT - AT"


def test_robust_panel_is_chosen():
    """By default the PGD with most steps at the largest eps that has values, else what is asked for."""
    lines = made_up_differences(COMPARISONS[:1], DATASETS[:1])
    last = lines[lines["eps"] == 8 / 255]
    more = pd.concat([last.assign(attack="pgd100"), lines, last.assign(attack="apgd-ce", eps=16 / 255),
                      last.assign(attack="pgd100x5", value=np.nan), last.assign(attack="pgd10")])
    assert forest.forest_plot(more).axes[1].get_title() == "PGD-100 at 8/255"
    assert forest.forest_plot(more, ("pgd20", "linf", 4 / 255)).axes[1].get_title() == "PGD-20 at 4/255"
    assert forest.forest_plot(more, ("apgd-ce", "linf", 16 / 255)).axes[1].get_title() == "APGD-CE at 16/255"


@pytest.mark.parametrize("lines, robust, message", [
    (made_up_differences().iloc[:0], None, "expected at least one paired difference, got none; pass pairs"),
    (made_up_differences().drop(columns=["low", "p_holm"]), None, "got none called low, p_holm; pass what"),
    (pd.concat([made_up_differences()] * 2), None, "got several for cifar10, twins_at, at; choose the lines to draw"),
    (made_up_differences().query("attack == 'none'"), None, "expected PGD of one threat model, got no PGD at all; pass robust"),
    (pd.concat([made_up_differences(), made_up_differences().query("eps > 0").assign(threat="l2")]), None,
     "expected PGD of one threat model, got linf, l2; pass robust"),
    (made_up_differences(), ("pgd50", "linf", 8 / 255), "got .*pgd50.*; choose from .*pgd20"),
])
def test_refused_differences(lines, robust, message):
    """Nothing to draw, missing columns, two lines for one marker, and no way to tell which attack to draw."""
    with pytest.raises(ValueError, match=message):
        forest.forest_plot(lines, robust)


def test_forest_is_legible():
    """Twenty comparisons at print width, some far, some not run, with long names and seeds: no text is below 7 points, none
    touches another, none leaves the page; the height grows with the rows."""
    comparisons = [*COMPARISONS, *((f"a long name of stranger {i}, with a switch", "at") for i in range(17))]
    lines = made_up_differences(comparisons)
    lines.loc[lines["method"].str.contains("1[0-2],"), ["value", "low", "high"]] -= 0.3
    lines.loc[lines["method"].str.contains(" [3-5],"), ["value", "low", "high"]] = np.nan
    lines.loc[lines["dataset"] == "cub64", "seeds"] = 3
    fig = forest.forest_plot(lines)
    assert fig.get_figwidth() <= 7 and fig.get_figheight() > 3 * forest.forest_plot(made_up_differences()).get_figheight()
    assert len(written(fig.axes[0])) == 3 * 6 + 3
    assert_legible(fig, 7)


def test_same_differences_same_bytes(tmp_path):
    """PNG and PDF of a forest are byte-identical for equal lines, whatever the user's settings."""
    lines = made_up_differences()
    first = figures.save(forest.forest_plot(lines), tmp_path / "one")
    with plt.rc_context({"font.size": 20, "axes.facecolor": "red", "savefig.dpi": 30}):
        second = figures.save(forest.forest_plot(lines.copy()), tmp_path / "two")
    assert [a.read_bytes() for a in first] == [b.read_bytes() for b in second]
